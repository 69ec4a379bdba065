"""DID: online DPO that measures how spread the information is by which the policy differs from its reference.

    q     (policy / ref) / Z over all completions of a prompt, the differential information distribution
    H     entropy of q, in nats: from K completions y_k of the policy, -(sum over k of w_k log(policy / ref)(y_k)) + log Z,
          w_k proportional to 1 / ref(y_k), Z the mean of 1 / ref(y_k)             [G]
    loss  as in dpo, completions paired by their rewards

Differs from dpo:  completions are sampled, eight per prompt; did/entropy and did/effective are logged.
Limits:  at the optimum ref * exp(R / beta) / Z, q is softmax(R / beta), whatever ref is. Preferences with the probability
    sigma(beta log q(y_w) - beta log q(y_l)) have their dpo optimum at that policy, and only log-ratios to ref as scores do.
Expects:  short completions: the weights 1 / ref are dominated by the rarest one otherwise, and did/effective, their effective
    number, falls to 1. A low H goes with sharpening, a high one with smoothing, which lowers the preferred completions too.
Source:  Won et al. 2025 (arXiv:2505.23761): definitions and the claim on H. There is no public code; the estimator of H is derived
    here. The paper draws 32 completions.
Deviations:  a theory, not a training method: the loss is dpo's. H is estimated from the policy's samples; the paper's are the
    reference's. Pairs whose rejected side is drawn from ref (ref / policy)^beta, which makes chosen ones of ref ideal, are not
    sampled here.
Not this:  a bonus on H: it is measured, not trained.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.preference.dpo import dpo
from upslope.parts.preference import PreferenceLoss
from upslope.parts.sampling import Sample
from upslope.recipe import Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class MeasuredPreferenceLoss(PreferenceLoss):
    """A PreferenceLoss that logs the entropy of q, and the effective number of completions that it is estimated from."""

    def stats(self, batch: Batch) -> Stats:
        entropy, effective = information_entropy(batch)
        return {**super().stats(batch), "did/entropy": entropy, "did/effective": effective}


def information_entropy(batch: Batch) -> tuple[Tensor, Tensor]:
    """H of each row's group and the effective number of its completions, [R] each; 0 in a row without trained tokens."""
    policy, ref = ((column * batch.mask).sum(1) for column in (batch.logp, batch.ref_logp))
    fit = batch.trained & batch.valid
    mates = (batch.group.unsqueeze(1) == batch.group) & fit
    rarity = torch.where(mates, -ref, -torch.inf)
    weight = torch.where(mates.any(1, keepdim=True), rarity, 0.0).softmax(1)
    log_z = rarity.logsumexp(1) - mates.sum(1).clamp(min=1).log()
    entropy = log_z - (weight * (policy - ref)).sum(1)
    return torch.where(fit, entropy, 0.0), torch.where(fit, 1 / (weight**2).sum(1), 0.0)


@method(
    paper="2505.23761",
    title="Differential Information Distribution: A Bayesian Perspective on Direct Preference Optimization",
    parent="dpo",
)
def differential_information() -> Recipe:
    return dpo().replace(rollout=Sample(group_size=8), surrogate=MeasuredPreferenceLoss(beta=0.1, pairs="reward"))
