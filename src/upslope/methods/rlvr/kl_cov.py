"""KL-Cov: the few tokens whose advantage and log-prob are highest together are held near the old policy; nothing is clipped.

    cov   (A - mean A) (logp - mean logp), means over the mini-batch's tokens, constant                    [R, T]
    S     the share * tokens with the largest cov, one at least                                           [R, T]
    loss  mean over the mini-batch's tokens of -A r + coefficient |logp - old_logp| in S, -A r elsewhere

Why such tokens: page of clip_cov.

Differs from grpo:  no clip; the penalty in S; the token mean; 8 updates per batch; no KL to a reference.
Limits:  share=0 is grpo's advantage with the plain ratio and a token mean; so is the first update after sampling, where the
    penalty has no gradient yet, and with it all of a run with minibatches=1.
Expects:  several updates per batch of rollouts. The statistic covariance/mean says how fast the entropy falls.
Source:  Cui et al. 2025 (arXiv:2505.22617), section 4; the authors' code and verl's compute_policy_loss_kl_cov. share is 0.2 %
    as in their 7B script; kl_cov@verl has verl's default, a tenth of it, which they take for 32B.
Deviations:  cov and S are over the mini-batch; the code's are over each micro-batch. Equal covariances are told apart at
    random. The paper writes a KL divergence; its code and this method take |logp - old_logp|, whose gradient in logp is 1 or
    -1. The authors' runs also sample until enough groups have rewards that differ: curriculum="dapo" (from memory).
Not this:  a KL to the reference: the penalty is against the policy that sampled, and pulls each way with the same force.
Claim:  keeps entropy: not seen in the study "entropy" (5 seeds, 480 updates, leg_counting), neither at 2e-3 nor at 2 % of
    the tokens: entropy and pass@1 are those of grpo within the intervals.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Update
from upslope.parts.selection import check_share, covariance, largest, number_of, token_uniform
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class SelectCovariant(Part):
    """selected [R, T] = S, as above."""

    share: float = 2e-3
    formula: ClassVar[str] = "S = the {share} of the tokens with the largest (A - mean A)(logp - mean logp)"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "trajectory"})
    makes: ClassVar[frozenset[str]] = frozenset({"covariance", "selected"})

    def __post_init__(self) -> None:
        check_share(self, self.share)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        cov = covariance(batch)
        number = number_of(self.share, batch.mask)
        return {"covariance": cov, "selected": largest(cov, number, batch.mask, ties=token_uniform(batch, 0))}

    def stats(self, batch: Batch) -> Stats:
        return {"covariance/mean": batch.covariance, "covariance/selected": batch.selected.to(batch.dtype)}


@dataclass(frozen=True)
class HoldSelected(Part):
    """coefficient |logp - old_logp| per token [R, T], where the control selected it; 0 elsewhere."""

    coefficient: float = 1.0
    formula: ClassVar[str] = "{coefficient} * |logp - old_logp| in S"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "selected"})

    def __call__(self, batch: Batch) -> Tensor:
        return self.coefficient * batch.selected * (batch.logp - batch.old_logp).abs()


@method(
    paper="2505.22617",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    parent="grpo",
)
def kl_cov() -> Recipe:
    return grpo().replace(
        control=SelectCovariant(),
        surrogate=ClippedRatio(ratio_low=0.0, ratio_high=float("inf")),
        regularizer=HoldSelected(),
        aggregate=TokenMean(),
        update=Update(minibatches=8),
    )


@preset("verl", version="018f23b")
def kl_cov_verl() -> Recipe:
    return kl_cov().replace(control=SelectCovariant(share=2e-4))
