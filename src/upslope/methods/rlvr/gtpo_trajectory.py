"""GTPO (trajectory-based): tokens that good and bad completions share are only ever reinforced; uncertain ones are left out.

    a_i   R_i - mean of group                                                                              [R]
    H_i   mean over the completion's tokens of the sampling policy's entropy, constant                     [R]
    A_i   a_i - 0.1 H_i; 0 where H_i > ln 2, if the policy's mean H was at most ln 2 at the first step      [R]
    w     2 for a conflict token where a > 0, 0 for one where a < 0, 1 elsewhere                           [R, T]
    loss  mean over sequences of the mean over tokens of -w A logp
    A conflict token stands at the same position, from the start or from the end, in a completion with a > 0 and in one with
    a < 0 of its group; and so do all tokens before it, or after it.

Differs from reinforce:  the group's mean as baseline, the entropy's penalty and limit; the weight; the mean over tokens.
Limits:  a penalty of 0, no limit and no shared beginning or end is reinforce with the group's mean and a mean over tokens.
    Tokens that a whole group begins or ends with are never pushed down, if the penalty is 0.
Expects:  two or more completions per prompt, one update per batch of rollouts: there is no ratio, clip or reference. Groups of
    equal rewards have a gradient, the penalty's. The engine records the entropy while it samples: no extra pass.
Source:  Simoni et al. 2025 (arXiv:2508.03772) and the authors' code (winstonsmith1897/GTPO).
Deviations:  the loss's value is -w A logp, not the paper's -w A r with r = exp(logp - [logp]); the gradient is the same. The
    code (@released) multiplies both runs' weights, so that a token in both gets 4; its limit is 0.7 from the start; and it
    divides a completion's weights by its number of conflict tokens, which the paper does not.
Not this:  the GTPO of arXiv:2508.04349 weights rewards by the entropy of the tokens.
Claim:  stability without a reference: as grpo in the study "length" (5 seeds, spell_backward), -0.005 [-0.017, +0.005]. A
    required format, which its weights protect, is not part of that task.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import SequenceMean
from upslope.recipe import Part, Recipe, State
from upslope.registry import method, preset


@dataclass(frozen=True)
class EntropyFiltered(Part):
    """A [R], as above. The state holds the mean of H at the first step, which `judge="start"` compares with `limit`."""

    penalty: float = 0.1
    limit: float | None = math.log(2)
    judge: Literal["start", "always"] = "start"
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "entropy"})

    def init(self) -> State:
        return {"steps": 0, "first_entropy": 0.0}

    def describe(self) -> str:
        shaped = f"reward - mean of the group - {self.penalty:g} * H, H the mean entropy of the completion"
        if self.limit is None:
            return shaped
        start = ", if H was lower at the start" if self.judge == "start" else ""
        return f"{shaped}; 0 where H > {self.limit:.3g}{start}"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        entropy = batch.entropy.sum(1) / batch.length.clamp(min=1)
        first = float(entropy[batch.trained].mean()) if state["steps"] == 0 else state["first_entropy"]
        advantage = centered(batch) - self.penalty * entropy
        if self.limit is not None and (self.judge == "always" or first <= self.limit):
            advantage = torch.where(entropy > self.limit, 0.0, advantage)
        return advantage, {"steps": state["steps"] + 1, "first_entropy": first}


@dataclass(frozen=True)
class ConflictWeight(Part):
    """w [R, T], as above. `both="product"` multiplies the weights of the two runs; `per_conflict` divides by their number."""

    amplify: float = 2.0
    both: Literal["once", "product"] = "once"
    per_conflict: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "tokens"})

    def describe(self) -> str:
        return f"{self.amplify:g} (0 where the reward is below its group's mean) for tokens in conflict, else 1"

    def __call__(self, batch: Batch) -> Tensor:
        difference = torch.where(batch.trained, centered(batch), 0.0)
        sign = torch.where(
            difference.abs() > 1e-6 * difference.abs().max(), difference.sign(), 0.0
        )  # a mean is rounded
        runs = [shared_run(batch, sign, backwards=flip) for flip in (False, True)]
        times = runs[0].to(batch.dtype) + runs[1]
        power = times if self.both == "product" else times.clamp(max=1)
        side = torch.where(sign > 0, self.amplify, 0.0).to(batch.dtype).unsqueeze(1)
        weight = torch.where(times > 0, side**power, 1.0)
        return weight / (times > 0).sum(1, keepdim=True).clamp(min=1) if self.per_conflict else weight


def centered(batch: Batch) -> Tensor:
    """R minus the mean of its group, [R]."""
    return GroupBaseline(scale=None)(batch)


def shared_run(batch: Batch, sign: Tensor, *, backwards: bool) -> Tensor:
    """Tokens in the unbroken run from a completion's first (or last) trained token in which each is in conflict, bool [R, T].

    In conflict: the same token at the same distance in two completions of the group with sign +1 and -1.
    """
    mask, tokens = (column.flip(1) if backwards else column for column in (batch.mask, batch.tokens))
    place = mask.cumsum(1) - 1
    compared = mask & (sign != 0).unsqueeze(1)
    rows = compared.nonzero(as_tuple=True)[0]
    spot = batch.group[rows] * mask.shape[1] + place[compared]
    _, kind = (spot * (tokens.max() + 1) + tokens[compared]).unique(return_inverse=True)
    seen = torch.zeros(2, len(rows), dtype=torch.bool)
    seen[(sign[rows] > 0).long(), kind] = True
    conflict = torch.zeros_like(mask)
    conflict[compared] = seen.all(0)[kind]
    run = (conflict | ~mask).long().cumprod(1).bool() & mask
    return run.flip(1) if backwards else run


@method(
    paper="2508.03772",
    title="GTPO: Trajectory-Based Policy Optimization in Large Language Models",
    parent="reinforce",
)
def gtpo_trajectory() -> Recipe:
    return reinforce().replace(advantage=EntropyFiltered(), weight=ConflictWeight(), aggregate=SequenceMean())


@preset("released", version="4a235204439827149ae3185fbca54e7abb826e06")
def gtpo_trajectory_released() -> Recipe:
    return gtpo_trajectory().replace(
        advantage=EntropyFiltered(limit=0.7, judge="always"), weight=ConflictWeight(both="product", per_conflict=True)
    )
