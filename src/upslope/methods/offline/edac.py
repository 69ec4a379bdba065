"""EDAC: SAC-N whose critics are kept from agreeing on which way to move the action.

    g_j      dQ_j/da at logged actions, scaled to length 1                                                      [N, B, A]
    ES       mean over B of sum over i != j of <g_i, g_j> / (N - 1)
    critic   sum over j of mean (Q_j(s, a) - y)^2 + eta ES;  y and actor as sac_n

Differs from sac_n:  the penalty eta ES.
Limits:  eta = 0 is sac_n; N identical critics have ES = N.
Expects:  a log (--data). eta 0, 1 or 5 by task (penalty.eta); N = 10, or 50 for Hopper. Gradients of gradients: about twice
    the time of sac_n.
Source:  An et al. 2021 (arXiv:2110.01548), equation 7; corl-team/CORL, algorithms/offline/edac.py. Each pair counts twice.
Deviations:  as sac_n's.
Not this:  a penalty on the values' agreement, which would be noise.
Claim:  above sac_n of as many critics: not reproduced in the study "offline" (medium-replay; normalized score, difference
    paired by seed): pendulum 101 (-0.1 [-0.2, -0.0], 3 seeds).
"""

from upslope.actor_critic.critics import Diversity
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offline.sac_n import sac_n
from upslope.registry import method


@method(
    paper="2110.01548",
    title="Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble",
    parent="sac_n",
)
def edac() -> ActorCritic:
    return sac_n().replace(penalty=Diversity())
