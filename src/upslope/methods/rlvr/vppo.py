"""VPPO: DAPO on the tokens that depend most on what the prompt shows, and more of it where a whole completion does.

    S     exp(u) - u - 1, u = masked_logp - old_logp, at most 10                                           [R, T]
    n_i   (mean of S over tokens - lowest) / (highest - lowest), among the completions of the mini-batch   [R]
    a_i   0.9 + (b - 0.9) n_i, with b = 0.9 + 0.1 / (mean of n), so that the mean of a is 1                [R]
    m     1 on the ceil(0.4 length) tokens of a completion with the highest S, else 0                      [R, T]
    loss  mean over the batch's tokens, with m = 0 too, of a m max(-A r, -A clip(r, 0.8, 1.28)) - 0.06 logp; dual clip at 3

Differs from dapo:  the weights a and m; dual clip; the term in logp; no length penalty; groups of 8, 3 updates per step.
Limits:  scale_min=1 and share=1 leave a = m = 1, dapo's surrogate. Where hiding changes nothing (S = 0), a = 1, and the
    first tokens of each completion are kept, since all tie.
Expects:  prompts whose details matter. Beside the forward and backward pass of learning it costs a forward pass per step
    under the altered prompt, and one more for each mini-batch that does not fit into one pass, since n needs all of it.
Source:  arXiv:2510.09285; the authors' code (huaixuheqing/VPPO-RL, dp_actor.py), settings for 7B. For 8B: penalty 0.12.
Deviations:  this is the text form: the paper blackens patches of an image with probability 0.5, here each token of the
    prompt (its template included) is blanked with that probability. In their code the lowest and highest are those of a
    device's share of the mini-batch and the mean of n that of a micro-batch. They train on groups with accuracy within 0.01
    and 0.99: with rewards of 0 and 1 that is dapo's dynamic sampling.
Not this:  an entropy penalty. At r = 1 the term in logp has no gradient in expectation, so it acts through reuse and noise
    only. q_hawkeye puts the divergence into the loss; here it only weighs, and S is taken before the update.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.dapo import dapo
from upslope.parts.altered import blanked
from upslope.parts.kl import kl_estimate
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class PromptDependence(Part):
    """The weight a m [R, T], as above. `hide` is the probability with which each token of the prompt is blanked.

    Rows without a trained token do not count. Raises UsageError unless the settings lie in [0, 1] and share is not 0.
    """

    share: float = 0.4
    scale_min: float = 0.9
    highest: float = 10.0
    hide: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "masked_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 <= self.scale_min <= 1 and 0 <= self.hide <= 1):
            raise UsageError(
                f"{self}: share must be in (0, 1], scale_min and hide in [0, 1], e.g. share=0.4, scale_min=0.9, hide=0.5."
            )

    def describe(self) -> str:
        return (
            f"weight of a completion from {self.scale_min:g} up by its dependence on the prompt, mean 1; "
            f"the {self.share:.0%} of its tokens that depend most"
        )

    def alter_prompt(self, ids: Sequence[int], blank: int, generator: torch.Generator) -> list[int]:
        return blanked(ids, blank, self.hide, generator)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        dependence = self._dependence(batch)
        scale = self._scale(dependence.sum(1) / batch.length.clamp(min=1), batch.trained)
        return {"weight": batch.weight * scale.unsqueeze(1) * self._keep(dependence, batch.mask)}

    def stats(self, batch: Batch) -> Stats:
        return {"prompt_dependence": self._dependence(batch)}

    def _dependence(self, batch: Batch) -> Tensor:
        return kl_estimate(batch.old_logp, batch.masked_logp, "k3").clamp(0.0, self.highest)

    def _scale(self, score: Tensor, trained: Tensor) -> Tensor:
        """a [R]; 1 throughout where the scores do not differ."""
        spread = score[trained].max() - score[trained].min()
        if spread <= 1e-6:
            return torch.ones_like(score)
        normalized = (score - score[trained].min()) / spread
        return self.scale_min + (1 - self.scale_min) * normalized / normalized[trained].mean()

    def _keep(self, dependence: Tensor, mask: Tensor) -> Tensor:
        """m [R, T] bool; of equal tokens the earlier."""
        order = torch.where(mask, dependence, -1.0).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        count = torch.tensor([math.ceil(self.share * n - 1e-9) for n in mask.sum(1).tolist()], device=mask.device)
        return (rank < count.unsqueeze(1)) & mask


@dataclass(frozen=True)
class LogProbTerm(Part):
    """-coefficient times logp of the sampled tokens [R, T], which the authors call an entropy penalty."""

    coefficient: float = 0.06
    formula: ClassVar[str] = "-{coefficient} logp"

    def __call__(self, batch: Batch) -> Tensor:
        return -self.coefficient * batch.logp


@method(
    paper="2510.09285",
    title="Spotlight on Token Perception for Multimodal Reinforcement Learning",
    parent="dapo",
)
def vppo() -> Recipe:
    return dapo().replace(
        rollout=Sample(group_size=8),
        reward=None,
        control=PromptDependence(),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.28, dual=3.0),
        regularizer=LogProbTerm(),
        update=Update(minibatches=3),
    )
