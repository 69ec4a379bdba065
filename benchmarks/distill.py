"""Distillation at a vocabulary of 32k words: memory and time of a step by what is read of the teacher's distributions.

    python benchmarks/distill.py [--pairs 3]

One process each, in turn, which prints one JSON line: seconds of each step after the first, and peak memory above that of the
imported libraries, in MB. All have the same student, teacher, prompts and number of completions; a step samples, reads the
teacher and updates, in one micro-batch. Nothing is set for memory.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

from child import measured
from step import peak, prompts_of

VOCABULARY, WIDTH, PROMPTS, PROMPT_TOKENS, GROUP, NEW_TOKENS, STEPS = 32768, 128, 16, 16, 4, 32, 3
METHODS = (
    ("opd", {}, "sampled token"),
    ("vopd", {"top_k": 100}, "sampled token, less a baseline over 100 words"),
    ("vopd", {}, "sampled token, less a baseline over all words"),
    ("gkd", {"rollout.reference_rows": 0}, "whole distributions, with gradient"),
)
TARGET = 1.5
"""Times the memory of the first that the last is meant to stay below."""


def save_models(folder: Path) -> None:
    """Student and teacher, four layers each, of which the vocabulary is the most."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = {"<pad>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0,
            bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder / name)


def run(method: str, settings: dict, folder: Path) -> dict:
    """Seconds per step and memory above the imports, in MB. Exits where a step was skipped or has other completions."""
    import transformers.models.llama.modeling_llama  # noqa: F401  all that is imported counts as before the start

    from upslope.engines import local  # noqa: F401
    from upslope.policies.language import LanguagePolicy  # noqa: F401
    from upslope.rollout import Example, Outcome
    from upslope.trainer import Trainer

    class Judge:
        def score(self, examples, completions, completion_ids=None):
            return [Outcome(1.0) for _ in completions]

    class Task:
        name, solved_at, judge = "words", 2.0, Judge()

        def examples(self, split):
            return [Example(f"{split}{i}", text) for i, text in enumerate(prompts_of(PROMPT_TOKENS, PROMPTS * STEPS))]

        def close(self):
            pass

    start = peak()
    trainer = Trainer(
        method, model=str(folder / "student"), teacher=str(folder / "teacher"), task=Task(), steps=STEPS,
        prompts_per_step=PROMPTS, max_tokens=NEW_TOKENS, optimizer={"lr": 1e-4}, eval={"every": 0, "prompts": 0},
        settings={"rollout.group_size": GROUP, **settings},
    )  # fmt: skip
    rows = trainer.train().rows[1:]
    if not all(
        row["tokens"] == PROMPTS * GROUP * NEW_TOKENS and math.isfinite(row.get("loss", math.nan)) for row in rows
    ):
        sys.exit(f"{method}: not every step learned from all {PROMPTS * GROUP * NEW_TOKENS} tokens: {rows}")
    seconds = [row["time/total"] - row.get("time/eval", 0.0) for row in rows[1:]]
    return {"seconds": seconds, "memory": peak() - start}


def against_sampled_tokens(pairs: int) -> list[str]:
    """Rows of the table: memory and time of each method, over those of opd in the same round."""
    memory: list[list[float]] = [[] for _ in METHODS]
    seconds: list[list[float]] = [[] for _ in METHODS]
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder))
        for _ in range(pairs):
            for index, (method, settings, _) in enumerate(METHODS):
                found = measured("distill.py", "--method", method, json.dumps(settings), folder)
                memory[index].append(found["memory"])
                seconds[index].append(statistics.median(found["seconds"]))
                print(f"{method} {settings}: {memory[index][-1]:.0f} MB, {seconds[index][-1]:.2f} s a step", flush=True)
    lines = [
        "| method | what it reads of the teacher | peak memory, method / opd | of the rounds | target | step time, method / opd |",
        "|---|---|---|---|---|---|",
    ]
    for index, (method, settings, reads) in enumerate(METHODS):
        shares = [one / base for one, base in zip(memory[index], memory[0], strict=True)]
        times = [one / base for one, base in zip(seconds[index], seconds[0], strict=True)]
        name = f"{method} {' '.join(f'{key}={value}' for key, value in settings.items() if key == 'top_k')}".strip()
        spread = f"{min(shares):.2f} to {max(shares):.2f}"
        target = f"at most {TARGET}" if index == len(METHODS) - 1 else ""
        middle = statistics.median(shares)
        lines.append(f"| {name} | {reads} | **{middle:.2f}** | {spread} | {target} | {statistics.median(times):.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="rounds of all methods")
    parser.add_argument("--method", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method is None:
        print("\n".join(against_sampled_tokens(arguments.pairs)))
        return
    method, settings, folder = arguments.method
    print(json.dumps(run(method, json.loads(settings), Path(folder))))


if __name__ == "__main__":
    main()
