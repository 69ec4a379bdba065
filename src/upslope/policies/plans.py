"""Micro-batches by the tokens that they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.policies.tree import Ints
from upslope.recipe import Observation
from upslope.rollout import Rollouts


@dataclass
class _Share:
    """Rows of one prompt. On trees it costs the prompt once and the responses; padded, `rows * width`."""

    prompt: int
    rows: list[int] = field(default_factory=list)
    response: int = 0
    width: int = 0

    def cost(self, packed: bool) -> int:
        return self.prompt + self.response if packed else len(self.rows) * self.width

    def add(self, row: int, response: int) -> None:
        self.rows.append(row)
        self.response += response
        self.width = max(self.width, self.prompt + response)


@torch.no_grad()
def score_in_passes(
    policy: Any,
    rollouts: Rollouts,
    needs: frozenset[str],
    *,
    tokens_per_pass: int,
    observe: Mapping[str, Observation] | None = None,
) -> dict[str, Tensor]:
    """The columns that `policy.score` gives of all rows, on the CPU, by one forward pass over each of the plan's parts."""
    rows = list(policy.plan(rollouts, tokens_per_pass=tokens_per_pass))
    parts = [policy.score(rollouts, needs, rows=part, observe=observe) for part in rows]
    order = torch.cat(rows).argsort()
    return {name: torch.cat([part[name].cpu() for part in parts])[order] for name in parts[0]}


def plan(
    rollouts: Rollouts,
    *,
    tokens_per_pass: int,
    keep_groups: bool = False,
    rows: Tensor | None = None,
    packing: Literal["tree", "padded"] = "tree",
) -> list[Tensor]:
    """Split rows into micro-batches of at most `tokens_per_pass` token passes each; see `LanguagePolicy.plan`.

    The most expensive come first, so that a lack of memory shows at once. The same input gives the same plan. What
    responses or different prompts share is not counted: a pass may cost less than its plan says, never more.

    Raises:
        UsageError: `tokens_per_pass` is not positive.
    """
    if tokens_per_pass < 1:
        raise UsageError(f"tokens_per_pass is {tokens_per_pass}: give the number of tokens that one pass may hold.")
    packed = packing == "tree"
    shares = []
    for whole in _groups(rollouts, rows):
        fits = keep_groups or whole.cost(packed) <= tokens_per_pass
        shares += [whole] if fits else _split(whole, rollouts.length.cpu().numpy(), tokens_per_pass, packed)
    batches = _first_fit(shares, tokens_per_pass) if packed else _by_width(shares, tokens_per_pass)
    return [torch.tensor(sorted(batch), dtype=torch.int64) for batch in batches]


def _groups(rollouts: Rollouts, rows: Tensor | None) -> list[_Share]:
    chosen = range(len(rollouts)) if rows is None else rows.tolist()
    prompt, length = rollouts.prompt.tolist(), rollouts.length.tolist()
    groups: dict[int, _Share] = {}
    for row in chosen:
        group = groups.setdefault(prompt[row], _Share(len(rollouts.prompts[prompt[row]])))
        group.add(row, length[row])
    return list(groups.values())


def _split(whole: _Share, length: Ints, budget: int, packed: bool) -> list[_Share]:
    """Parts of one prompt's rows, of similar length each, that fit the budget one by one, or are single rows."""
    parts = [_Share(whole.prompt)]
    for row in sorted(whole.rows, key=lambda row: (-length[row], row)):
        response = int(length[row])
        last = parts[-1]
        width = max(last.width, last.prompt + response)
        grown = last.cost(True) + response if packed else (len(last.rows) + 1) * width
        if last.rows and grown > budget:
            parts.append(last := _Share(whole.prompt))
        last.add(row, response)
    return parts


def _first_fit(shares: list[_Share], budget: int) -> list[list[int]]:
    """The largest first, each into the first micro-batch that has room for it."""
    batches: list[list[int]] = []
    room = np.zeros(len(shares), dtype=np.int64)
    for share in sorted(shares, key=lambda share: (-share.cost(True), share.rows)):
        cost = share.cost(True)
        fitting = np.flatnonzero(room[: len(batches)] >= cost)
        if len(fitting):
            batches[fitting[0]] += share.rows
            room[fitting[0]] -= cost
        else:
            room[len(batches)] = budget - cost
            batches.append(list(share.rows))
    return batches


def _by_width(shares: list[_Share], budget: int) -> list[list[int]]:
    """The widest first, next to others nearly as wide, as padding makes all rows as wide as the first."""
    batches: list[list[int]] = []
    width = 0
    for share in sorted(shares, key=lambda share: (-share.width, share.rows)):
        if batches and (len(batches[-1]) + len(share.rows)) * width <= budget:
            batches[-1] += share.rows
        else:
            width = share.width
            batches.append(list(share.rows))
    return batches
