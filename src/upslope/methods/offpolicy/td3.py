"""TD3: twin critics, a delayed actor, and noise on the target's action.

    a'       clip(pi'(s') + clip(0.2 N(0, 1), -0.5, 0.5), -1, 1)                                                   [B, A]
    y        r + gamma (1 - d) min_j Q'_j(s', a')                                                                     [B]
    critic   sum over j of mean (Q_j(s, a) - y)^2                                                                Q [2, B]
    actor    - mean Q_1(s, pi(s)), every second update; then Q', pi' <- (1 - tau) target + tau online
    played   clip(pi(s) + 0.1 N(0, 1), -1, 1)

Limits:  actor_every = targets.every = 1, noise 0 and one critic is DDPG. tau = 1: the targets are the networks.
Expects:  continuous actions with finite bounds; all of this is in units in which they reach from -1 to 1. d is 0 where
    time was up.
Source:  Fujimoto et al. 2018 (arXiv:1802.09477); sfujim/TD3, TD3.py.
Deviations:  1000 uniform actions first, as the paper has it for all tasks but two; the code has 25,000 (rollout.warmup).
    On a log (--data) observations are standardized, as td3_bc's are; without one data.standardize does nothing.
Not this:  cleanrl's actor learns from the same batch twice per delay; here once, as the authors'.
"""

from dataclasses import replace

from upslope.actor_critic.actors import MaximizeQ
from upslope.actor_critic.critics import Critics, Lowest, SmoothedTarget, SquaredError
from upslope.actor_critic.data import Average, Interact, Noise, Transitions, Updates
from upslope.actor_critic.policies import DETERMINISTIC
from upslope.actor_critic.recipe import ActorCritic
from upslope.registry import method, preset


@method(paper="1802.09477", title="Addressing Function Approximation Error in Actor-Critic Methods")
def td3() -> ActorCritic:
    return ActorCritic(
        rollout=Interact(warmup=1000),
        exploration=Noise(),
        data=Transitions(standardize=True),
        policy=DETERMINISTIC,
        critic=Critics(),
        ensemble=Lowest(),
        target=SmoothedTarget(),
        regression=SquaredError(),
        actor=MaximizeQ(critics="first"),
        targets=Average(every=2),
        update=Updates(actor_every=2),
    )


@preset("sb3", version="Stable-Baselines3 2.9.2")
def td3_sb3() -> ActorCritic:
    return td3().replace(
        rollout=Interact(warmup=100),
        exploration=None,
        policy=replace(DETERMINISTIC, hidden=(400, 300)),
        critic=Critics(hidden=(400, 300)),
        update=Updates(actor_every=2, actor_lr=1e-3, critic_lr=1e-3),
    )
