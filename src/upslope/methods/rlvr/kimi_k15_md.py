"""Kimi k1.5: policy mirror descent, a squared penalty on the sequence's log-ratio in place of clip and KL.

    R_i   reward_i + lambda_i if correct, + min(0, lambda_i) if not; lambda = 1/2 - (length - shortest) / (longest - shortest)
          of the group, 0 in the first warmup_steps steps and where all lengths are equal                  [R]
    A_i   R_i - mean of group                                                                              [R]
    D_i   sum over tokens of logp - old_logp                                                               [R]
    loss  mean over sequences of -A * (sum over tokens of logp) + tau / 2 * D^2

Differs from reinforce:  the group's mean as baseline; the squared log-ratio of the sequence; the length reward; every step
    is a problem of its own, which the optimizer starts without moments of the steps before.
Limits:  tau = 0 without the length reward is reinforce with the group's mean; so is the first step, where D = 0. The gradient is
    zero where D = A / tau: the fixed point is the mirror step, the old policy times exp(R / tau), but for the mean reward in
    place of tau log Z, which is good for large tau only (the paper's own remark).
Expects:  two or more completions per prompt, several updates per batch of rollouts; correct means a reward over 0.5.
Source:  Kimi Team 2025 (arXiv:2501.12599), section 2.3, eq. 3 and the length reward.
Deviations:  tau, the weight of the length reward and its warm-up are not given: 0.1 (ROLL), 1 and 0. Prompts are drawn uniformly,
    not by their success rate; completions are not resumed in the next step.
Not this:  ROLL's and verl's square per token ("dro"), which lacks the products of different tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean
from upslope.parts.sampling import Sample, Update
from upslope.recipe import Part, Recipe, State, Stats
from upslope.registry import method


@dataclass(frozen=True)
class LengthReward(Part):
    """R [R], as above, with `weight` times lambda. The state counts the steps taken."""

    weight: float = 1.0
    correct_above: float = 0.5
    warmup_steps: int = 0
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})

    def init(self) -> State:
        return {"step": 0}

    def describe(self) -> str:
        later = f" after step {self.warmup_steps}" if self.warmup_steps else ""
        return f"reward + {self.weight:g} * (1/2 - relative length in the group; at most 0 if wrong){later}"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        reward, following = batch.reward, {"step": state["step"] + 1}
        if state["step"] < self.warmup_steps:
            return reward, following
        bonus = 0.5 - relative_length(batch)
        bonus = torch.where(reward > self.correct_above, bonus, bonus.clamp(max=0.0))
        return reward + self.weight * torch.where(self._differ(batch), bonus, 0.0), following

    @staticmethod
    def _differ(batch: Batch) -> Tensor:
        shortest, longest = length_bounds(batch)
        return (longest > shortest)[batch.group]


def length_bounds(batch: Batch) -> tuple[Tensor, Tensor]:
    """Shortest and longest completion of each group, valid rows only, [G] each; (inf, -inf) where there is none."""
    length, valid = batch.length, batch.valid
    start = length.new_full((int(batch.group.max()) + 1,), torch.inf)
    shortest = start.scatter_reduce(0, batch.group, torch.where(valid, length, torch.inf), "amin")
    longest = (-start).scatter_reduce(0, batch.group, torch.where(valid, length, -torch.inf), "amax")
    return shortest, longest


def relative_length(batch: Batch) -> Tensor:
    """0 for the shortest completion of a group, 1 for the longest, [R]; 0 where all are equally long or none is valid."""
    shortest, longest = (bound[batch.group] for bound in length_bounds(batch))
    spread = longest - shortest
    return torch.where(spread > 0, (batch.length - shortest) / spread.clamp(min=1), 0.0)


@dataclass(frozen=True)
class MirrorDescent(Part):
    """-A LP + tau / 2 * D^2 per sequence [R], as above. Raises UsageError where the advantage differs within a sequence."""

    tau: float = 0.1
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp"})

    def describe(self) -> str:
        return f"-A sum(logp) + {self.tau:g}/2 * (sum(logp - old_logp))^2"

    def __call__(self, batch: Batch) -> Tensor:
        moved = (batch.logp - batch.old_logp).sum(1)
        return -batch.per_row("advantage") * batch.logp.sum(1) + self.tau / 2 * moved**2

    def stats(self, batch: Batch) -> Stats:
        return {"ratio/squared_log": (batch.logp - batch.old_logp).sum(1) ** 2}


@method(paper="2501.12599", title="Kimi k1.5: Scaling Reinforcement Learning with LLMs", parent="reinforce")
def kimi_k15_md() -> Recipe:
    return reinforce().replace(
        rollout=Sample(group_size=16),
        reward=LengthReward(),
        advantage=GroupBaseline(scale=None),
        surrogate=MirrorDescent(tau=0.1),
        aggregate=RowMean(),
        update=Update(minibatches=4, fresh_optimizer=True),
    )
