"""IQL: the value of the best logged actions by expectile regression; no action that the log lacks is ever asked about.

    u        min_j Q'_j(s, a) - V(s)                                                                                  [B]
    V        mean of |tau - 1[u < 0]| u^2, Q' without gradient;  tau = 0.7
    critic   mean over j of mean (Q_j(s, a) - r - gamma (1 - d) V(s'))^2, V without gradient                     Q [2, B]
    actor    - mean of w log pi(a|s),  w = min(exp(beta u), 100) without gradient;  beta = 3
    pi       N(tanh(mu(s)), sigma^2), sigma not of s
    rewards  times 1000 / (largest - smallest return of the log's episodes)

Limits:  tau = 1/2: V is the mean, SARSA's. beta = 0: bc by likelihood. With A of awac in place of u: awac's actor.
Expects:  a log (--data). Where what steps earn differs much, tau above 1/2 can make V so large that to end an episode looks bad:
    docs/results/offline.md
Source:  Kostrikov et al. 2021 (arXiv:2110.06169); ikostrikov/implicit_q_learning, learner.py: V, then the actor with the new V,
    then Q.
Deviations:  losses of the critics are averaged (CORL); the authors' are summed, which Adam does not see. Observations as logged;
    CORL standardizes (data.standardize). Evaluated at the mean action. The authors' runs that play on, in AntMaze, keep the
    actor's rate: update.actor_schedule=constant.
Not this:  AntMaze: value.tau=0.9 weight.beta=10 and rewards less 1, reward=Affine(shift=-1).
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum 94
    (+103.9 [+97.9, +108.6], 5 seeds); pointmaze 87 (+95.2 [+86.9, +106.0], 4 seeds); cheetah 55 (+50.7 [+49.3, +52.0], 3
    seeds).
"""

from upslope.actor_critic.actors import Exponential, Likelihood, OverValue
from upslope.actor_critic.critics import Critics, Expectile, Lowest, SquaredError, ValueTarget
from upslope.actor_critic.data import Average, Interact, ReturnRange, Transitions, Updates
from upslope.actor_critic.policies import BOUNDED
from upslope.actor_critic.recipe import ActorCritic
from upslope.registry import method


@method(paper="2110.06169", title="Offline Reinforcement Learning with Implicit Q-Learning")
def iql() -> ActorCritic:
    return ActorCritic(
        rollout=Interact(),
        data=Transitions(),
        reward=ReturnRange(),
        policy=BOUNDED,
        critic=Critics(),
        value=Expectile(),
        ensemble=Lowest(),
        target=ValueTarget(),
        regression=SquaredError(across="mean"),
        advantage=OverValue(),
        weight=Exponential(),
        actor=Likelihood(),
        targets=Average(),
        update=Updates(first="actor", actor_schedule="cosine"),
    )
