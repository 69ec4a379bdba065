"""DNO: each step a DPO against the policy that sampled it, on pairs of its completions that a judge tells far apart.

    y_w, y_l  completions of a prompt, the reference answer among them, with r(y_w) >= good, and r(y_l) lower by gap, or by
              own_gap where y_w is the policy's own
    z         eta * (s_w - s_l), s = sum over tokens of logp - old_logp             [pairs]
    loss      mean over a prompt's pairs of log(1 + exp(-z)), then over prompts

Differs from dpo:  the reference is the last iterate; completions are sampled, and the task's answer is one of them; only pairs
    with a large margin.
Limits:  with all pairs it is dpo whose reference is the policy at the start of the step. While the policy has not moved every
    pair costs log 2. `dno@conceptual`: soft labels sigma(r_t(y) - r_t(y')) of win rates r_t; a pair ends at z = r_t(y) - r_t(y').
Expects:  rewards of 0 to 1 in grades, since the gaps are differences of them, and tasks with a reference answer (otherwise
    rollout.reference_rows=0). A step is one iteration: large batches, update.minibatches steps of the optimizer on each. One
    forward pass over the reference answers; no frozen model.
Source:  Rosset et al. 2024 (arXiv:2404.03715), algorithm 2 (DNO-Prct) and algorithm 1 (`dno@conceptual`). There is no public code.
    K = 5 at temperature 0.7 with the answer of a stronger model; scores of 1 to 6, positives from 5, gaps of 2 and 1: here the
    same on a scale of 0 to 1; eta = 0.1.
Deviations:  pairs of earlier iterations are not mixed in (30 % and 15 % in the paper); top-p is the run's; the best iterate is not
    chosen by itself (`upslope eval` of the checkpoints). Preferences come from rewards of single completions, so they are
    transitive: an oracle that compares two completions is not there. Four mini-batches are our choice.
Not this:  inpo keeps a share of the first reference. dpo with pairs="reward" has a frozen reference and takes every pair.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import SOURCES, Batch
from upslope.methods.preference.dpo import dpo
from upslope.parts.iterate import IterateReference
from upslope.parts.preference import Pairs, PreferenceLoss
from upslope.parts.sampling import Sample, Update
from upslope.recipe import Part, Recipe
from upslope.registry import method, preset

POLICY = SOURCES.index("policy")
ROUNDING = 1e-6  # rewards are float32: 1 - 0.8 is not 0.2


@dataclass(frozen=True)
class LargeMarginLoss(PreferenceLoss):
    """A PreferenceLoss over the pairs that are far enough apart, as above; the others are in no pair."""

    good: float = 0.8
    gap: float = 0.4
    own_gap: float = 0.2

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads source besides: who wrote the better completion."""
        return super().needs | {"reward", "source"}

    def describe(self) -> str:
        gaps = f"{self.gap:g} ({self.own_gap:g} where the policy wrote y_w)"
        return f"{super().describe()}; r_w >= {self.good:g}, r_w - r_l >= {gaps}"

    def _gaps(self, batch: Batch) -> tuple[Pairs, Tensor]:
        pairs, gap = super()._gaps(batch)
        better = batch.reward[pairs.winner]
        least = torch.where(batch.source[pairs.winner] == POLICY, self.own_gap, self.gap)
        far = (better >= self.good - ROUNDING) & (better - batch.reward[pairs.loser] >= least - ROUNDING)
        winner, loser = pairs.winner[far], pairs.loser[far]
        count = torch.zeros_like(batch.reward).index_add(0, batch.group[winner], torch.ones_like(batch.reward[winner]))
        return Pairs(winner, loser, pairs.certainty[far], 1 / count[batch.group[winner]]), gap[far]


@dataclass(frozen=True)
class WinRate(Part):
    """The reward of a completion [R]: the share of its prompt's other completions that it beats, ties by half."""

    formula: ClassVar[str] = "share of the group that the completion beats"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})

    def __call__(self, batch: Batch) -> Tensor:
        fit = batch.trained & batch.valid
        mates = (batch.group.unsqueeze(1) == batch.group) & fit.unsqueeze(1) & fit
        mates = mates & ~torch.eye(len(batch), dtype=torch.bool, device=mates.device)
        beats = (batch.reward.unsqueeze(1) > batch.reward) + 0.5 * (batch.reward.unsqueeze(1) == batch.reward)
        return (torch.where(mates, beats, 0.0).sum(1) / mates.sum(1).clamp(min=1)).to(batch.reward.dtype)


@method(
    paper="2404.03715",
    title="Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences",
    parent="dpo",
)
def dno() -> Recipe:
    return dpo().replace(
        rollout=Sample(group_size=6, temperature=0.7, reference_rows=1),
        control=IterateReference(),
        surrogate=LargeMarginLoss(beta=0.1, pairs="reward"),
        update=Update(minibatches=4),
    )


@preset("conceptual", version="algorithm 1")
def dno_conceptual() -> Recipe:
    return dno().replace(
        rollout=Sample(group_size=6),
        reward=WinRate(),
        surrogate=PreferenceLoss(beta=0.1, pairs="reward", reward_scale=1.0),
    )
