"""SAC-N: SAC on a log, with many critics and the least of all of them.

    y        r + gamma (1 - d) (min over all N of Q'_j(s', a') - alpha log pi(a'|s')),  a' ~ pi(.|s')                 [B]
    critic   sum over j of mean (Q_j(s, a) - y)^2                                                                Q [N, B]
    actor    mean of alpha log pi(a|s) - min over all N of Q_j(s, a)

Differs from sac:  N = 10 critics with three hidden layers; actor and temperature go before the critics.
Limits:  N = 2 is sac. The least of N is as a penalty of so many of the critics' deviations: 0.57 of N = 2, 1.54 of 10, 2.25 of 50.
Expects:  a log (--data). N from 10 to 500 by task: critic.members.
Source:  An et al. 2021 (arXiv:2110.01548), section 3; corl-team/CORL, algorithms/offline/sac_n.py.
Deviations:  N = 10, as edac's, so that the two differ by one penalty; biases start as torch's, theirs at 0.1. The temperature
    moves after the actor, theirs before it.
Not this:  redq, whose targets take the least of two random ones.
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum 102
    (+110.9 [+105.2, +117.6], 3 seeds).
"""

from dataclasses import replace

from upslope.actor_critic.critics import Critics, SquaredError
from upslope.actor_critic.data import Updates
from upslope.actor_critic.policies import ACTOR
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offpolicy.sac import sac
from upslope.registry import method


@method(
    paper="2110.01548",
    title="Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble",
    parent="sac",
)
def sac_n() -> ActorCritic:
    widths = (256, 256, 256)
    return sac().replace(
        policy=replace(ACTOR, hidden=widths, log_std_low=-5.0),
        critic=Critics(members=10, hidden=widths),
        regression=SquaredError(),
        update=Updates(first="actor"),
    )
