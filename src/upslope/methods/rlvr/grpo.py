"""GRPO: the reward against its group's mean, over its group's standard deviation.

    A_i   (R_i - mean of group) / (standard deviation of group + eps), copied to the tokens            [R]
    r     exp(logp - old_logp)                                                                         [R, T]
    loss  mean over sequences of the mean over tokens of max(-A r, -A clip(r, 0.8, 1.2)) + beta k3

Differs from reinforce:  the group's mean as baseline and its deviation as scale; the clipped ratio; k3 against the reference.
Limits:  rewards mapped by a positive affine function give the same A; at r = 1 without KL it is reinforce with this A.
Expects:  two or more completions per prompt. A lone one, or a group of equal rewards, has A = 0.
Source:  DeepSeekMath (arXiv:2402.03300), eq. 3 and 4; sample deviation and eps as in TRL and verl.
Deviations:  the paper does not say which standard deviation; the sample one (n - 1) is used, eps = 1e-6.
Not this:  TRL's default today has beta = 0 and a token mean (loss_type="dapo"): grpo@trl. Dual clip and a lone reward: grpo@verl.
"""

from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import SequenceMean, TokenMean
from upslope.parts.kl import KL
from upslope.parts.sampling import Sample, Uniform, Update
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(
    paper="2402.03300",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    parent="reinforce",
)
def grpo() -> Recipe:
    return Recipe(
        curriculum=Uniform(),
        rollout=Sample(group_size=8),
        advantage=GroupBaseline(baseline="mean", scale="sample_std", eps=1e-6),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.2),
        regularizer=KL(beta=0.04, estimator="k3"),
        aggregate=SequenceMean(),
        update=Update(),
    )


@preset("deepseekmath", version="2402.03300")
def grpo_deepseekmath() -> Recipe:
    return grpo().replace(rollout=Sample(group_size=64))


@preset("trl", version="1.16.0")
def grpo_trl() -> Recipe:
    return grpo().replace(advantage=GroupBaseline(eps=1e-4), regularizer=None, aggregate=TokenMean())


@preset("verl", version="018f23b")
def grpo_verl() -> Recipe:
    advantage = GroupBaseline(eps=1e-6, lone="reward")
    return grpo().replace(
        advantage=advantage, surrogate=ClippedRatio(0.8, 1.2, dual=3.0), regularizer=None, aggregate=TokenMean()
    )
