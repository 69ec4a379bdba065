"""Fine-tuning as reward learning: the log-ratio to the start is an implicit reward, and its divergence says how far to go.

    r     beta (logp - ref_logp), of each token [R, T], or its sum over the completion [R]
    phi   "pearson" r - r^2 / 4;  "hellinger" r / (1 + r);  "total_variation" r
    loss  mean over the batch's tokens of -phi(r), or over its completions with per="sequence"

Differs from sft:  phi of the log-ratio in the place of logp, which keeps the reference in the gradient.
Limits:  "total_variation" has beta times sft's gradient. phi' = 1 at r = 0, so the first step is that of sft for every
    phi; later pearson pulls by 1 - r / 2, which ends at r = 2 (beyond, it pulls back), hellinger by 1 / (1 + r)^2.
Expects:  data with prompt and completion; one pass of the reference. Experimental. The paper's own advice needs no other
    loss: sft with a learning rate 4 to 20 times smaller, before a preference method such as dpo.
Source:  arXiv:2507.00018 for sft as the total-variation case and for the learning rate. The other two phi are
    reconstructed from the conjugates of IQ-Learn, not checked against the paper's final equations; no code was found.
Deviations:  beta = 1 per token is ours. Hellinger has a pole at r = -1: below r = -0.9 phi goes on as its tangent.
Not this:  a KL penalty: nothing but the data's tokens is looked at. per="sequence" wants aggregate=RowMean().
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.supervised.sft import sft
from upslope.parts.preference import sequence_score
from upslope.recipe import Level, Part, Recipe, Stats
from upslope.registry import method

FLOOR = -0.9


@dataclass(frozen=True)
class ImplicitReward(Part):
    """-phi(r), as above."""

    divergence: Literal["pearson", "hellinger", "total_variation"] = "pearson"
    beta: float = 1.0
    per: Level = "token"
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"ImplicitReward(beta={self.beta:g}): it must be positive, e.g. 1.")

    @property
    def level(self) -> Level:
        """Whether the loss is per token or per completion."""
        return self.per

    def describe(self) -> str:
        phi = {"pearson": "r - r^2 / 4", "hellinger": "r / (1 + r)", "total_variation": "r"}[self.divergence]
        total = "sum of " if self.per == "sequence" else ""
        return f"-({phi}), r = {self.beta:g} * {total}(logp - ref_logp)"

    def __call__(self, batch: Batch) -> Tensor:
        reward = self._reward(batch)
        if self.divergence == "total_variation":
            return -reward
        if self.divergence == "pearson":
            return reward**2 / 4 - reward
        inside = reward.clamp(min=FLOOR)
        beyond = (reward - FLOOR).clamp(max=0.0) / (1 + FLOOR) ** 2
        return -(inside / (1 + inside)) - beyond

    def stats(self, batch: Batch) -> Stats:
        return {"implicit_reward": self._reward(batch), "nll": -batch.logp}

    def _reward(self, batch: Batch) -> Tensor:
        if self.per == "token":
            return self.beta * (batch.logp - batch.ref_logp)
        return self.beta * sequence_score(batch, reference=True, normalized=False)


@method(
    paper="2507.00018",
    title="Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections",
    parent="sft",
)
def implicit_reward_sft() -> Recipe:
    return sft().replace(surrogate=ImplicitReward(divergence="pearson"))
