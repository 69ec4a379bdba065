"""HARPG: momentum whose old gradients are moved along with the parameters by Hessian-vector products.

    theta^  q theta_t + (1 - q) theta_{t-1},  q uniform in [0, 1];  a second batch of episodes is played with it
    Phi     sum over h of Psi_h log pi(a_h|s_h), Psi constant, as in n_pg_igt
    v_t     mean over the episodes of theta^ of grad Phi <sum over h of grad log pi, delta> + (Hessian of Phi) delta,
            delta = theta_t - theta_{t-1}                                                                   [P]
    u_t     (1 - eta_t)(u_{t-1} + v_t) + eta_t g(theta_t),  u_0 = g;   eta_t = 2 / (t + 2)
    theta   theta + lr_t u_t;   lr_t = 0.001 (2 / (t + 2))^0.5

Differs from n_pg_igt:  episodes are played at theta_t itself, and as many at theta^; the Hessian's products; no normalising,
    and other decays.
Limits:  eta = 1 for all t is the policy gradient. E[v] over q and episodes is the change of the gradient of J.
Expects:  as n_pg_igt; twice the episodes for each step.
Source:  Fatkhullin et al. 2023 (arXiv:2302.01734), algorithm 2, in the form of the paper; after Salehkaleybar et al. 2022
    (arXiv:2205.08253).
Deviations:  those of n_pg_igt. As many whole episodes at theta^ as at theta_t; theirs are 32 further steps.
    lr is 0.001, theirs 0.1: on CartPole, where the first gradient's norm is 47, that makes a policy of one action in two steps,
    which has no gradient any more.
Not this:  the authors' code, in which the outer product's sign is the opposite and means over the batch are multiplied.
Claim:  eps^-2 trajectories to within eps of the best policy: not shown on a table of logits, which is outside the theorem
    (benchmarks/sample_complexity.py, 40 runs): the gap's slope is -0.38 [-0.55, -0.26] for the mean and -0.80 [-0.86, -0.69]
    for the median run, the plain gradient's -0.36 [-0.56, -0.23] and -0.76 [-0.82, -0.70].
"""

from upslope.methods.control.n_pg_igt import n_pg_igt
from upslope.parts.momentum import HessianMomentum
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2302.01734",
    title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
    parent="n_pg_igt",
)
def harpg() -> Recipe:
    return n_pg_igt().replace(
        optimizer=HessianMomentum(lr=0.001, lr_decay=0.5, eta=1.0, eta_decay=1.0, normalized=False)
    )
