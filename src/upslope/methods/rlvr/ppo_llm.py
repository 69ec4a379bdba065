"""PPO for language models: a critic's value for every token, generalized advantages, clipped ratio and clipped value.

    rho     reward at the last token - beta (old_logp - ref_logp) at every token                           [R, T]
    A       sum over s >= t of (gamma lam)^(s-t) (rho_s + gamma V_{s+1} - V_s), V the critic's old value   [R, T]
    returns A + V; then A is whitened over the batch's tokens                                              [R, T]
    loss    mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.2))
    critic  mean over the batch's tokens of max((V' - returns)^2, (clip(V', V - 0.2, V + 0.2) - returns)^2) / 2

Differs from reinforce:  the critic and its generalized advantage; k1 in the reward; the clipped ratio; the token mean.
Limits:  V = 0 and lam = 1 without whitening: A is the return, reinforce. V = b everywhere: reinforce with the baseline b.
Expects:  a critic (the columns old_value and value); one completion per prompt is enough. Tool text is stepped over.
    The critic is a second model, scored and trained: a step takes about twice as long as grpo's.
Source:  Schulman et al. 2017 (arXiv:1707.06347), eq. 7; for language models Ouyang et al. 2022 (arXiv:2203.02155); clipping of
    the value and whitening as in Schulman's baselines, TRL's former PPOTrainer and verl.
Deviations:  the critic has its own loss and optimizer, as usual for language models; the paper adds c1 times its loss.
Not this:  verl's defaults: lam = 1, no KL, dual clip at 3, values clipped within 0.5: ppo_llm@verl. An entropy bonus.
"""

from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.aggregate import TokenMean
from upslope.parts.gae import GAE
from upslope.parts.kl import KLInReward
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import ClippedRatio
from upslope.parts.value import ClippedValue
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="1707.06347", title="Proximal Policy Optimization Algorithms", parent="reinforce")
def ppo_llm() -> Recipe:
    return reinforce().replace(
        rollout=Sample(group_size=1),
        reward=KLInReward(beta=0.01, level="token"),
        critic=ClippedValue(clip=0.2),
        advantage=GAE(gamma=1.0, lam=0.95),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.2),
        aggregate=TokenMean(),
        update=Update(minibatches=4),
    )


@preset("verl", version="018f23b")
def ppo_llm_verl() -> Recipe:
    return ppo_llm().replace(
        reward=None,
        critic=ClippedValue(clip=0.5),
        advantage=GAE(gamma=1.0, lam=1.0),
        surrogate=ClippedRatio(0.8, 1.2, dual=3.0),
        update=Update(),
    )
