"""BC: behaviour cloning, which does what the log does.

    loss   mean over B and A of (mu(s) - a)^2,  a as logged                                                        [B, A]

Limits:  actor=Likelihood() with policy.distribution=bounded is the Gaussian form, -mean log N(a; mu(s), sigma). iql and awac with
    beta = 0, td3_bc with alpha -> 0.
Expects:  a log (--data). Rewards are not read. Observations are standardized by the log's mean and variance.
Source:  Pomerleau 1991; corl-team/CORL, algorithms/offline/any_percent_bc.py.
Deviations:  standardized over sqrt(variance + 1e-8); CORL's over deviation + 0.001.
Not this:  the best tenth of the episodes alone (%BC), a filter of the log.
"""

from upslope.actor_critic.actors import Imitation
from upslope.actor_critic.data import Interact, Transitions, Updates
from upslope.actor_critic.policies import DETERMINISTIC
from upslope.actor_critic.recipe import ActorCritic
from upslope.registry import method


@method(paper="Pomerleau 1991", title="Efficient Training of Artificial Neural Networks for Autonomous Navigation")
def bc() -> ActorCritic:
    return ActorCritic(
        rollout=Interact(),
        data=Transitions(standardize=True),
        policy=DETERMINISTIC,
        actor=Imitation(),
        update=Updates(),
    )
