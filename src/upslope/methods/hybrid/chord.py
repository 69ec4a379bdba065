"""CHORD: group-relative policy optimization and an expert's likelihood in one loss, whose balance follows a schedule.

    s     steps done;  mu = peak s / warmup up to `warmup` steps, then a half cosine from peak to valley over `decay` steps,
          then valley
    A_i   (R_i - mean) / (deviation + eps) among the policy's rows of the group                            [R]
    loss  (1 - mu) times the mean over the policy's tokens of max(-A r, -A clip(r, 0.8, 1.2))
          + mu times the mean over the expert's tokens of -w logp
    w     1, or (chord@phi) sg[p (1 - p)], p = exp(logp)                                                   [R, T]

Differs from grpo:  an expert row per group, in no baseline; its likelihood; the schedule; token means; no KL.
Limits:  mu = 0 is grpo with a token mean and without KL, mu = 1 sft, on the expert's rows. With w = sg[p]
    (weighting="probability") the expert's part is dft.
Expects:  an expert's completion per prompt: the task's reference answer, or the column that rollout.reference_column
    names; it need not please the verifier. group_size=9 are 8 of the policy and 1 of the expert, whose rows take one more
    forward pass. decay counts steps of the run: 200 is theirs.
Source:  Zhang et al. 2025 (arXiv:2508.11408); Trinity-RFT (chord_policy_loss.py). mu: peak 0.9, valley 0.05, no warm-up,
    200 steps. phi: mu = 0.1 throughout. lr 1e-6, 32 prompts, 64 expert completions.
Deviations:  the expert's completions are those of the step's prompts; theirs are drawn from a set of their own, twice as
    many as prompts.
Not this:  hpt, which decides by prompt.
Claim:  better than one after the other: 0.526 [0.512, 0.538] in the study "demonstrations" (5 seeds, 200 demonstrations and
    a verifier), where sft, then grpo has 0.489 [0.471, 0.505], sft alone 0.521 and grpo 0.410; chord@phi 0.472 [0.453,
    0.479].
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.parts.expert import ExpertRows, MixedBaseline, PolicyRows, is_expert
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.sampling import Sample
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method, preset


@dataclass(frozen=True)
class ExpertShare(Part):
    """A weight [R, T]: mu of the batch's `step` for the expert's rows, 1 - mu for the policy's."""

    peak: float = 0.9
    valley: float = 0.05
    warmup: int = 0
    decay: int = 200
    needs: ClassVar[frozenset[str]] = frozenset({"source"})

    def __post_init__(self) -> None:
        if not (0 <= self.peak <= 1 and 0 <= self.valley <= 1) or min(self.warmup, self.decay) < 0:
            raise UsageError(
                f"ExpertShare(peak={self.peak:g}, valley={self.valley:g}, warmup={self.warmup}, decay={self.decay}): peak and "
                "valley are shares from 0 to 1, warmup and decay numbers of steps."
            )

    def describe(self) -> str:
        return (
            f"mu for the expert, 1 - mu for the policy; mu from {self.peak:g} to {self.valley:g} in {self.decay} steps"
            + (f", after {self.warmup} from 0" if self.warmup else "")
        )

    def __call__(self, batch: Batch) -> Tensor:
        mu = self.share(batch.step)
        return torch.where(is_expert(batch), mu, 1 - mu).to(batch.dtype).unsqueeze(1)

    def share(self, step: Tensor) -> Tensor:
        """mu [R] at `step` [R], counted from 1."""
        done = (step - 1).double()
        rising = self.peak * done / max(self.warmup, 1)
        after = (done - self.warmup) / self.decay if self.decay else torch.ones_like(done)
        falling = self.valley + (self.peak - self.valley) * (1 + (math.pi * after.clamp(max=1.0)).cos()) / 2
        return torch.where(done < self.warmup, rising, falling)

    def stats(self, batch: Batch) -> Stats:
        return {"chord/mu": self.share(batch.step).to(batch.dtype)}


@method(
    paper="2508.11408",
    title="On-Policy RL Meets Off-Policy Experts: Harmonizing SFT and RL via Dynamic Weighting",
    parent="grpo",
)
def chord() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=9, reference_rows=1),
        advantage=MixedBaseline(among="policy"),
        weight=ExpertShare(peak=0.9, valley=0.05, warmup=0, decay=200),
        rows=PolicyRows(),
        regularizer=None,
        aggregate=TokenMean(),
        terms=(Term(NegativeLogLikelihood(), TokenMean(), rows=ExpertRows(), weighted=True),),
    )


@preset("phi", version="2508.11408")
def chord_phi() -> Recipe:
    likelihood = NegativeLogLikelihood(weighting="uncertainty")
    return chord().replace(
        weight=ExpertShare(peak=0.1, valley=0.1),
        terms=(Term(likelihood, TokenMean(), rows=ExpertRows(), weighted=True),),
    )
