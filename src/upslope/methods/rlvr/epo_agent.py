"""EPO: an entropy bonus, less what the entropy leaves the band around its average over the earlier steps by.

    Hbar  mean, over the steps before this one, of the step's average entropy                              scalar
    P     [low Hbar - H]_+ + [H - high Hbar]_+, H the entropy at each position, with gradient              [R, T]
    beta  1 + exp(-2 gamma progress): 2 at the start, 1 + exp(-gamma) at the middle of the run; 0 in the first step, which has
          no history                                                                                      scalar
    loss  grpo's, plus mean over sequences of the mean over tokens of -coefficient (H - beta alpha P)

Differs from grpo:  the entropy bonus and its smoothing.
Limits:  coefficient=0 is grpo. alpha=0 is grpo with an entropy bonus, and so is the first step of any run.
Expects:  agents with many turns and a reward at the end; any other recipe's surrogate and aggregate will do. The entropy with
    its gradient at every position costs one more pass over the logits, forward and back, in time and memory.
Source:  Xu et al. 2025 (arXiv:2509.22576, version 2); coefficient, band and alpha (0.1 for ALFWorld, 0.05 for ScienceWorld) as
    in the authors' code. gamma is a choice: we know of no published value.
Deviations:  the paper's k / floor(K / 2) in the exponent of beta is 2 progress here, the same for an even number of steps K.
    The average of a step with several updates is over them all, each under the policy as it then was. The released code's
    penalty has no gradient: it is alpha where H leaves the band, a constant; epo_agent@released has the gradient that is
    left, that of the bonus. The statistic entropy/outside is the share of tokens that the code's penalty counts. The code
    also keeps one average per turn of the episode, penalizes late turns only, and weighs by another schedule.
Not this:  a target for the entropy: the band moves with the average, and with low=0 it has no lower end.
Claim:  steadier entropy: in the study "entropy" (5 seeds, leg_counting) it ends at 0.243 [0.226, 0.262] beside grpo's 0.221
    [0.205, 0.231], at the same pass@1. Its setting of many turns is not tested.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.kl import KL
from upslope.recipe import Part, Recipe, State, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class EntropyHistory(Part):
    """entropy_mean = Hbar and smoothing = beta, [R] each, as above; both 0 in the first step.

    The state has the sum of the averages of the steps that are over, and the sum of the entropies of the present one's tokens.
    A step is told from the next by `progress`.
    """

    gamma: float = 1.0
    formula: ClassVar[str] = "Hbar = mean of the earlier steps' entropies, beta = 1 + exp(-{gamma} * 2 progress)"
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    makes: ClassVar[frozenset[str]] = frozenset({"entropy_mean", "smoothing"})

    def init(self) -> State:
        return {"steps": 0, "averages": 0.0, "progress": 0.0, "entropy": 0.0, "tokens": 0}

    def __call__(self, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        progress, state = float(batch.progress[0]), dict(state)
        if state["tokens"] and progress != state["progress"]:
            state["averages"] += state["entropy"] / state["tokens"]
            state |= {"steps": state["steps"] + 1, "entropy": 0.0, "tokens": 0}
        state |= {
            "progress": progress,
            "entropy": state["entropy"] + float((batch.entropy * batch.mask).sum()),
            "tokens": state["tokens"] + int(batch.mask.sum()),
        }
        known = state["steps"] > 0
        mean = state["averages"] / state["steps"] if known else 0.0
        beta = 1 + math.exp(-2 * self.gamma * progress) if known else 0.0
        rows = (len(batch),)
        return {"entropy_mean": batch.logp.new_full(rows, mean), "smoothing": batch.logp.new_full(rows, beta)}, state


@dataclass(frozen=True)
class SmoothedEntropy(Part):
    """-coefficient (H - beta alpha P) per token [R, T], as above."""

    coefficient: float = 1e-3
    alpha: float = 0.1
    low: float = 0.0
    high: float = 2.0
    formula: ClassVar[str] = "-{coefficient} * (H - beta {alpha} ([{low} Hbar - H]_+ + [H - {high} Hbar]_+))"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "entropy_mean", "smoothing"})

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise UsageError(
                f"SmoothedEntropy(low={self.low:g}, high={self.high:g}): the band around the average is empty. Give multiples "
                "of the average, e.g. low=0.8, high=1.2."
            )

    def __call__(self, batch: Batch) -> Tensor:
        below, above = self._outside(batch)
        penalty = below.clamp(min=0) + above.clamp(min=0)
        return -self.coefficient * (batch.entropy - batch.smoothing.unsqueeze(1) * self.alpha * penalty)

    def stats(self, batch: Batch) -> Stats:
        below, above = self._outside(batch)
        outside = ((below > 0) | (above > 0)) & (batch.smoothing > 0).unsqueeze(1)
        return {
            "entropy/now": batch.entropy,
            "entropy/mean": batch.entropy_mean,
            "entropy/outside": outside.to(batch.dtype),
        }

    def _outside(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How far H is below and above the band, [R, T] each; negative inside."""
        mean = batch.entropy_mean.unsqueeze(1)
        return self.low * mean - batch.entropy, batch.entropy - self.high * mean


@method(
    paper="2509.22576",
    title="EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning",
    parent="grpo",
)
def epo_agent() -> Recipe:
    return grpo().replace(control=EntropyHistory(), regularizer=(KL(beta=0.04, estimator="k3"), SmoothedEntropy()))


@preset("released", version="2509.22576")
def epo_agent_released() -> Recipe:
    return epo_agent().replace(regularizer=(KL(beta=0.04, estimator="k3"), SmoothedEntropy(alpha=0.0)))
