"""Off-policy evaluation: what a policy would earn, from episodes of another one.

Of n episodes padded to T steps, rho_t = policy(a_t | s_t) / behavior(a_t | s_t), w_t = rho_0 ... rho_t, w_{-1} = 1:

    IPS     mean over i of w_{T-1} sum_t g^t r_t
    WIS     sum_i w_{T-1} G_i / sum_i w_{T-1}
    PDIS    mean over i of sum_t g^t w_t r_t                                        WPDIS  w_t over their mean per t
    DM      mean over i of V(s_0)
    DR      mean over i of sum_t g^t [w_t (r_t - Q(s_t, a_t)) + w_{t-1} V(s_t)]     WDR  both weights over their means per t
    ESS     (sum w)^2 / sum w^2: how many episodes of the policy itself the weights are worth
    FQE     Q <- r + g E_policy Q(s', .), fitted again and again

IPS, PDIS and DR are unbiased (DR for any Q); the weighted ones are consistent. Steps beyond an episode's end have log-ratio 0 and
reward 0, which `mask` takes care of; log-ratios are summed, not ratios multiplied. `clip` cuts each rho at a bound, with a bias.

Source: Precup et al. 2000; Jiang and Li 2016 (arXiv:1511.03722); Thomas and Brunskill 2016; Le et al. 2019 (arXiv:1903.08738) for
FQE; hakuhodo-technologies/scope-rl, ope/discrete/basic_estimators.py.
"""

import math

import torch
from torch import Tensor

from upslope.errors import UsageError


def cumulative_log_weights(log_ratio: Tensor, mask: Tensor | None = None, clip: float | None = None) -> Tensor:
    """log w_t [n, T] float64 of log rho [n, T]; after an episode's end it stays as it was. `clip` bounds each rho."""
    log_ratio = log_ratio.double()
    if clip is not None:
        if not clip > 0:
            raise UsageError(f"clip is {clip:g}; ratios are cut at a bound above 0.")
        log_ratio = log_ratio.clamp(max=math.log(clip))
    return (log_ratio if mask is None else log_ratio.where(mask.bool(), torch.zeros_like(log_ratio))).cumsum(-1)


def effective_sample_size(log_weight: Tensor) -> float:
    """(sum w)^2 / sum w^2 of log w [n]: n where all are alike, 1 where one has all."""
    log_weight = log_weight.double()
    found = (2 * torch.logsumexp(log_weight, -1) - torch.logsumexp(2 * log_weight, -1)).exp()
    return float(found) if torch.isfinite(found) else 0.0


def ips(
    log_ratio: Tensor, reward: Tensor, discount: float, mask: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Terms [n], whose mean is the estimate, of log rho and rewards [n, T]."""
    weight = cumulative_log_weights(log_ratio, mask, clip)[:, -1].exp()
    return weight * _discounted(reward, discount, mask).sum(-1)


def wis(
    log_ratio: Tensor, reward: Tensor, discount: float, mask: Tensor | None = None, clip: float | None = None
) -> float:
    """The estimate: a mean of returns, weighted by w."""
    weight = torch.softmax(_some(cumulative_log_weights(log_ratio, mask, clip)[:, -1]), 0)
    return float((weight * _discounted(reward, discount, mask).sum(-1)).sum())


def per_decision(
    log_ratio: Tensor, reward: Tensor, discount: float, mask: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Terms [n], whose mean is the estimate: each reward with the weight of the actions before it."""
    return (cumulative_log_weights(log_ratio, mask, clip).exp() * _discounted(reward, discount, mask)).sum(-1)


def weighted_per_decision(
    log_ratio: Tensor, reward: Tensor, discount: float, mask: Tensor | None = None, clip: float | None = None
) -> float:
    """The estimate, with weights that sum to 1 over the episodes at each step."""
    weight = torch.softmax(_some(cumulative_log_weights(log_ratio, mask, clip)), 0)
    return float((weight * _discounted(reward, discount, mask)).sum())


def doubly_robust(
    log_ratio: Tensor,
    reward: Tensor,
    discount: float,
    q: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """Terms [n], whose mean is the estimate. q = Q(s_t, a_t) and v = E_policy Q(s_t, .), [n, T]; with q = v = 0 per-decision's."""
    log_weight = cumulative_log_weights(log_ratio, mask, clip)
    before = torch.cat([torch.zeros_like(log_weight[:, :1]), log_weight[:, :-1]], 1)
    return _doubly_robust(log_weight.exp(), before.exp(), reward, discount, q, v, mask).sum(-1)


def weighted_doubly_robust(
    log_ratio: Tensor,
    reward: Tensor,
    discount: float,
    q: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    clip: float | None = None,
) -> float:
    """The estimate, with weights that sum to 1 over the episodes at each step; with q = v = 0 weighted per-decision's."""
    weight = torch.softmax(_some(cumulative_log_weights(log_ratio, mask, clip)), 0)
    before = torch.cat([torch.full_like(weight[:, :1], 1.0 / len(weight)), weight[:, :-1]], 1)
    return float(_doubly_robust(weight, before, reward, discount, q, v, mask).sum())


def direct_method(v_start: Tensor) -> float:
    """The mean of V(s_0) = E_policy Q(s_0, .), [n]."""
    return float(v_start.double().mean())


def fitted_q(
    state: Tensor,
    action: Tensor,
    reward: Tensor,
    next_state: Tensor,
    terminated: Tensor,
    policy: Tensor,
    discount: float,
) -> Tensor:
    """Q [S, A] of a policy [S, A] over finitely many states: FQE's fixed point, where every fit is exact.

    Solves Q(s, a) = mean over the log's (s, a) of r + discount (1 - terminated) sum_b policy(b | s') Q(s', b), all [n]. What the
    log lacks is left at 0, as a table is before it is fitted.
    """
    states, actions = policy.shape
    size = states * actions
    here = state.long() * actions + action.long()
    count = torch.zeros(size, dtype=torch.float64).index_add_(0, here, torch.ones(len(here), dtype=torch.float64))
    seen = count.clamp(min=1)
    mean = torch.zeros(size, dtype=torch.float64).index_add_(0, here, reward.double()) / seen
    weight = policy.double()[next_state.long()] * (1 - terminated.double())[:, None]
    there = torch.zeros(len(here), states, actions, dtype=torch.float64)
    there[torch.arange(len(here)), next_state.long()] = weight
    follow = (
        torch.zeros(size, size, dtype=torch.float64).index_add_(0, here, there.view(len(here), size)) / seen[:, None]
    )
    try:
        found = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - discount * follow, mean)
    except torch.linalg.LinAlgError:
        raise UsageError(
            f"the log's episodes never end under this policy, and discount {discount:g} gives such returns no bound. Lower it."
        ) from None
    return found.view(states, actions)


def _discounted(reward: Tensor, discount: float, mask: Tensor | None) -> Tensor:
    powers = discount ** torch.arange(reward.shape[1], dtype=torch.float64)
    reward = reward.double() * powers
    return reward if mask is None else reward.where(mask.bool(), torch.zeros_like(reward))


def _doubly_robust(
    weight: Tensor, before: Tensor, reward: Tensor, discount: float, q: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Terms [n, T] of weights w_t and w_{t-1}."""
    corrected = weight * _discounted(reward - q, discount, mask)
    return corrected + before * _discounted(v, discount, mask)


def _some(log_weight: Tensor) -> Tensor:
    """The weights, where at least one is above 0. Raises UsageError otherwise: nothing in the data is what the policy does."""
    if bool((log_weight.amax(0) == -torch.inf).any()):
        raise UsageError(
            "no episode has actions that the policy takes: every weight is 0. Log a behavior that covers it."
        )
    return log_weight
