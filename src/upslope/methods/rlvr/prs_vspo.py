"""PRS + VSPO: a reward that pays stage by stage, and prompts without signal replaced by repeats of those with the most.

    R_i   0 while nothing passes, 0.1 for a completion that parses, 0.2 + 0.8 q for the right format, q its quality    [R]
    v_g   2 p (1 - p) (1 + u_g / largest u), p = mean of q and u = standard deviation of R in the group                [G]
    Z     prompts whose completions all have the same R
    n_g   1 + how often g is drawn, for g outside Z: |Z| draws with replacement, with probability proportional to v    [G]
    w_g   n_g copies, each with the weight min(n_g, 2) / n_g: together min(n_g, 2); 0 in Z                             [G]
    loss  mean over sequences of the mean over tokens of w max(-A r, -A clip(r, 0.8, 1.2)), A is grpo's with R

Differs from grpo:  the staged reward; the weight of prompts; no KL.
Limits:  a batch in which every prompt has rewards that differ is grpo with beta = 0 on R; one in which none has: no
    replacement and no gradient. limit=inf is a batch in which the prompts drawn stand n times.
Expects:  rewards in [0, 1], which are q. stage_from="reward", the default, knows no more: a reward of 0 pays 0, any other
    passed all stages. stage_from="stratum" reads the stage from `stratum`, which the reward function gives beside the
    score: 0 nothing, 1 parses, 2 or more the right format.
Source:  arXiv:2512.07478, of which only the abstract was available: the stages, the measure of value and the smoothing clip
    are a reconstruction, defaults (group of 8, limit 2) included. No public code was found.
Deviations:  drawn prompts reuse their completions, as weights, instead of sampling fresh ones: the budget of a step is
    fixed. Where no prompt outside Z has a completion of some quality, all of them are equally likely. Quality itself (BLEU
    for short answers, a judge for long ones, in the abstract) is the task's.
Not this:  dapo's dynamic sampling, which draws new prompts. A learned value function: the value is a statistic of the
    group.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.hashing import uniform_of
from upslope.recipe import Part, Recipe, State
from upslope.registry import method

PARSES, FORMAT = 0.1, 0.2
"""What a completion earns for being parseable, and for the right format, which includes the former."""


@dataclass(frozen=True)
class StagedReward(Part):
    """R [R], as above. Raises UsageError for rewards outside [0, 1]."""

    stage_from: Literal["reward", "stratum"] = "reward"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `stratum` where that gives the stage."""
        return frozenset({"reward", "stratum"} if self.stage_from == "stratum" else {"reward"})

    def describe(self) -> str:
        parses = f", {PARSES:g} if it parses" if self.stage_from == "stratum" else ""
        passed = "right format" if self.stage_from == "stratum" else "reward > 0"
        return f"[{FORMAT:g} + {1 - FORMAT:g} reward if {passed}{parses}, else 0]"

    def __call__(self, batch: Batch) -> Tensor:
        quality = batch.reward_within(0.0, 1.0, part=self)
        stage = batch.stratum if self.stage_from == "stratum" else 2 * (quality > 0)
        early = torch.where(stage == 1, PARSES, torch.zeros_like(quality))
        return torch.where(stage >= 2, FORMAT + (1 - FORMAT) * quality, early)


@dataclass(frozen=True)
class ValueReplacement(Part):
    """w per row [R, 1], as above. `limit` bounds what the copies of a prompt weigh together.

    The draw depends on prompts and step only. Raises UsageError for rewards outside [0, 1] or a limit below 1.
    """

    limit: float = 2.0
    stateful: ClassVar[bool] = True
    formula: ClassVar[str] = "min(copies of the prompt, {limit:g})"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "prompt_key", "trajectory"})

    def __post_init__(self) -> None:
        if not self.limit >= 1:
            raise UsageError(
                f"{self}: a prompt that was drawn weighs as much as one that was not, or more: limit >= 1."
            )

    def init(self) -> State:
        return {"step": 0}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        weight = self.copies(batch, state["step"]).clamp(max=self.limit)
        return weight[batch.group].unsqueeze(1), {"step": state["step"] + 1}

    def copies(self, batch: Batch, step: int) -> Tensor:
        """n [G] float: 0 for prompts that are replaced, 1 and more for the others; all 1 where none can take their place."""
        value, low, present = prompt_values(batch)
        kept = present & ~low
        if not kept.any():
            return torch.ones_like(value)
        likely = (value * kept if (value * kept).any() else kept).double()
        key, first = _of_groups(batch, batch.prompt_key), _of_groups(batch, batch.trajectory)
        luck = uniform_of(key[low, None], first[low, None], key, first, step)
        # The earliest of independent exponential times with rates v is g with probability v_g / sum of v, in any order.
        drawn = torch.where(likely > 0, -torch.log1p(-luck) / likely, torch.inf).argmin(1)
        return kept + torch.bincount(drawn, minlength=len(value)).to(value.dtype)


def prompt_values(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """v, which prompts are in Z, and which have a valid completion at all; each [G]. Rewards are those of StagedReward."""
    reward = batch.reward_within(0.0, 1.0, part=ValueReplacement())
    mean, count = batch.group_mean(reward)
    variance = batch.group_mean((reward - mean[batch.group]) ** 2)[0]
    right = batch.group_mean(((reward - FORMAT) / (1 - FORMAT)).clamp(min=0.0))[0]
    present, low = count > 0, (variance <= 1e-12) & (count > 0)
    spread = variance.sqrt()
    value = 2 * right * (1 - right) * (1 + spread / spread.max().clamp(min=1e-12))
    return value, low, present


def _of_groups(batch: Batch, identity: Tensor) -> Tensor:
    """The lowest of a group's valid rows, [G]."""
    made = identity.new_zeros(int(batch.group.max()) + 1)
    return made.scatter_reduce(0, batch.group[batch.valid], identity[batch.valid], "amin", include_self=False)


@method(
    paper="2512.07478",
    title="Enhancing Agentic RL with Progressive Reward Shaping and Value-based Sampling Policy Optimization",
    parent="grpo",
)
def prs_vspo() -> Recipe:
    return grpo().replace(reward=StagedReward(), weight=ValueReplacement(), regularizer=None)
