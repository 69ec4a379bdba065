"""Bradley-Terry reward model: a scalar head, fitted so that the preferred completion of a pair scores higher.

    r     value at the completion's last trained token                              [R]
    z     r of the preferred completion - r of the other - m                        [pairs]
    m     margin + score_margin times the difference of the scores that the data gives both
    loss  mean over pairs of log(1 + exp(-z)) + centering (r_w + r_l)^2

Differs from dpo:  the score is that of a head, not of the policy's log-probs; no reference; beta is 1.
Limits:  with centering = 0 a number added to r for all completions of a prompt changes nothing. dpo is this loss with
    beta (logp - ref_logp), summed over the completion, in the place of r.
Expects:  pairs (--data PAIRS, as for dpo). `upslope train rm` puts a score on the hidden states of --model, or trains a reward
    model further, and saves folders of AutoModelForSequenceClassification; --reward-model takes them. The column `value`: the
    score, with gradient, at the last trained token. It is evaluated on held-out pairs.
Source:  Ouyang et al. 2022 (arXiv:2203.02155), eq. 1; TRL's RewardTrainer; centering: Eisenstein et al. 2023 (arXiv:2312.09244),
    0.01 where it is used. 1 epoch at 5e-6 to 1e-5.
Deviations:  none known. Given the head's value at the last token that is not padding, equals TRL 1.16 in value and gradient, with a
    margin and with centering; TRL's margin per pair is what score_margin makes of the data's scores. In `upslope`'s critics
    `value` at a token is the value before it: at the end token that of the whole text. MOSS-RLHF adds the likelihood of the
    preferred completion.
Not this:  a value per token that is regressed on returns.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.preference.dpo import dpo
from upslope.parts.preference import pairs_of
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


def last_value(batch: Batch) -> Tensor:
    """`value` at the last trained token of each row, 0 for a row without one, [R]."""
    last = (batch.mask.long().cumsum(1) * batch.mask).argmax(1, keepdim=True)
    return batch.value.gather(1, last).squeeze(1)


@dataclass(frozen=True)
class BradleyTerry(Part):
    """The loss of a group's pairs, averaged, on the winner's row [R], as above. Pairs and soft labels as in PreferenceLoss.

    Without scores in the data the difference of two completions' scores is that of their labels.
    """

    margin: float = 0.0
    score_margin: float = 0.0
    centering: float = 0.0
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `reward`, the data's scores, where margins are made of them."""
        return frozenset({"value", "label", "group"}) | ({"reward"} if self.score_margin else frozenset())

    def describe(self) -> str:
        margin = f"{self.margin:g}" + (f" + {self.score_margin:g} (score_w - score_l)" if self.score_margin else "")
        return f"log(1 + exp({margin} - (r_w - r_l))) + {self.centering:g} (r_w + r_l)^2, r = value at the last token"

    def __post_init__(self) -> None:
        if self.centering < 0:
            raise UsageError(f"BradleyTerry(centering={self.centering:g}): it must not be negative, e.g. 0.01.")

    def __call__(self, batch: Batch) -> Tensor:
        pairs, r = pairs_of(batch, "label", "all"), last_value(batch)
        gap = r[pairs.winner] - r[pairs.loser]
        margin: float | Tensor = self.margin
        if self.score_margin:
            margin = margin + self.score_margin * (batch.reward[pairs.winner] - batch.reward[pairs.loser])
        right, wrong = F.softplus(margin - gap), F.softplus(margin + gap)
        loss = pairs.certainty * right + (1 - pairs.certainty) * wrong
        loss = loss + self.centering * (r[pairs.winner] + r[pairs.loser]) ** 2
        return pairs.on_winner(loss, len(batch))

    def stats(self, batch: Batch) -> Stats:
        pairs, r = pairs_of(batch, "label", "all"), last_value(batch)
        gap = r[pairs.winner] - r[pairs.loser]
        return {
            "pairs/accuracy": pairs.on_both((gap > 0).to(gap.dtype), len(batch)),
            "pairs/margin": pairs.on_both(gap, len(batch)),
        }


@method(
    paper="2203.02155",
    title="Training language models to follow instructions with human feedback",
    parent="dpo",
    aliases=("rm", "reward_model"),
)
def reward_model_bt() -> Recipe:
    return dpo().replace(surrogate=BradleyTerry())
