"""CQL: SAC on a log, with a penalty on the values of actions that the log does not have.

    cat      Q_j(s, a) - log density(a) over n uniform a, n of pi(.|s), n of pi(.|s') (density at s'), all asked at s  [B, 3n]
    gap_j    T logsumexp(cat / T) - Q_j(s, a_logged)                                                                  [B]
    critic   sum over j of mean (Q_j(s, a) - y)^2 + alpha_cql mean gap_j                                         Q [2, B]
    y        r + gamma (1 - d) min_j Q'_j(s', a'),  a' ~ pi(.|s'): no entropy                                         [B]
    actor, temperature: as sac

Differs from sac:  the penalty; no entropy in the target; three hidden layers in the critics; the actor's lr 3e-5.
Limits:  alpha_cql = 0 (penalty.coefficient) is sac without entropy in the target.
Expects:  a log (--data).
Source:  Kumar et al. 2020 (arXiv:2006.04779), equation 4, CQL(H); corl-team/CORL, algorithms/offline/cql.py.
Deviations:  alpha_cql = 10 (CORL); no maximum over n next actions; observations as logged. The Lagrange form, which scales the
    penalty so that gaps come to a target, is penalty.target_gap=0.8 (for antmaze, with penalty.coefficient=5).
Not this:  the form without importance weights, which subtracts a count's logarithm.
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum 98
    (+107.2 [+103.0, +111.3], 3 seeds); pointmaze 19 (+34.7 [+21.7, +47.7], 2 seeds).
"""

from upslope.actor_critic.critics import ConservativeGap, Critics, SoftTarget, SquaredError
from upslope.actor_critic.data import Updates
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offpolicy.sac import sac
from upslope.registry import method


@method(paper="2006.04779", title="Conservative Q-Learning for Offline Reinforcement Learning", parent="sac")
def cql() -> ActorCritic:
    return sac().replace(
        critic=Critics(hidden=(256, 256, 256)),
        target=SoftTarget(entropy=False),
        regression=SquaredError(),
        penalty=ConservativeGap(),
        update=Updates(actor_lr=3e-5),
    )
