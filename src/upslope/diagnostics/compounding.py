"""How errors compound over a chain of T steps: imitation alone, and with correction on the policy's own states.

At each step on the expert's path the policy errs with probability eps and leaves it. Off the path the expert has never been, so
imitation knows nothing of it: the policy returns with probability `recovery` per step, 0 at worst. Learning on the policy's own
states (on-policy distillation, RL) learns to return, recovery = 1 - eps. A step on the path earns 1.

    steps on the path   sum over t = 1..T of P(on the path after step t)
    regret              T - steps on the path:  imitation about eps T^2 / 2 while eps T is small, with correction eps T

Source: Ross and Bagnell 2010 and Ross et al. 2011 (arXiv:1011.0686) for the two rates; Sun 2023 (arXiv:2310.06147) for RLHF as
their online side. The chain is two states, and solved exactly.
"""

import math

import numpy as np

from upslope.errors import UsageError


def on_path(eps: float, steps: int, recovery: float = 0.0) -> np.ndarray:
    """P(on the path after step t) for t = 1..steps, [steps].

    It obeys p_t = p_{t-1} (1 - eps) + (1 - p_{t-1}) recovery, so p_t = s + (1 - s) (1 - eps - recovery)^t with s = recovery /
    (eps + recovery). Without recovery, (1 - eps)^t.
    """
    if not (0 <= eps <= 1 and 0 <= recovery <= 1 and steps >= 1):
        raise UsageError(
            f"on_path(eps={eps:g}, steps={steps}, recovery={recovery:g}): probabilities in [0, 1], and at least 1 step."
        )
    settled = recovery / (eps + recovery) if eps + recovery else 1.0
    return settled + (1 - settled) * (1 - eps - recovery) ** np.arange(1, steps + 1)


def success(eps: float, steps: int) -> float:
    """(1 - eps)^steps: the chance that a policy which never returns stays on the path to the end."""
    return float(on_path(eps, steps)[-1])


def regret(eps: float, steps: int, recovery: float = 0.0) -> float:
    """Expected number of steps off the path, of `steps`."""
    return float(steps - on_path(eps, steps, recovery).sum())


def growth(eps: float, steps: int, recovery: float = 0.0) -> float:
    """Exponent k with which the regret grows, regret ~ T^k, between `steps` and twice as many: 2 compounds, 1 does not."""
    return math.log2(regret(eps, 2 * steps, recovery) / regret(eps, steps, recovery))
