"""Sets of trajectories that share a score: polychromic objectives (arXiv:2509.25424)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.hashing import uniform_of
from upslope.parts.surrogate import check_interval, clip_loss, clip_stats, token_ratio
from upslope.recipe import Part, State, Stats


@dataclass(frozen=True)
class SetAdvantage(Part):
    """N / (M n) times the sum of the set advantages A_j of every completion, [R], and of the positive and the negative ones.

    `sets` is M, `size` n. The draw depends on prompt, trajectory and step only. Raises UsageError for rewards outside [0, 1].
    """

    sets: int = 4
    size: int = 4
    stateful: ClassVar[bool] = True
    formula: ClassVar[str] = (
        "sum over {sets} random sets of {size} completions of (mean reward * diversity - mean over sets)"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "answer", "prompt_key", "trajectory"})
    makes: ClassVar[frozenset[str]] = frozenset({"advantage", "set_gains", "set_losses"})

    def __post_init__(self) -> None:
        if self.sets < 1 or self.size < 1:
            raise UsageError(f"{self}: both must be at least 1, e.g. sets=4, size=4.")

    def init(self) -> State:
        return {"step": 0}

    def __call__(self, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        batch.reward_within(0.0, 1.0, part=self)
        members = torch.stack([self.draw(batch, state["step"], j) for j in range(self.sets)])
        scores = torch.stack([set_scores(batch, chosen) for chosen in members])
        advantage = (scores - scores.mean(0))[:, batch.group] * members
        count = batch.group_mean(batch.reward)[1][batch.group]
        pairs = self.sets * count.clamp(max=self.size)
        gains, losses = (
            part.sum(0) * count / pairs.clamp(min=1) for part in (advantage.clamp(min=0), advantage.clamp(max=0))
        )
        return {"advantage": gains + losses, "set_gains": gains, "set_losses": losses}, {"step": state["step"] + 1}

    def draw(self, batch: Batch, step: int, index: int) -> Tensor:
        """The valid rows [R] bool of a random set of `size` per group (all of a smaller group)."""
        luck = uniform_of(batch.prompt_key, batch.trajectory, step, index).masked_fill(~batch.valid, 2.0)
        order = luck.argsort()
        order = order[batch.group[order].argsort(stable=True)]
        first = torch.searchsorted(batch.group[order].contiguous(), batch.group.contiguous())
        rank = order.argsort() - first
        return (rank < self.size) & batch.valid


def set_scores(batch: Batch, chosen: Tensor) -> Tensor:
    """f [G] of the set that `chosen` [R] marks in each group: mean reward times the share of distinct answers."""
    group, answer = batch.group[chosen], batch.answer[chosen]
    groups = int(batch.group.max()) + 1
    count = torch.bincount(group, minlength=groups)
    total = batch.reward.new_zeros(groups).index_add_(0, group, batch.reward[chosen])
    pairs = torch.unique(torch.stack([group, answer], 1), dim=0)
    distinct = torch.bincount(pairs[:, 0], minlength=groups)
    distinct = torch.where((distinct == 1) & (count > 1), 0, distinct)
    return total * distinct / count.clamp(min=1) ** 2


@dataclass(frozen=True)
class ClippedRatioPerSet(Part):
    """The sum over the sets of a completion of PPO's clip [R, T], by the sums of its positive and of its negative advantages.

    The clip is positively homogeneous in the advantage, so sets on the same side of 0 add up.
    """

    ratio_low: float = 0.8
    ratio_high: float = 1.2
    needs: ClassVar[frozenset[str]] = frozenset({"set_gains", "set_losses", "old_logp"})

    def __post_init__(self) -> None:
        check_interval(self, self.ratio_low, self.ratio_high, around=1.0)

    def describe(self) -> str:
        return f"sum over sets of max(-A r, -A clip(r, {self.ratio_low:g}, {self.ratio_high:g}))"

    def __call__(self, batch: Batch) -> Tensor:
        ratio = token_ratio(batch)
        sides = (batch.set_gains.unsqueeze(1), batch.set_losses.unsqueeze(1))
        return sum((clip_loss(side, ratio, self.ratio_low, self.ratio_high) for side in sides), torch.zeros_like(ratio))

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(
            batch.set_gains.unsqueeze(1) + batch.set_losses.unsqueeze(1),
            token_ratio(batch),
            self.ratio_low,
            self.ratio_high,
        )
