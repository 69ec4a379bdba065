"""CPL: preferences over whole segments, as a contrast of their log-probs that counts the worse one for less.

    S     alpha * (sum over the segment's steps of logp); of a text, over its tokens                     [R]
    loss  mean over pairs of log(1 + exp(bias S_l - S_w))

Differs from dpo:  no reference (`reference`=True gives CPL-KL, against the cloned policy); the bias of the worse segment.
Limits:  bias = 1 with a reference is dpo. bias = 1 without one does not change when a constant is added to the log-probs of all
    steps of segments of one length, so nothing holds the policy on the data; bias < 1 does.
Expects:  a model that has learned from the data before (`upslope train sft`, whose checkpoint is the --model): CPL's first phase.
    With control: a Batch whose logp is -|mean - action|^2 of each step, a Gaussian of unit variance without its constant.
Source:  Hejna et al. 2023 (arXiv:2310.13639); the authors' cpl.py, biased_bce_with_logits. alpha (here beta) 0.1, bias 0.5.
Deviations:  no discount within a segment, as in their configurations. Cloning and contrast are two runs, not phases of one, and
    the optional likelihood term is not there (terms of rpo_sft). Segments ranked by score are pairs="reward": all ordered pairs
    of a group.
Not this:  simpo divides by the length and has a margin in the place of the bias.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.preference.dpo import dpo
from upslope.parts.preference import Pairs, pairs_of, sequence_score
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class ConservativePreference(Part):
    """log(1 + exp(bias S_l - S_w)) per pair on its winner's row [R], as above; soft labels p weigh the exchanged pair by 1 - p."""

    beta: float = 0.1
    bias: float = 0.5
    reference: bool = False
    pairs: Literal["label", "reward"] = "label"
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.beta > 0 and 0 < self.bias <= 1):
            raise UsageError(
                f"ConservativePreference(beta={self.beta:g}, bias={self.bias:g}): beta must be positive, bias in (0, 1], e.g. 0.1 "
                "and 0.5."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads ref_logp with `reference`."""
        return frozenset({self.pairs, "group"} | ({"ref_logp"} if self.reference else set()))

    def describe(self) -> str:
        inside = "logp - ref_logp" if self.reference else "logp"
        return f"log(1 + exp({self.bias:g} S_l - S_w)), S = {self.beta:g} sum of {inside}"

    def __call__(self, batch: Batch) -> Tensor:
        pairs, better, worse = self._scores(batch)
        right = F.softplus(self.bias * worse - better)
        exchanged = F.softplus(self.bias * better - worse)
        return pairs.on_winner(pairs.certainty * right + (1 - pairs.certainty) * exchanged, len(batch))

    def _scores(self, batch: Batch) -> tuple[Pairs, Tensor, Tensor]:
        """The pairs, and S of their two rows, [P] each."""
        pairs = pairs_of(batch, self.pairs, "all")
        score = self.beta * sequence_score(batch, reference=self.reference, normalized=False)
        return pairs, score[pairs.winner], score[pairs.loser]

    def stats(self, batch: Batch) -> Stats:
        pairs, better, worse = self._scores(batch)
        margin = better - worse
        return {
            "pairs/accuracy": pairs.on_both((margin > 0).to(margin.dtype), len(batch)),
            "pairs/margin": pairs.on_both(margin, len(batch)),
        }


@method(
    paper="2310.13639",
    title="Contrastive Preference Learning: Learning from Human Feedback without RL",
    parent="dpo",
)
def cpl() -> Recipe:
    return dpo().replace(surrogate=ConservativePreference(beta=0.1, bias=0.5))
