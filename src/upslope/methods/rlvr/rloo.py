"""RLOO: REINFORCE with the mean reward of the prompt's other completions as baseline.

    R_i   reward_i - beta * sum over tokens of (old_logp - ref_logp)                                       [R]
    A_i   R_i - mean of R over the other completions of the prompt = G / (G - 1) * (R_i - mean of all G)   [R]
    loss  mean over sequences of -A_i * sum over tokens of logp

Differs from reinforce:  the baseline, by prompt and leaving the row out; the KL penalty folded into the reward.
Limits:  A = G / (G - 1) times that of dr_grpo; unbiased for every G. Two completions: A = R_1 - R_2 and its negative.
Expects:  two or more completions per prompt; a lone one has nothing to compare with and gets A = 0.
Source:  Ahmadian et al. 2024 (arXiv:2402.14740), eq. 8; beta = 0.03 and G = 4 as in its experiments.
Deviations:  none known; the whole completion is one action, as in the paper.
Not this:  TRL clips the ratio of the whole sequence, rloo@trl; verl clips token by token with a token mean, rloo@verl.
"""

from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean, TokenMean
from upslope.parts.kl import KLInReward
from upslope.parts.sampling import Sample
from upslope.parts.surrogate import ClippedRatio, ClippedSequenceRatio
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(
    paper="2402.14740",
    title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    parent="reinforce",
)
def rloo() -> Recipe:
    return reinforce().replace(
        rollout=Sample(group_size=4),
        reward=KLInReward(beta=0.03, level="sequence"),
        advantage=GroupBaseline(baseline="leave_one_out", scale=None),
    )


@preset("trl", version="1.16.0")
def rloo_trl() -> Recipe:
    return rloo().replace(
        rollout=Sample(group_size=2),
        reward=KLInReward(beta=0.05, level="sequence"),
        surrogate=ClippedSequenceRatio(0.8, 1.2, length_normalized=False),
        aggregate=RowMean(),
    )


@preset("verl", version="018f23b")
def rloo_verl() -> Recipe:
    return rloo().replace(
        reward=None,
        advantage=GroupBaseline(baseline="leave_one_out", scale=None, lone="reward"),
        surrogate=ClippedRatio(0.8, 1.2, dual=3.0),
        aggregate=TokenMean(),
    )
