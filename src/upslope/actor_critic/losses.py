"""The formulas as pure functions of tensors: E critics, B transitions, A numbers in an action, K sampled actions."""

import math

import torch
from torch import Tensor


def bootstrap(reward: Tensor, terminated: Tensor, value: Tensor, discount: float) -> Tensor:
    """y = r + discount (1 - d) V(s'), all [B]; d is 1 where the episode ended for good, not where time was up."""
    return torch.addcmul(reward, 1.0 - terminated, value, value=discount)


def lowest(q: Tensor) -> Tensor:
    """The smallest of each transition's values, [E, B] -> [B]; gradient to that one (to the first of equal ones)."""
    return q[0] if len(q) == 1 else torch.minimum(q[0], q[1]) if len(q) == 2 else q.min(0).values


def squared_error(q: Tensor, target: Tensor, *, factor: float = 1.0, across: str = "sum") -> Tensor:
    """factor * sum (or mean) over critics of mean_B (Q_j - y)^2; q [E, B], target [B]."""
    error = (q - target).square().sum() * (factor / q.shape[1])
    return error / len(q) if across == "mean" else error


def expectile(difference: Tensor, tau: float) -> Tensor:
    """mean of |tau - 1[u < 0]| u^2 over u = difference [B]: least where V is the tau-expectile."""
    weight = (tau - (difference < 0).to(difference.dtype)).abs()
    return (weight * difference.square()).mean()


def cloning_scale(q: Tensor, alpha: float) -> Tensor:
    """TD3+BC's lambda = alpha / mean |Q|, without gradient; q [B]."""
    return alpha / q.detach().abs().mean().clamp(min=1e-12)


def conservative_gap(sampled: Tensor, logged: Tensor, temperature: float = 1.0) -> Tensor:
    """T logsumexp_k(Q_k / T) - Q(s, a): sampled [E, B, K], importance weights already in it; logged [E, B] -> [E, B]."""
    return temperature * torch.logsumexp(sampled / temperature, -1) - logged


def diversity(gradient: Tensor) -> Tensor:
    """EDAC's ES = mean_B sum over i != j of <g_i, g_j> / (E - 1), of gradients dQ/da [E, B, A] scaled to length 1."""
    unit = gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10)
    # sum over all ordered pairs is |sum of all|^2; the pairs of a critic with itself are taken off
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
    return pairs.mean() / (len(gradient) - 1)


def advantage_weight(advantage: Tensor, beta: float, largest: float) -> Tensor:
    """min(exp(beta A), largest), [B]; the exponent is cut first, so that nothing overflows."""
    return (beta * advantage).clamp(max=math.log(largest)).exp()
