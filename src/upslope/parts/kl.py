"""What holds the policy near a reference: the three estimators of a KL divergence, in the loss or in the reward.

With u = logp - ref_logp at tokens that the policy sampled (Schulman 2020, "Approximating KL divergence"):
k1 = u, k2 = u^2 / 2, k3 = exp(-u) - 1 + u. Their values all estimate KL(policy || ref) (k2 with bias). Their gradients differ:
in the loss k1 has none in expectation, k2 has that of the per-token KL(policy || ref), k3 that of KL(ref || policy); in the
reward k1, fed through the return, has that of the sequence KL(policy || ref). Multiplied by the ratio, k1 in the loss has the
gradient of the per-token KL(policy || ref) too, off-policy included.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.surrogate import token_ratio
from upslope.recipe import Part, Stats

Estimator = Literal["k1", "k2", "k3", "k3_value_k2_gradient"]
CLAMP = 20.0  # beyond, exp(-u) overflows the loss; verl's bound


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: Estimator) -> Tensor:
    """The estimator per token, with gradient through `logp`; -u is kept within +-20, where k3's gradient ends."""
    u = logp - ref_logp
    if estimator == "k1":
        return u
    if estimator == "k2":
        return u**2 / 2
    clamped = u.clamp(-CLAMP, CLAMP)
    k3 = (-clamped).exp() - 1 + clamped
    return k3 if estimator == "k3" else u**2 / 2 + (k3 - u**2 / 2).detach()


@dataclass(frozen=True)
class KL(Part):
    """beta times a KL estimator per token [R, T], in the loss. `ratio_weighted` multiplies by exp(logp - old_logp).

    Raises UsageError for k1 without the ratio: its gradient is zero in expectation.
    """

    beta: float = 0.04
    estimator: Estimator = "k3"
    ratio_weighted: bool = False

    def __post_init__(self) -> None:
        if self.estimator == "k1" and not self.ratio_weighted:
            raise UsageError(
                "KL(estimator='k1') in the loss has no gradient in expectation. Use ratio_weighted=True, k2 (reverse KL per token) "
                "or k3 (forward KL), or put k1 in the reward: reward=KLInReward()."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads ref_logp, and old_logp for the ratio."""
        return frozenset({"ref_logp", "old_logp"} if self.ratio_weighted else {"ref_logp"})

    def describe(self) -> str:
        return f"{self.beta:g} * {'r ' if self.ratio_weighted else ''}{self.estimator}(logp, ref_logp)"

    def __call__(self, batch: Batch) -> Tensor:
        estimate = self.beta * kl_estimate(batch.logp, batch.ref_logp, self.estimator)
        return token_ratio(batch) * estimate if self.ratio_weighted else estimate

    def stats(self, batch: Batch) -> Stats:
        return {"kl": kl_estimate(batch.logp, batch.ref_logp, "k3")}


@dataclass(frozen=True)
class KLInReward(Part):
    """Takes beta times a KL estimator of old_logp against ref_logp off the reward: per token [R, T], or summed over it [R].

    Per token, the outcome's reward stands at the last trained token. Only k1 gives the gradient of the sequence's KL (the
    exact lab measures it); k2 and k3 are there to reproduce systems that use them.
    Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 2.
    """

    beta: float = 0.01
    level: Literal["token", "sequence"] = "token"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_logp", "ref_logp"})

    def describe(self) -> str:
        estimate = "(old_logp - ref_logp)" if self.estimator == "k1" else f"{self.estimator}(old_logp, ref_logp)"
        penalty = f"{self.beta:g} {estimate}"
        return (
            f"reward at the last token - {penalty}"
            if self.level == "token"
            else f"reward - sum over tokens of {penalty}"
        )

    def __call__(self, batch: Batch) -> Tensor:
        penalty = self.beta * kl_estimate(batch.old_logp, batch.ref_logp, self.estimator) * batch.mask
        if self.level == "sequence":
            return batch.reward - penalty.sum(1)
        return token_rewards(batch) - penalty

    def stats(self, batch: Batch) -> Stats:
        return {"kl": kl_estimate(batch.logp, batch.ref_logp, "k3")}


def token_rewards(batch: Batch) -> Tensor:
    """Rewards per token [R, T]: the column token_reward if there is one, else the reward at the last trained token."""
    if "token_reward" in batch:
        return batch.token_reward
    positions = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    last = torch.where(batch.mask, positions, -1).amax(1, keepdim=True)
    return torch.where(positions == last, batch.reward.unsqueeze(1), 0.0)
