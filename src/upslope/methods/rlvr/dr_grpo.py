"""Dr. GRPO: GRPO without the two divisions that bias it, by the group's deviation and by the completion's length.

    A_i   R_i - mean of group, copied to the tokens                                                        [R]
    loss  mean over sequences of (sum over tokens of max(-A r, -A clip(r, 0.8, 1.2))) / L, L a constant

Differs from grpo:  no division by the group's deviation; a constant length L in place of the completion's own; no KL.
Limits:  A * G / (G - 1) is rloo's, and the gradient at r = 1 that of reinforce with the group's mean, over L.
Expects:  two or more completions per prompt; a lone one has A = 0. L only rescales the learning rate.
Source:  Liu et al. 2025 (arXiv:2503.20783), section 3.1; the authors' train_zero_math.py.
Deviations:  L = 1024; theirs is the generation budget, 3000. Set aggregate.length to yours.
Not this:  dr_grpo@trl has L = 512; dr_grpo@verl takes the batch's width for L, and has dual clip and a lone reward.
Claim:  no bias towards long wrong answers: cannot show where answers have five tokens; in the study "length" pass@1 is
    -0.007 [-0.011, -0.003] of grpo's, length the same. The exact lab shows it unbiased.
"""

from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import ConstantSum
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="2503.20783", title="Understanding R1-Zero-Like Training: A Critical Perspective", parent="grpo")
def dr_grpo() -> Recipe:
    return grpo().replace(advantage=GroupBaseline(scale=None), regularizer=None, aggregate=ConstantSum(1024))


@preset("trl", version="1.16.0")
def dr_grpo_trl() -> Recipe:
    return dr_grpo().replace(aggregate=ConstantSum(512))


@preset("verl", version="018f23b")
def dr_grpo_verl() -> Recipe:
    return dr_grpo().replace(
        advantage=GroupBaseline(scale=None, lone="reward"),
        surrogate=ClippedRatio(0.8, 1.2, dual=3.0),
        aggregate=ConstantSum(None),
    )
