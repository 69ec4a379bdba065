"""AWAC: the likelihood of logged actions, weighted by how much better the critic finds them than the policy's own.

    y        r + gamma (1 - d) min_j Q'_j(s', a'),  a' ~ pi(.|s')                                                     [B]
    critic   sum over j of mean (Q_j(s, a) - y)^2                                                                Q [2, B]
    A        min_j Q_j(s, a) - min_j Q_j(s, a_pi),  a_pi one sample of pi(.|s)                                        [B]
    actor    - mean of w log pi(a|s),  w = min(exp(A / lambda), 100) without gradient;  lambda = 1, so beta = 1

Differs from iql:  no V: the target and A are of the policy's own actions; beta = 1; rewards as they are; the critic goes first.
Limits:  beta = 0 (lambda infinite): bc by likelihood. With u of iql in place of A: iql's actor.
Expects:  a log (--data); with --task and rollout.offline_steps=N it plays on after N steps.
Source:  Nair et al. 2020 (arXiv:2006.09359); corl-team/CORL, algorithms/offline/awac.py.
Deviations:  the authors scale w by a softmax over the batch; here as CORL, cut at 100. N(tanh(mu(s)), sigma^2) as iql's.
Not this:  awr, whose A is of returns and not of a critic.
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum 99
    (+110.7 [+105.7, +115.6], 4 seeds); pointmaze 28 (+36.9 [+27.2, +45.4], 4 seeds).
"""

from upslope.actor_critic.actors import Exponential, OverPolicy
from upslope.actor_critic.critics import SoftTarget, SquaredError
from upslope.actor_critic.data import Updates
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offline.iql import iql
from upslope.registry import method


@method(
    paper="2006.09359",
    title="AWAC: Accelerating Online Reinforcement Learning with Offline Datasets",
    parent="iql",
)
def awac() -> ActorCritic:
    return iql().replace(
        reward=None,
        value=None,
        target=SoftTarget(entropy=False),
        regression=SquaredError(),
        advantage=OverPolicy(),
        weight=Exponential(beta=1.0),
        update=Updates(),
    )
