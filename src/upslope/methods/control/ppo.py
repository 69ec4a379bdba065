"""PPO: several epochs over what was played, while a clip takes the gradient from actions whose ratio has moved far enough.

    delta   r + gamma V(s') - V(s), V(s') being 0 where the episode terminated                              [N, S]
    A       sum over s >= t of (gamma lam)^(s-t) delta_s, within the episode                                [N, S]
    returns A + V, V as it was when the steps were played                                                   [N, S]
    r       pi(a|s) / pi_old(a|s), of the whole action
    loss    mean over the mini-batch of max(-A r, -A clip(r, 0.8, 1.2)) - 0.01 entropy, A of mean 0 and std 1 in the mini-batch,
            + 0.5 * mean of max((V' - returns)^2, (clip(V', V -+ 0.2) - returns)^2) / 2, in one optimizer step

Differs from a2c:  the clipped ratio, which lets 4 epochs of 4 mini-batches use each rollout; generalized advantages with
    lam = 0.95, normalised in each mini-batch; the clipped value; Adam, its rate falling to 0.
Limits:  one epoch of one mini-batch without a clip and without normalising is a2c's gradient. Where the policy has not moved,
    the clipped and the plain gradient are the same. lam = 1: returns; lam = 0: one step.
Expects:  an environment, discrete or continuous. For continuous actions take ppo@continuous.
Source:  Schulman et al. 2017 (arXiv:1707.06347), eq. 7 and 9; the details as in OpenAI's baselines (ppo2), after Engstrom et al.
    2020 (arXiv:2005.12729), Andrychowicz et al. 2021 (arXiv:2006.05990) and Huang et al. 2022 ("The 37 Implementation
    Details of PPO"), whose code is cleanrl's ppo.py, as are the numbers here. Each detail is a setting. With twice the copies a
    step has twice the actions for as many updates: CartPole-v1 takes nearly twice the actions.
    ppo@fast is for CartPole-v1 and problems as small: 64 copies, and a tenth of rl-zoo's optimizer steps for each action, at four
    times its rate. It was chosen among four such settings on seeds 101 to 103, by time to a return of 475.
Deviations:  a time limit is no end: what was reached is worth V; cleanrl takes it for 0. Observations are normalised by moments
    that change between updates, not between steps; rewards by those of the whole rollout. The rate falls with every optimizer
    step instead of every rollout.
Not this:  PPO for language models: ppo_llm. The penalty on the KL instead of the clip (section 4 of the paper).
"""

from upslope.methods.control.a2c import a2c
from upslope.parts.gae import GAE
from upslope.parts.network import MLP
from upslope.parts.normalize import NormalizedAdvantage, ScaledReward
from upslope.parts.steps import Optimizer, Steps, StepUpdate
from upslope.parts.surrogate import ClippedRatio, ScheduledClip
from upslope.parts.value import ClippedValue
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="1707.06347", title="Proximal Policy Optimization Algorithms", parent="a2c")
def ppo() -> Recipe:
    return a2c().replace(
        rollout=Steps(environments=4, steps=128),
        critic=ClippedValue(clip=0.2),
        advantage=GAE(gamma=0.99, lam=0.95, whiten=False),
        control=NormalizedAdvantage(),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.2),
        update=StepUpdate(minibatches=4, epochs=4, value_coefficient=0.5),
        optimizer=Optimizer(lr=2.5e-4, eps=1e-5, schedule="linear", grad_clip=0.5),
    )


@preset("continuous", version="cleanrl ppo_continuous_action.py, fe8d8a0")
def ppo_continuous() -> Recipe:
    return ppo().replace(
        policy=MLP(hidden=(64, 64), activation="tanh", normalize=True),
        rollout=Steps(environments=1, steps=2048),
        reward=ScaledReward(gamma=0.99, clip=10.0),
        regularizer=None,
        update=StepUpdate(minibatches=32, epochs=10, value_coefficient=0.5),
        optimizer=Optimizer(lr=3e-4, eps=1e-5, schedule="linear", grad_clip=0.5),
    )


@preset("sb3", version="Stable-Baselines3 2.9.2")
def ppo_sb3() -> Recipe:
    return ppo().replace(
        rollout=Steps(environments=1, steps=2048),
        critic=ClippedValue(clip=None),
        surrogate=ScheduledClip(ratio_low=0.8, ratio_high=1.2),
        regularizer=None,
        update=StepUpdate(
            minibatches=32, epochs=10, value_coefficient=1.0
        ),  # of half the square: their 0.5 of the whole
        optimizer=Optimizer(lr=3e-4, eps=1e-5, grad_clip=0.5),
    )


@preset("fast", version="of our own: small networks, many copies, few optimizer steps for each action")
def ppo_fast() -> Recipe:
    return ppo().replace(
        rollout=Steps(environments=64, steps=32),
        critic=ClippedValue(clip=None),
        advantage=GAE(gamma=0.98, lam=0.8, whiten=False),
        regularizer=None,
        update=StepUpdate(minibatches=4, epochs=4, value_coefficient=1.0),
        optimizer=Optimizer(lr=4e-3, eps=1e-5, schedule="linear", grad_clip=0.5),
    )
