"""The task's reference answers as completions, as the policy would have written them."""

from collections.abc import Sequence
from typing import Any

import torch

from upslope.errors import UsageError
from upslope.rollout import Example, Finish, Rollouts
from upslope.tasks.files import prompt_text


def reference_text(judge: Any, example: Example, column: str = "") -> str:
    """The reference answer of an example: its `column`, or with "" the task's judge's, or else its column `answer`.

    Raises UsageError without one.
    """
    find = getattr(judge, "reference", None) if not column else None
    value = find(example) if find is not None else None
    value = example.data.get(column or "answer") if value is None else value
    if value is None:
        remedy = f"a column '{column}'" if column else "an answer, name a column (rollout.reference_column)"
        raise UsageError(
            "the method puts the reference answer among the completions (rollout.reference_rows), but the prompt that begins "
            f"{prompt_text(example.prompt)[:60]!r} has none; its columns: {', '.join(example.data) or 'none'}. Give the data "
            f"{remedy}, or set reference_rows=0."
        )
    return str(value)


def reference_rollouts(
    tokenizer: Any, prompts: Sequence[Sequence[int]], texts: Sequence[str], copies: int, max_tokens: int
) -> Rollouts:
    """`copies` rows per prompt of its text, with the end token, cut to `max_tokens`; log-probs 0, to be filled in."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts]
    rows = [ids[:max_tokens] for ids in whole for _ in range(copies)]
    cut = [len(ids) > max_tokens for ids in whole for _ in range(copies)]
    finish: list[Finish] = ["length" if short else "stop" for short in cut]
    said = [text for text in texts for _ in range(copies)]
    text = [
        tokenizer.decode(ids, skip_special_tokens=True) if short else whole_text
        for ids, short, whole_text in zip(rows, cut, said, strict=True)
    ]
    prompt = torch.arange(len(prompts)).repeat_interleave(copies)
    return Rollouts.given(prompts, prompt, rows, finish, text)
