"""Q-Hawkeye: GRPO that trusts a prompt less where its predictions disagree, and pushes the policy to use what it is shown.

    u_g   min(1, (variance of the group's predictions) / (span^2 / 4)), the variance with n                [G]
    w_i   exp(-0.2 u_g), which multiplies the clipped ratio's loss                                         [R]
    P     gamma(p) (exp(v) - v - 1), v = masked_logp - logp, gamma(p) = 1e-4 (1 + cos(pi p)) / 2           [R, T]
    loss  mean over sequences of the mean over tokens of w max(-A r, -A clip(r, 0.8, 1.2)) + beta k3,
          minus the mean over the batch's tokens of P;  p is the share of the run that is done

Differs from grpo:  the weight w; the perception term P; eps = 1e-4; groups of 4.
Limits:  all predictions alike: w = 1. alpha=0 and gamma=0 is grpo.
Expects:  completions that end in a number, on a scale `span` wide (1 to 5: 4), which the reward function gives as
    `prediction`, beside the score; for a completion without a number, the nearer end of the scale, or its reward fails.
    The authors' reward is exp(-|prediction - truth| / 0.3) + 0.8 if the format is right, less a penalty for repetition; the
    task gives it. P costs a forward pass per step under the altered prompt, beside grpo's forward and backward.
Source:  arXiv:2601.22920; the authors' code (AMAP-ML/Q-Hawkeye, grpo_trainer.py).
Deviations:  the text form: they degrade the image, here each token of the prompt (its template included) is blanked with
    probability 0.5. masked_logp is that of the policy before the update. gamma reaches 0 at the end of the run, theirs
    after 5 epochs: `until` is that share of the run. Their code leaves completions without a number out of the variance and
    moves numbers off the scale to its ends; here the verifier gives a number or fails. Their terms in the sum of logp are
    off there and left out here; the one for the degraded image acts on a constant. beta is grpo's; theirs is a default of
    their code base.
Not this:  a bounded reward for perception: -P has no lower bound and is safe only by its small gamma and the decay. vppo
    puts the same divergence into the weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import TokenMean
from upslope.parts.altered import blanked
from upslope.parts.kl import kl_estimate
from upslope.parts.sampling import Sample
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class AgreementWeight(Part):
    """w per row [R, 1], as above. Raises UsageError unless span is positive."""

    alpha: float = 0.2
    span: float = 4.0
    formula: ClassVar[str] = "exp(-{alpha} min(1, 4 variance of the group's predictions / {span}^2))"
    needs: ClassVar[frozenset[str]] = frozenset({"prediction", "group"})

    def __post_init__(self) -> None:
        if self.span <= 0:
            raise UsageError(f"AgreementWeight(span={self.span:g}): it is the width of the scale, e.g. 4 for 1 to 5.")

    def __call__(self, batch: Batch) -> Tensor:
        prediction = batch.prediction.to(batch.dtype)
        centered = prediction - batch.group_mean(prediction)[0][batch.group]
        variance = batch.group_mean(centered**2)[0][batch.group]
        uncertainty = (4 * variance / self.span**2).clamp(max=1.0)
        return (-self.alpha * uncertainty).exp().unsqueeze(1)


@dataclass(frozen=True)
class Perception(Part):
    """-P per token [R, T], as above. `hide` is the probability with which each token of the prompt is blanked."""

    gamma: float = 1e-4
    until: float = 1.0
    hide: float = 0.5
    formula: ClassVar[str] = "- {gamma} (1 + cos(pi p / {until})) / 2 k3(logp, masked_logp)"
    needs: ClassVar[frozenset[str]] = frozenset({"masked_logp"})

    def __post_init__(self) -> None:
        if not (self.until > 0 and 0 <= self.hide <= 1):
            raise UsageError(f"{self}: until must be positive, hide in [0, 1], e.g. until=1.0, hide=0.5.")

    def alter_prompt(self, ids: Sequence[int], blank: int, generator: torch.Generator) -> list[int]:
        return blanked(ids, blank, self.hide, generator)

    def __call__(self, batch: Batch) -> Tensor:
        done = (batch.progress / self.until).clamp(max=1.0).unsqueeze(1)
        return -self.gamma * (1 + (pi * done).cos()) / 2 * kl_estimate(batch.logp, batch.masked_logp, "k3")

    def stats(self, batch: Batch) -> Stats:
        return {"prompt_dependence": kl_estimate(batch.logp, batch.masked_logp, "k3")}


@method(
    paper="2601.22920",
    title="Q-Hawkeye: Reliable Visual Policy Optimization for Image Quality Assessment",
    parent="grpo",
)
def q_hawkeye() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=4),
        advantage=GroupBaseline(eps=1e-4),
        weight=AgreementWeight(),
        terms=(Term(surrogate=Perception(), aggregate=TokenMean()),),
    )
