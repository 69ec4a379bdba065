"""Mode-seeking or mode-covering: which KL an update lowers, and what a policy has of a target with several modes.

s = softmax(logits) and t are probabilities [..., K]. The gradients are with respect to the logits, of what is minimized.

    reverse   KL(s || t)   gradient s (log(s / t) - KL)   moves mass to where the policy has some: seeks a mode
    forward   KL(t || s)   gradient s - t                 pulls mass to all that the target has: covers its modes

On-policy methods follow the former in the mean (KL-regularized rewards, opd), likelihood of the target's samples the latter (sft,
best-of-N, seqkd). Source: Tajwar et al. 2024 (arXiv:2404.14367), section 6; benchmarks/bandits.py is their didactic study.
"""

import torch
from torch import Tensor


def kl(s: Tensor, t: Tensor) -> Tensor:
    """KL(s || t) in nats, [...]; infinite where t lacks what s has."""
    return (torch.special.xlogy(s, s) - torch.special.xlogy(s, t)).sum(-1)


def reverse_kl_gradient(s: Tensor, t: Tensor) -> Tensor:
    """Gradient of KL(s || t) with respect to the logits of s, [..., K]."""
    return s * ((s / t).log() - kl(s, t).unsqueeze(-1))


def forward_kl_gradient(s: Tensor, t: Tensor) -> Tensor:
    """Gradient of KL(t || s) with respect to the logits of s, [..., K]."""
    return s - t


def mass_off_support(policy: Tensor, target: Tensor, negligible: float = 1e-3) -> Tensor:
    """Probability under the policy of what has less than `negligible` under the target, [...]."""
    return (policy * (target < negligible)).sum(-1)


def modes(target: Tensor) -> Tensor:
    """Local maxima of a target [K] over ordered outcomes, by index; a plateau counts once, at its first place."""
    end = target.new_tensor([-torch.inf])
    kept = torch.cat([torch.tensor([True]), target[1:] != target[:-1]])
    places, heights = kept.nonzero().squeeze(1), target[kept]
    before, after = torch.cat([end, heights[:-1]]), torch.cat([heights[1:], end])
    return places[(heights > before) & (heights > after)]


def modes_covered(policy: Tensor, target: Tensor, share: float = 0.1) -> int:
    """How many modes of the target [K] the policy [K] gives at least `share` of the probability that the target gives them."""
    places = modes(target)
    return int((policy[places] >= share * target[places]).sum())
