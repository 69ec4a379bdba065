"""rDPO: DPO's loss, corrected so that labels flipped at a known rate leave its expectation as it is.

    z     beta * (s_w - s_l), as in dpo                                             [pairs]
    l(z)  log(1 + exp(-z))
    loss  mean over pairs of [(1 - e) l(z) - e l(-z)] / (1 - 2 e)

Differs from dpo:  the correction for a flip rate e.
Limits:  e = 0 is dpo. Averaged over flips with probability e, the loss of a pair is dpo's on the true label.
Expects:  as dpo, with labels of which a known share e < 1/2 is exchanged, independently of the pair. A pair's slope never goes
    below beta e / (1 - 2 e): the loss has no lower bound, so stop early.
Source:  Chowdhury et al. 2024 (arXiv:2403.00409); the formula is that of TRL, loss_type="robust", and agrees with the abstract;
    the paper's text was not at hand. e 0.1, beta 0.1.
Deviations:  none known; value and gradient equal those of TRL 1.16.
Not this:  cdpo adds the flipped loss, and so bounds every pair.
Claim:  better than DPO on flipped labels: not reproduced in the study "preferences" (5 seeds, 30 % flips), -0.019 [-0.031,
    -0.006] of pass@1: flips bound DPO's margins by themselves, and this loss removes the bound. On clean labels, told of
    flips that are not there, +0.045 [+0.033, +0.060].
"""

from upslope.methods.preference.dpo import dpo
from upslope.parts.preference import PreferenceLoss
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2403.00409",
    title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    parent="dpo",
)
def rdpo() -> Recipe:
    return dpo().replace(surrogate=PreferenceLoss(beta=0.1, flip_rate=0.1))
