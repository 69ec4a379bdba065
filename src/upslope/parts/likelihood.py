"""Maximum likelihood of tokens that somebody else wrote, and its weights."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class NegativeLogLikelihood(Part):
    """-coefficient w logp per token [R, T], w without gradient, of p = exp(logp) under the current policy.

    weighting   "none" w = 1; "probability" w = p (DFT), whose gradient is that of -p; "uncertainty" w = p (1 - p) (CHORD-phi),
                which leaves tokens alone that are known and those that are far away
    """

    weighting: Literal["none", "probability", "uncertainty"] = "none"
    coefficient: float = 1.0

    def describe(self) -> str:
        weight = {"none": "", "probability": "sg[p] ", "uncertainty": "sg[p (1 - p)] "}[self.weighting]
        factor = "" if self.coefficient == 1 else f"{self.coefficient:g} "
        return f"-{factor}{weight}logp" + (", p = exp(logp)" if weight else "")

    def __call__(self, batch: Batch) -> Tensor:
        if self.weighting == "none":
            return -self.coefficient * batch.logp
        p = batch.logp.detach().exp()
        weight = p if self.weighting == "probability" else p * (1 - p)
        return -self.coefficient * weight * batch.logp

    def stats(self, batch: Batch) -> Stats:
        return {} if self.weighting == "none" else {"nll": -batch.logp}
