"""KTO: completions labelled good or bad one by one, whose log-ratio is valued like a gain or a loss from a reference point.

    s     sum over the completion's tokens of logp - ref_logp                       [R]
    z0    max(0, mean over rows of the same sum for the completion after another prompt), constant
    loss  mean over rows of  desirable (1 - sigma(beta (s - z0)))     where label = 1
                             undesirable (1 - sigma(beta (z0 - s)))   where label = 0

Differs from dpo:  single labelled completions in place of pairs; the reference point z0; a bounded loss.
Limits:  at s = z0 a completion costs 1/2 of its weight whatever beta is. Far from z0, on either side, the gradient fades.
Expects:  data with prompt, completion and label (a file of pairs is taken apart), two prompts or more per step. Balance the
    labels: desirable * number of good ones / (undesirable * number of bad ones) within 1 and 4/3. Two more passes without
    gradient than dpo's one, under policy and reference, for the mismatched completions: about half as much time again per step.
    `kto@online`: eight completions of the policy in the place of data, desirable where the task's reward is over 0.5. Where few
    are, raise desirable.
Source:  Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 7; KTOTrainer of HALOs. beta 0.1, both weights 1.
Deviations:  a completion is put after the next prompt of the step that differs from its own; HALOs and TRL take the next row's,
    equal or not. z0 is that of the step's start and of all its rows, also where update.minibatches is more than 1.
    With different prompts value and gradient equal those of TRL 1.16.
Not this:  z0 from the completions' own prompts, or none (TRL's "apo_zero_unpaired").
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.preference.dpo import dpo, dpo_online
from upslope.parts.aggregate import RowMean
from upslope.parts.data import FromData
from upslope.parts.preference import sequence_score
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class LabelByReward(Part):
    """`label` [R] of completions that were sampled: 1, desirable, where the reward is over `above`, else 0."""

    above: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    makes: ClassVar[frozenset[str]] = frozenset({"label"})
    formula: ClassVar[str] = "label = 1 where reward > {above}, else 0"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return {"label": (batch.reward > self.above).to(batch.dtype)}


@dataclass(frozen=True)
class ReferencePoint(Part):
    """z0, as above, in the column `reference_point` of every row, [R]."""

    needs: ClassVar[frozenset[str]] = frozenset({"mismatched_logp", "mismatched_ref_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"reference_point"})
    formula: ClassVar[str] = "z0 = max(0, mean over rows of the sum of mismatched_logp - mismatched_ref_logp)"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        moved = ((batch.mismatched_logp - batch.mismatched_ref_logp) * batch.mask).sum()
        return {"reference_point": (moved / batch.trained.sum()).clamp(min=0).expand(len(batch))}


@dataclass(frozen=True)
class ValueOfGains(Part):
    """The loss per row [R], as above. A label p that is neither 0 nor 1 weighs both."""

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"label", "ref_logp", "reference_point"})
    formula: ClassVar[str] = (
        "{desirable} (1 - sigma({beta} (s - z0))) where label = 1, else {undesirable} (1 - sigma({beta} (z0 - s))), "
        "s = sum of logp - ref_logp"
    )

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.desirable < 0 or self.undesirable < 0:
            raise UsageError(
                f"ValueOfGains(beta={self.beta:g}, desirable={self.desirable:g}, undesirable={self.undesirable:g}): beta must be "
                "positive, e.g. 0.1, and the weights not negative, e.g. 1."
            )

    def __call__(self, batch: Batch) -> Tensor:
        gain = self.beta * self._gain(batch)
        good, bad = self.desirable * (-gain).sigmoid(), self.undesirable * gain.sigmoid()
        return batch.label * good + (1 - batch.label) * bad

    @staticmethod
    def _gain(batch: Batch) -> Tensor:
        return sequence_score(batch, reference=True, normalized=False) - batch.reference_point

    def stats(self, batch: Batch) -> Stats:
        gain = self._gain(batch)
        return {
            "labels/accuracy": ((gain > 0) == (batch.label > 0.5)).to(gain.dtype),
            "labels/gain": gain,
            "labels/reference_point": batch.reference_point,
        }


@method(paper="2402.01306", title="KTO: Model Alignment as Prospect Theoretic Optimization", parent="dpo")
def kto() -> Recipe:
    return dpo().replace(
        rollout=FromData(kind="labels"), weight=ReferencePoint(), surrogate=ValueOfGains(), aggregate=RowMean()
    )


@preset("online", version="labels by reward")
def kto_online() -> Recipe:
    return kto().replace(rollout=dpo_online().rollout, weight=(LabelByReward(), ReferencePoint()))
