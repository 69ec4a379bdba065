"""SAC: soft actor-critic, whose temperature holds the policy's entropy at a target.

    a, log pi   a = tanh(u), u ~ N(mu(s), sigma(s)^2);  log pi = sum over A of log N(u) - 2 (log 2 - u - softplus(-2u))   [B]
    y           r + gamma (1 - d) (min_j Q'_j(s', a') - alpha log pi(a'|s')),  a' ~ pi(.|s'), no gradient               [B]
    critic      sum over j of 1/2 mean (Q_j(s, a) - y)^2                                                           Q [2, B]
    actor       mean of alpha log pi(a|s) - min_j Q_j(s, a),  a ~ pi(.|s) reparametrised
    alpha       exp(x);  x descends -x mean(log pi(a|s) - A),  A the number of action dimensions
    targets     Q' <- (1 - tau) Q' + tau Q after every update

Limits:  alpha = 0 and sigma -> 0 is td3 without delay and smoothing. Where mean log pi = A, alpha rests.
Expects:  continuous actions with finite bounds. d is 1 where the episode ended for good, 0 where time was up. log pi is that
    of the action in (-1, 1): the environment's own scale does not move the target of the entropy.
Source:  Haarnoja et al. 2018 (arXiv:1812.05905), sections 5 and 6; rail-berkeley/softlearning, softlearning/algorithms/sac.py.
Deviations:  1000 uniform actions first (theirs: 1k to 10k by task). x has no factor alpha in its gradient;
    temperature.gradient="alpha" has it. One critic update, one actor update and one action per step. sac@cleanrl updates the
    actor once a step, theirs twice every second one, and its log pi is of the action in (-1, 1), theirs in the environment's units.
Not this:  softlearning's later code takes the mean of the two Q in the actor's loss: actor.critics="mean".
"""

from dataclasses import replace

from upslope.actor_critic.actors import MaximizeQ
from upslope.actor_critic.critics import Critics, Lowest, SoftTarget, SquaredError
from upslope.actor_critic.data import Average, Interact, Transitions, Updates
from upslope.actor_critic.policies import ACTOR
from upslope.actor_critic.recipe import ActorCritic
from upslope.actor_critic.temperature import Automatic, Constant
from upslope.registry import method, preset


@method(paper="1812.05905", title="Soft Actor-Critic Algorithms and Applications", aliases=("sac_auto",))
def sac() -> ActorCritic:
    return ActorCritic(
        rollout=Interact(warmup=1000),
        data=Transitions(),
        policy=ACTOR,
        critic=Critics(),
        ensemble=Lowest(),
        target=SoftTarget(),
        regression=SquaredError(factor=0.5),
        actor=MaximizeQ(),
        temperature=Automatic(),
        targets=Average(),
        update=Updates(),
    )


@preset("cleanrl", version="1.0.0")
def sac_cleanrl() -> ActorCritic:
    return sac().replace(
        rollout=Interact(warmup=5000),
        policy=replace(ACTOR, log_std_low=-5.0, log_std_bound="tanh"),
        regression=SquaredError(),
        temperature=Automatic(lr=1e-3, gradient="alpha"),
        update=Updates(critic_lr=1e-3),
    )


@preset("sb3", version="Stable-Baselines3 2.9.2")
def sac_sb3() -> ActorCritic:
    return sac().replace(rollout=Interact(warmup=100))


@preset("constant", version="a temperature that is given, 0.2 as in OpenAI's Spinning Up")
def sac_constant() -> ActorCritic:
    return sac().replace(temperature=Constant(alpha=0.2))
