"""A2C: the policy gradient of a few steps in many copies of the environment, with a learned value as the baseline.

    delta   r + gamma V(s') - V(s), V(s') being 0 where the episode terminated                              [N, S]
    A       sum over s >= t of gamma^(s-t) delta_s, within the episode: the return of the steps played, what
            the last of them led to being worth V, less V(s)                                                [N, S]
    loss    mean over transitions of -A logp - 0.01 entropy + 0.5 (V - A - V_old)^2 / 2, in one step

Differs from reinforce:  a critic, whose value is the baseline and stands for what was not played; an entropy bonus; the mean
    over transitions instead of the sum over an episode; rollouts that go on over updates.
Limits:  without the critic's terms and with whole episodes, reinforce with gamma < 1. It is ppo's gradient where the policy has
    not moved: one epoch of one mini-batch, no clip, advantages as they are.
Expects:  an environment; many copies, since the steps of one are alike. One update per rollout: nothing corrects for a policy
    that has moved.
Source:  Mnih et al. 2016 (arXiv:1602.01783), algorithm S3, played in lockstep as in OpenAI's baselines (a2c); RMSprop at 7e-4,
    5 steps and the coefficients as there.
Deviations:  a time limit is no end: what was reached is worth V (theirs takes it for 0). The critic's loss has baselines' 0.5 on
    half the squared error, so a quarter of the square: theirs is half of it (value_coefficient=1 is theirs).
Not this:  A3C's asynchronous actors; generalized advantages (lam=0.95).
"""

from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.aggregate import TokenMean
from upslope.parts.gae import GAE
from upslope.parts.network import MLP
from upslope.parts.steps import Optimizer, Steps, StepUpdate
from upslope.parts.surrogate import EntropyLoss
from upslope.parts.value import ClippedValue
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="1602.01783", title="Asynchronous Methods for Deep Reinforcement Learning", parent="reinforce")
def a2c() -> Recipe:
    return reinforce().replace(
        curriculum=None,
        policy=MLP(hidden=(64, 64), activation="tanh"),
        rollout=Steps(environments=8, steps=5),
        critic=ClippedValue(clip=None),
        advantage=GAE(gamma=0.99, lam=1.0, whiten=False),
        regularizer=EntropyLoss(coefficient=0.01),
        aggregate=TokenMean(),
        update=StepUpdate(minibatches=1, epochs=1, value_coefficient=0.5),
        optimizer=Optimizer(lr=7e-4, kind="rmsprop", eps=1e-5, grad_clip=0.5),
    )


@preset("sb3", version="Stable-Baselines3 2.9.2")
def a2c_sb3() -> Recipe:
    return a2c().replace(
        rollout=Steps(environments=1, steps=5),
        regularizer=None,
        update=StepUpdate(minibatches=1, epochs=1, value_coefficient=1.0),  # of half the square: their 0.5 of the whole
    )
