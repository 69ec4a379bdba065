"""Differential information: what moves a reference to a policy, and which rejected completions teach just that.

Of the K completions of a prompt, policies as probabilities [..., K]:

    q    (policy / ref) / sum of it: the differential information distribution
    H    its entropy, in nats: low where the move sharpens, high where it smooths
    l    ref (ref / policy)^beta / sum of it: where chosen completions are the reference's own and rejected ones are drawn from
         l, pairs have P(y_w > y_l) = sigmoid(beta log q(y_w) - beta log q(y_l)), so DPO with that beta ends at the policy

Source: Won et al. 2025 (arXiv:2505.23761). The method that logs H while training: differential_information.
"""

import torch
from torch import Tensor


def differential_information(policy: Tensor, ref: Tensor) -> Tensor:
    """q [..., K]; for policy = ref exp(R / beta) / Z it is softmax(R / beta), whatever the reference."""
    return (policy.log() - ref.log()).softmax(-1)


def information_entropy(policy: Tensor, ref: Tensor) -> Tensor:
    """H [...], in nats."""
    return torch.special.entr(differential_information(policy, ref)).sum(-1)


def rejected_sampler(policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """l [..., K]: whom to draw rejected completions from beside the reference's chosen ones, so that DPO ends at the policy."""
    return (ref.log() + beta * (ref.log() - policy.log())).softmax(-1)
