"""Finding, checking and opening language models and their tokenizers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.rollout import Message

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
EMBEDDED = ("tiny", "tiny-teacher")  # models in the package
UNLIMITED = 2**31
SCORING = "ForSequenceClassification"  # how transformers' classes with a score end
Head = Literal["vocabulary", "score", "any score"]
"""What stands on the model's hidden states: a layer over the vocabulary, a score, or a score that is new where there is none."""


def load(
    name: str | Path, device: str, dtype: str, trust_remote_code: bool, head: Head = "vocabulary"
) -> tuple[Any, Any]:
    """The model with that head, on its device, and the tokenizer that `LanguagePolicy.load` describes."""
    from transformers import AutoConfig

    where = resolve_device(device)
    source = _source(name)
    remote = {"trust_remote_code": trust_remote_code}
    with quiet():
        config = _opened("config", source, lambda: AutoConfig.from_pretrained(source, **remote))
        if getattr(config, "is_encoder_decoder", False):
            raise UsageError(
                f"{name} is an encoder-decoder ({config.model_type}): only causal language models can be trained."
            )
        _check_head(name, config, head)
        tokenizer = _load_tokenizer(source, remote)
        model = _load_model(source, config, resolve_dtype(dtype, where), remote, head)
    check_vocabulary(tokenizer, model, source)
    for weight, values in model.named_parameters():
        if not values.isfinite().all():
            raise UsageError(f"{weight} of {source} has NaN or infinite values: the weights are damaged.")
    return model.to(where), tokenizer


def _source(name: str | Path) -> str:
    """The folder or hub id that `name` stands for, with a folder's content checked."""
    if str(name) in EMBEDDED:
        folder = Path(str(resources.files("upslope"))) / "assets" / str(name)
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"The embedded model '{name}' is not in this installation. Reinstall upslope, or name another model."
            )
        return str(folder)
    path = Path(name).expanduser()
    if path.exists():
        _check_folder(path)
        return str(path)
    text = str(name)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith("/"):
        raise UsageError(
            f"There is no folder {path}. Give 'tiny', a Hugging Face folder, or a hub id such as 'org/name'."
        )
    return text


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(f"{path} is a file: give the Hugging Face folder that it is in.")
    if not (path / "config.json").is_file():
        raise UsageError(f"{path} has no config.json, so it is not a Hugging Face model folder. {_contents(path)}")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in PICKLED for file in path.glob(pattern))
    if pickled:
        raise UsageError(
            f"{path} has its weights only as pickle ({pickled[0]}), which can run code when opened. Convert them: open "
            "the folder with transformers where you trust it, and save_pretrained() writes safetensors."
        )
    raise UsageError(f"{path} has a config.json but no weights (*.safetensors). {_contents(path)}")


def _contents(path: Path) -> str:
    names = sorted(file.name for file in path.iterdir())
    return f"It holds {', '.join(names[:8]) or 'nothing'}{' ...' if len(names) > 8 else ''}."


def _load_tokenizer(source: str, remote: dict[str, bool]) -> Any:
    from transformers import AutoTokenizer

    folder = Path(source)
    known = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
    if folder.is_dir() and not any((folder / file).is_file() for file in known):
        raise UsageError(
            f"{source} has no tokenizer (tokenizer.json or the like): save it there with tokenizer.save_pretrained()."
        )
    found = _opened("tokenizer", source, lambda: AutoTokenizer.from_pretrained(source, **remote))
    # A text beyond the context is counted and named, or cut, and never run through the model, as its warning has it.
    if hasattr(found, "deprecation_warnings"):
        found.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return found


def scores(config: Any) -> bool:
    """Whether the configuration is of a model with a score."""
    return any(name.endswith(SCORING) for name in config.architectures or ())


def _check_head(name: str | Path, config: Any, head: Head) -> None:
    kind = " and ".join(config.architectures or ()) or config.model_type
    if head == "vocabulary" and scores(config):
        raise UsageError(
            f"{name} is a reward model ({kind}): it scores texts and cannot write any. Give a language model here; a reward "
            "model's place is --reward-model."
        )
    if head == "score" and not scores(config):
        raise UsageError(
            f"{name} has no score ({kind}), so it is no reward model; one is saved as ...{SCORING}. Train it: "
            f"upslope train rm --model {name} --data PAIRS."
        )
    if scores(config) and config.num_labels != 1:
        raise UsageError(
            f"{name} is a classifier into {config.num_labels} classes ({kind}); a reward model has one score."
        )


def _load_model(source: str, config: Any, dtype: torch.dtype, remote: dict[str, bool], head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    new = head == "any score" and not scores(config)
    if new:
        config.num_labels = 1
    kind: Any = AutoModelForCausalLM if head == "vocabulary" else AutoModelForSequenceClassification

    def read() -> Any:
        return kind.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **remote,
        )

    model, report = _opened("weights", source, read)
    for name, saved, expected in sorted(report["mismatched_keys"]):
        shapes = [" x ".join(map(str, shape)) for shape in (saved, expected)]
        raise UsageError(
            f"{name} of {source} is saved as {shapes[0]}, but its config.json asks for {shapes[1]}: "
            "the config belongs to another model."
        )
    missing = sorted(key for key in report["missing_keys"] if not (new and key.startswith("score.")))
    if missing:
        raise UsageError(
            f"{source} lacks {len(missing)} of the weights that its config.json asks for, such as {missing[0]}: "
            "the folder is incomplete, or its config belongs to another model."
        )
    return model


def _opened(what: str, source: str, read: Any) -> Any:
    try:
        return read()
    except UsageError:
        raise
    except Exception as error:  # transformers raises nearly everything for a damaged or absent file
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"Cannot open the {what} of {source}: {reason[0] if reason else type(error).__name__}"
            + ("" if Path(source).exists() else " (It is not a folder here, so it was looked up on the hub.)")
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no load report from transformers inside the block: what it would report is checked here."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_vocabulary(tokenizer: Any, model: Any, source: str) -> None:
    """Every token of the tokenizer needs an embedding.

    Raises:
        UsageError: the tokenizer has an id beyond the model's embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise UsageError(
            f"The tokenizer of {source} has ids up to {highest}, but the model embeds only {rows} tokens. "
            "Use the tokenizer that the model was trained with, or resize the model's embeddings."
        )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        UsageError: torch does not know or have that device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"There is no device '{device}': {str(error).splitlines()[0]} Use 'auto' or 'cpu'.") from error


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a CUDA device that has it, else float32.

    Raises:
        UsageError: not the name of a floating point dtype of torch.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    found = getattr(torch, dtype, None)
    if found not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UsageError(f"dtype is '{dtype}'. Use 'auto', 'float32', 'bfloat16', 'float16' or 'float64'.")
    return found


def context_length(config: Any) -> int:
    """The most positions that the configuration allows; practically unlimited where it names none."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length")]
    return next((limit for limit in limits if limit), UNLIMITED)


def encode(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """Token ids of a string, or of messages through the chat template.

    Raises:
        UsageError: messages, but the tokenizer has no chat template.
    """
    ids: list[int]
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        return ids
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The prompt is a list of messages, but this tokenizer has no chat template. Give prompts as plain strings."
        )
    messages = [dict(message) for message in prompt]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def encode_completion(
    tokenizer: Any, prompt: str | Sequence[Message], completion: str | Sequence[Message]
) -> tuple[list[int], str]:
    """Token ids of what follows a prompt, its end token included, and its text.

    A text is tokenized on its own, as a sampled one would stand there. Messages are what the chat template adds to the prompt.

    Raises:
        UsageError: messages, and the chat template does not begin with what it makes of the prompt alone.
    """
    if isinstance(completion, str):
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return tokenizer(completion, add_special_tokens=False)["input_ids"] + end, completion
    before = encode(tokenizer, prompt)
    messages = [dict(message) for message in (*prompt, *completion)]
    whole: list[int] = tokenizer.apply_chat_template(messages, return_dict=False)
    text = "\n".join(message["content"] for message in completion)
    if whole[: len(before)] == before:
        return whole[len(before) :], text
    if len(completion) == 1:  # a template that, say, opens a thinking block for the prompt alone
        return encode_completion(tokenizer, prompt, text)
    raise UsageError(
        "this tokenizer's chat template writes the prompt differently once an answer follows, so completions of several "
        f"messages cannot be told from it: {text[:60]!r}. Give completions as one text."
    )


def copy_parameters(state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], expected: set[str]) -> None:
    """Copy `state` into the parameters of the same names, which must be just the expected ones.

    Raises:
        UsageError: names or shapes differ; nothing has been copied then.
    """
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise UsageError(
            f"The saved state and the model differ in {len(odd)} parameters, such as {odd[0]}: "
            "it belongs to another model, or to other LoRA settings."
        )
    for name, value in state.items():
        if value.shape != parameters[name].shape:
            raise UsageError(
                f"{name} is saved as {tuple(value.shape)}, but the model has {tuple(parameters[name].shape)}."
            )
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
