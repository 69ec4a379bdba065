"""GSPO: one ratio per sequence, the geometric mean of its tokens' ratios, clipped as a whole.

    A_i   (R_i - mean of group) / (standard deviation of group + eps)                                      [R]
    s_i   exp(mean over tokens of logp - old_logp)                                                         [R]
    loss  mean over sequences of max(-A s, -A clip(s, 1 - 3e-4, 1 + 4e-4))

Differs from grpo:  the ratio, per sequence; its narrow interval; no KL.
Limits:  at s = 1 (one update per batch of rollouts) it is grpo with beta = 0; with one token it is ppo's clip. The order of
    logp - old_logp within a sequence does not matter.
Expects:  several updates per batch of rollouts: with one, nothing is ever clipped. A clipped sequence drops all its tokens.
Source:  Zheng et al. 2025 (arXiv:2507.18071), eq. 5 to 7; four mini-batches.
Deviations:  none known; verl's and TRL's token form has the same value and gradient.
Not this:  grpo's interval (0.8, 1.2), which a mean over tokens never leaves. GSPO-token, whose advantage differs by token. The
    ratio of the whole sequence, a sum in the exponent: length_normalized=False, as in rloo@trl.
Claim:  stable on stale data: in the study "stale" (5 seeds, chain_sum) not distinguishable from PPO's clip at 4 and 16
    updates per step.
"""

from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean
from upslope.parts.sampling import Update
from upslope.parts.surrogate import ClippedSequenceRatio
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="2507.18071", title="Group Sequence Policy Optimization", parent="grpo")
def gspo() -> Recipe:
    return grpo().replace(
        surrogate=ClippedSequenceRatio(ratio_low=1 - 3e-4, ratio_high=1 + 4e-4),
        regularizer=None,
        aggregate=RowMean(),
        update=Update(minibatches=4),
    )


@preset("trl", version="1.16.0")
def gspo_trl() -> Recipe:
    return gspo().replace(advantage=GroupBaseline(eps=1e-4))


@preset("verl", version="018f23b")
def gspo_verl() -> Recipe:
    return gspo().replace(advantage=GroupBaseline(eps=1e-6, lone="reward"))
