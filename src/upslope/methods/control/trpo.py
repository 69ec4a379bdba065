"""TRPO: the natural gradient's step, shortened until the KL itself keeps to its bound and the objective has improved.

    r       pi(a|s) / pi_old(a|s)
    L       mean over transitions of A r;  its gradient at the old policy is npg's g
    x, a    F x = g,  a = sqrt(2 max_kl / (x F x)), as in npg
    theta   theta + 0.8^j a x, with the first j of 0 .. 9 for which mean KL(old || new) <= max_kl and L has not fallen;
            theta as it was if there is none

Differs from npg:  the line search, and the ratio, without which the objective says nothing away from the old policy.
Limits:  max_kl -> 0 leaves the policy alone. With one try, and that accepted, it is npg's step.
Expects:  an environment, discrete or continuous; a distribution whose KL has a closed form, so no mixtures.
Source:  Schulman et al. 2015 (arXiv:1502.05477), appendix C; the numbers as in OpenAI's Spinning Up. improvement=0.1 is what
    their older code (modular_rl) asks of a step: a tenth of what the gradient foretells.
Deviations:  those of npg. F is of all the states played; the paper takes a tenth of them.
Not this:  the penalised objective of the paper's section 3, and its vines.
"""

from upslope.methods.control.npg import npg
from upslope.parts.natural import TrustRegion
from upslope.parts.surrogate import ImportanceRatio
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="1502.05477", title="Trust Region Policy Optimization", parent="npg")
def trpo() -> Recipe:
    return npg().replace(
        surrogate=ImportanceRatio(),
        optimizer=TrustRegion(max_kl=0.01, damping=0.1, iterations=10, critic_lr=1e-3, backtrack=0.8, tries=10),
    )
