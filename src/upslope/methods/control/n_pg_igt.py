"""N-PG-IGT: momentum, normalised steps, and episodes played ahead of the parameters, so that old gradients stay right.

    theta~  theta_t + ((1 - eta_t) / eta_t) (theta_t - theta_{t-1});  the episodes of step t are played with it
    Psi     sum over s >= h of gamma^s r_s, less a baseline, discounted from the episode's start            [R, T]
    g       mean over episodes of the sum over h of Psi_h grad log pi(a_h|s_h), at theta~                   [P]
    d_t     (1 - eta_t) d_{t-1} + eta_t g,  d_0 = g;   eta_t = (2 / (t + 2))^0.8
    theta   theta + lr_t d_t / |d_t|;   lr_t = 0.1 * 2 / (t + 2)

Differs from reinforce:  the average of gradients instead of the last one; the look-ahead; the normalised step; the discount
    counts from the episode's start.
Limits:  eta = 1 for all t (eta=1, eta_decay=0): the normalised policy gradient. Where the gradient is linear in theta and
    exact, d_t is the gradient at theta_t.
Expects:  an environment; whole episodes. One update for a rollout.
Source:  Fatkhullin et al. 2023 (arXiv:2302.01734), algorithm 1 and section 5; transport: Cutkosky and Mehta 2020.
Deviations:  8 episodes for a step and the others' mean return as the baseline; theirs is a batch of 1000 steps with a baseline
    linear in features. (1 - eta) / eta is kept within 1000.
Not this:  importance sampling: nothing is reweighted. STORM's differences of gradients.
Claim:  eps^-2.5 trajectories to within eps of the best policy, the plain gradient eps^-3: not reproduced on a table of logits
    (benchmarks/sample_complexity.py, 40 runs), which is outside the theorem: the gap's slope is -0.20 [-0.30, -0.13], the plain
    gradient's -0.36 [-0.56, -0.23]. The average's error is 30 times less than a gradient's, and a seventh to a third less
    than without the look-ahead.
"""

from upslope.methods.rlvr.reinforce import ReturnBaseline, reinforce_control
from upslope.parts.discount import FromStart
from upslope.parts.momentum import LookAhead
from upslope.parts.steps import Episodes
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2302.01734",
    title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
    parent="reinforce",
)
def n_pg_igt() -> Recipe:
    return reinforce_control().replace(
        rollout=Episodes(episodes=8, environments=8),
        advantage=ReturnBaseline(baseline="leave_one_out", gamma=0.99),
        weight=FromStart(gamma=0.99),
        optimizer=LookAhead(lr=0.1, lr_decay=1.0, eta=1.0, eta_decay=0.8),
    )
