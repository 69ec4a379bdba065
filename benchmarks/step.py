"""Whole training steps of one system in a process of its own: python benchmarks/step.py {upslope,trl} PROMPT_TOKENS GROUP_SIZE

Prints one JSON line: seconds of each step after the first, and peak memory above that of the imported libraries, in MB.
Both systems get the same model, prompts, group size, number of new tokens, optimizer and reward, and one update per step.
"""

import itertools
import json
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import torch

PROMPTS, NEW_TOKENS, VOCABULARY = 8, 32, 1024


def steps_of(length: int) -> int:
    """Steps per process: more of the short ones, whose times scatter more."""
    return 13 if length < 64 else 4


def tiny_llama():
    """1M parameters: four layers of width 128."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


def word_tokenizer():
    """One token per word w2, w3, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def prompts_of(length: int, count: int) -> list[str]:
    """Random words; `count` prompts of `length` tokens each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (count, length), generator=generator)
    return [" ".join(f"w{i}" for i in row) for row in ids.tolist()]


def reward_of(text: str) -> float:
    """Differs between any two completions, so that no group is without variance."""
    return zlib.crc32(text.encode()) % 1000 / 1000


def run_upslope(length: int, group: int) -> tuple[float, list[float]]:
    """Memory after the imports, in MB, and seconds per step."""
    from upslope.policies.language import LanguagePolicy
    from upslope.rollout import Example, Outcome
    from upslope.trainer import Trainer

    class Judge:
        def score(self, examples, completions, completion_ids=None):
            return [Outcome(reward_of(text)) for text in completions]

    class Task:
        name, solved_at, judge = "words", 2.0, Judge()

        def examples(self, split):
            return [
                Example(f"{split}{i}", text) for i, text in enumerate(prompts_of(length, PROMPTS * steps_of(length)))
            ]

        def close(self):
            pass

    start = peak()
    tokenizer, model = word_tokenizer(), tiny_llama()
    model.generation_config.eos_token_id = None
    policy = LanguagePolicy(model, tokenizer)
    policy.tokenizer.eos_token = None  # every completion has all its tokens
    stamps = [time.perf_counter()]
    settings = {"group_size": group, "prompts_per_step": PROMPTS, "max_tokens": NEW_TOKENS, "optimizer": {"lr": 1e-4}}
    evaluation = {"every": 0, "prompts": 1, "samples": 1}
    trainer = Trainer("grpo@trl", model=policy, task=Task(), steps=steps_of(length), eval=evaluation, **settings)
    trainer._on_row = lambda step, row: stamps.append(
        stamps[-1] + row.get("time/total", 0.0) - row.get("time/eval", 0.0)
    )
    trainer.train()
    return start, [b - a for a, b in itertools.pairwise(stamps[2:])]


def run_trl(length: int, group: int) -> tuple[float, list[float]]:
    """The same by TRL's GRPOTrainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    start = peak()
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS * group, num_generations=group, max_steps=steps_of(length),
            max_completion_length=NEW_TOKENS, temperature=1.0, beta=0.0, learning_rate=1e-4, lr_scheduler_type="constant",
            report_to="none", save_strategy="no", logging_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
            disable_tqdm=True, generation_kwargs={"min_new_tokens": NEW_TOKENS}, shuffle_dataset=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            tiny_llama(),
            reward_funcs=lambda completions, **columns: [reward_of(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts_of(length, PROMPTS * steps_of(length))}),
            processing_class=word_tokenizer(),
            callbacks=[clock(stamps)],
        )
        trainer.train()
    return start, [b - a for a, b in itertools.pairwise(stamps[1:])]


def clock(stamps: list[float]) -> Any:
    """A callback of transformers' trainers that appends the time at which each step begins, and that of the end."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            stamps.append(time.perf_counter())

        def on_train_end(self, *args, **kwargs):
            stamps.append(time.perf_counter())

    return Clock()


def peak() -> float:
    """Peak resident memory of this process so far, MB (Linux; getrusage would keep the peak of the process that started it)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    system, length, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    before, seconds = {"upslope": run_upslope, "trl": run_trl}[system](length, group)
    print(json.dumps({"seconds": seconds, "memory": peak() - before}))
