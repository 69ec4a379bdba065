"""R2VPO: no clip; the mean squared deviation of the ratio from 1 is held at a budget by a dual variable.

    A_i    (R_i - mean of group) / (standard deviation of group + eps), copied to the tokens               [R]
    lam    of the mini-batch before, max(0, lam + eta (mean over tokens of (r - 1)^2 - delta))             [R]
    loss   mean over the batch's tokens of -A r + lam (r - 1)^2

Differs from grpo:  the penalty in place of the clip, weighted by dual ascent; the token mean; no KL to a reference.
Limits:  at r = 1 its gradient is grpo's with beta = 0 and a token mean; lam = 0 and eta = 0 is the unclipped ratio. A token's
    loss is least at r = 1 + A / (2 lam), beyond which its gradient turns back: a soft interval that closes as lam grows.
Expects:  several updates per batch of rollouts: with one, r = 1, and lam falls to 0. Where a mini-batch spans several
    micro-batches, a control costs one more forward pass per update, about a third of the update.
Source:  Luo et al. 2026 (arXiv:2601.03320), the constraint and its Lagrangian. Weighted by the old policy, the mean of
    (r - 1)^2 is the chi-squared divergence of the new policy from it, about twice the KL divergence while small.
Deviations:  the objective is that of the paper's abstract, the dual step a reconstruction: delta, eta, the first lam and
    grpo's A are our choice; the factor of lam is 1, not 1/2. lam stays below lam_max, since one token that moved far raises
    it for thousands of updates. Its off-policy variant replays earlier steps: rollout.replay=0.5.
Not this:  a fixed penalty, lam=0.04 with eta=0. kimi_k15_md squares the log-ratio of the whole sequence.
Claim:  bears stale data better than clips: not reproduced with our constants. In the study "stale" (5 seeds, chain_sum) as
    PPO's clip at 1 and 4 updates per step, at 16 worse, -0.183 [-0.231, -0.134]: the dual variable follows too slowly
    within a step.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Update
from upslope.parts.surrogate import token_ratio
from upslope.recipe import Part, Recipe, State, Stats
from upslope.registry import method


@dataclass(frozen=True)
class DualAscent(Part):
    """The column lam [R], one number for the mini-batch, and the next one, as above. `lam` is the first."""

    delta: float = 0.02
    eta: float = 0.5
    lam: float = 0.1
    lam_max: float = 10.0
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"lam"})

    def __post_init__(self) -> None:
        if not (self.delta >= 0 and self.eta >= 0 and 0 <= self.lam <= self.lam_max):
            raise UsageError(f"{self}: needs delta >= 0, eta >= 0 and 0 <= lam <= lam_max.")

    def init(self) -> State:
        return {"lam": self.lam}

    def __call__(self, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        excess = float(batch.masked_mean((token_ratio(batch) - 1) ** 2)) - self.delta
        following = min(max(state["lam"] + self.eta * excess, 0.0), self.lam_max)
        column = torch.full_like(batch.logp[:, 0], state["lam"], dtype=batch.dtype)
        return {"lam": column}, {"lam": following}

    def stats(self, batch: Batch) -> Stats:
        return {"dual/lam": batch.lam}


@dataclass(frozen=True)
class PenalizedRatio(Part):
    """-A r + lam (r - 1)^2 per token [R, T], lam [R] a column. The log-ratio is kept within +-20."""

    formula: ClassVar[str] = "-A r + lam (r - 1)^2"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "lam"})

    def __call__(self, batch: Batch) -> Tensor:
        ratio = token_ratio(batch)
        return -batch.advantage * ratio + batch.lam.unsqueeze(1) * (ratio - 1) ** 2

    def stats(self, batch: Batch) -> Stats:
        ratio = token_ratio(batch)
        return {
            "ratio/squared_deviation": (ratio - 1) ** 2,
            "ratio/mean": ratio,
            "ratio/kl": ratio - 1 - ratio.log(),
        }


@method(
    paper="2601.03320",
    title="Ratio-Variance Regularized Policy Optimization for Efficient LLM Fine-tuning",
    parent="grpo",
)
def r2vpo() -> Recipe:
    return grpo().replace(
        control=DualAscent(),
        surrogate=PenalizedRatio(),
        regularizer=None,
        aggregate=TokenMean(),
        update=Update(minibatches=8),
    )
