"""The tokenizer: byte-level BPE over the tasks' questions, every digit a token, the prompt format built in."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, ANSWER = "<|pad|>", "<|end|>", "<|start|>", "<|answer|>"
VOCABULARY = 512
CONTEXT = 1024

# One user message is encoded exactly as the same text given as a plain prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|answer|>' + message['content'] + '<|end|>' }}"
    "{% else %}"
    "{{ '<|start|>' + message['content'] }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of 512 entries: 4 special tokens, all 256 bytes, and the commonest merges in the texts.

    `tokenizer(text)` gives <|start|> text <|answer|>, the prompt that the model answers; with
    `add_special_tokens=False` it gives the text alone, and decoding that gives the text back, whatever it is.
    """
    bpe = Tokenizer(models.BPE())
    # use_regex keeps merges inside words; digits are split off first so that no merge ever holds one.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, BOS, ANSWER],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    ids = [(token, bpe.token_to_id(token)) for token in (BOS, ANSWER)]
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {ANSWER}", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        additional_special_tokens=[ANSWER],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save under the class name that every version of transformers, and vLLM, loads."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for machine_specific in ("is_local", "local_files_only", "backend"):
        config.pop(machine_specific, None)
    path.write_text(json.dumps(config, indent=2) + "\n")
