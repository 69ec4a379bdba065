"""N-HARPG: HARPG whose steps have a length of their own, whatever the gradient's.

    u_t     (1 - eta_t)(u_{t-1} + v_t) + eta_t g(theta_t), as in harpg;   eta_t = 2 / (t + 2)
    theta   theta + lr_t u_t / |u_t|;   lr_t = 0.1 * 2 / (t + 2)

Differs from harpg:  the step is normalised, and falls as 1 / t.
Limits:  eta = 1 for all t is the normalised policy gradient.
Expects:  as harpg.
Source:  Fatkhullin et al. 2023 (arXiv:2302.01734), algorithm 2.
Deviations:  those of harpg.
Not this:  n_pg_igt, which needs no second episodes and no Hessian.
Claim:  eps^-2 trajectories to within eps of the best policy: not reproduced on a table of logits, which is outside the theorem
    (benchmarks/sample_complexity.py, 40 runs): the gap's slope is -0.21 [-0.29, -0.15] for the mean and -0.60 [-0.89, -0.15]
    for the median run, the plain gradient's -0.36 [-0.56, -0.23] and -0.76 [-0.82, -0.70].
"""

from upslope.methods.control.harpg import harpg
from upslope.parts.momentum import HessianMomentum
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2302.01734",
    title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
    parent="harpg",
)
def n_harpg() -> Recipe:
    return harpg().replace(optimizer=HessianMomentum(lr=0.1, lr_decay=1.0, eta=1.0, eta_decay=1.0, normalized=True))
