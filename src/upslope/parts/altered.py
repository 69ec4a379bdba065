"""Completions after other prompts than their own.

With a part of the prompt hidden, for the column `masked_logp`: how much of a completion's probability is owed to the prompt.
After another one's prompt, for `mismatched_logp`: how probable the policy makes such completions whatever was asked.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from upslope.errors import UsageError
from upslope.recipe import Part, Recipe
from upslope.rollout import Rollouts


def blanked(ids: Sequence[int], blank: int, probability: float, generator: torch.Generator) -> list[int]:
    """The prompt's token ids, each replaced by `blank` with the given probability, independently of the others."""
    hidden = torch.rand(len(ids), generator=generator) < probability
    return [blank if gone else token for token, gone in zip(ids, hidden.tolist(), strict=True)]


def altered_prompts(recipe: Recipe, rollouts: Rollouts, tokenizer: Any, generator: torch.Generator) -> Rollouts:
    """The same completions after the prompts as the recipe's part alters them."""
    (part,) = [part for _, part in recipe.stages() if type(part).alter_prompt is not Part.alter_prompt]
    blank = next(token for token in (tokenizer.unk_token_id, tokenizer.pad_token_id, 0) if token is not None)
    return replace(rollouts, prompts=[part.alter_prompt(ids, blank, generator) for ids in rollouts.prompts])


def mismatched(rollouts: Rollouts, context_length: int) -> Rollouts:
    """The same completions, each after the next prompt among the rows that is not its own; after the last comes the first.

    Of a prompt that would not fit before the longest completion, the beginning is left out. Raises UsageError where all
    rows have the same prompt.
    """
    of_row = [tuple(rollouts.prompts[index]) for index in rollouts.prompt.tolist()]
    distinct = list(dict.fromkeys(of_row))
    if len(distinct) < 2:
        raise UsageError(
            f"all {len(of_row)} completions of this step (or of the evaluation) answer the same prompt, and the method needs them "
            "after each other's. Set prompts_per_step (or eval.prompts) to 2 or more."
        )
    following = {ids: (place + 1) % len(distinct) for place, ids in enumerate(distinct)}
    room = context_length - int(rollouts.length.max())
    prompts = [list(ids[-room:]) for ids in distinct]
    return replace(rollouts, prompts=prompts, prompt=torch.tensor([following[ids] for ids in of_row]))
