"""What the finished model does on held-out questions: sampled at temperature 1, and greedily."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import reasoning_gym
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tiny.demonstrators import TASKS, Entry
from tiny.training import entries

QUESTIONS = 256
SAMPLES = 16
MAX_NEW_TOKENS = 32
MEASURING_SEED = 2 * 10**9


@dataclass(frozen=True)
class Measured:
    """One task's numbers; the lengths are in tokens, the end token and the prompt's special tokens included."""

    pass_at_1: float
    pass_at_16: float
    greedy: float
    prompt_mean: float
    prompt_max: int
    answer_max: int


def held_out(task: str, count: int) -> list[Entry]:
    """Distinct held-out instances."""
    found: dict[str, Entry] = {}
    for entry in entries(task, MEASURING_SEED, held_out=True):
        found.setdefault(entry["question"], entry)
        if len(found) == count:
            break
    return list(found.values())


@torch.no_grad()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[str], samples: int, sample: bool
) -> tuple[list[str], int]:
    """`samples` answers to each question, in order, and the length of the longest in tokens."""
    prompts = tokenizer(list(questions), padding=True, return_tensors="pt")
    how: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    tokens = model.generate(**prompts, max_new_tokens=MAX_NEW_TOKENS, num_return_sequences=samples, **how)
    tokens = tokens[:, prompts["input_ids"].shape[1] :]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True), tokens.shape[1]


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: str) -> Measured:
    """Score 16 samples and one greedy answer for each of 256 held-out questions with the task's own verifier."""
    torch.manual_seed(0)
    dataset = reasoning_gym.create_dataset(task, seed=0, size=1, **TASKS[task].settings)
    instances = iter(held_out(task, QUESTIONS))
    sampled, greedy, longest = [], [], 0
    lengths = [len(tokenizer.encode(entry["question"])) for entry in held_out(task, QUESTIONS)]
    while chunk := list(islice(instances, 64)):
        texts = [entry["question"] for entry in chunk]
        answers, length = answer(model, tokenizer, texts, SAMPLES, sample=True)
        longest = max(longest, length)
        for row, text in enumerate(answers):
            sampled.append(dataset.score_answer(text, chunk[row // SAMPLES]) >= 1)
        for entry, text in zip(chunk, answer(model, tokenizer, texts, 1, sample=False)[0], strict=True):
            greedy.append(dataset.score_answer(text, entry) >= 1)
    correct = torch.tensor(sampled, dtype=torch.float32).view(-1, SAMPLES)
    return Measured(
        pass_at_1=float(correct.mean()),
        pass_at_16=float(correct.amax(1).mean()),
        greedy=sum(greedy) / len(greedy),
        prompt_mean=sum(lengths) / len(lengths),
        prompt_max=max(lengths),
        answer_max=longest,
    )
