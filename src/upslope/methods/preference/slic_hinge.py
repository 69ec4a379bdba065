"""SLiC-HF: a hinge on the difference of log-probs, and the likelihood of a target as the anchor.

    s       sum over the completion's tokens of logp                                [R]
    loss    mean over pairs of max(0, 1 + margin - (s_w - s_l))
    anchor  0.1 times the mean over preferred completions of -s_w, added

Differs from dpo:  a hinge; no reference; the anchor.
Limits:  a pair past the margin has no gradient but the anchor's. `slic_hinge@trl` has a reference and no anchor.
Expects:  as dpo. No pass of a reference model. delta, the paper's margin, is 1 + surrogate.margin.
Source:  Zhao et al. 2023 (arXiv:2305.10425); delta 1 and the anchor's weight 0.1 are those of HALOs' SLiCTrainer.
    `slic_hinge@trl`: DPO with a hinge, max(0, 1 - beta (s_w - s_l)) on log-ratios, TRL's loss_type="hinge" (of RSO).
Deviations:  the anchor's target is the preferred completion; the paper also takes the completions of supervised training.
    HALOs adds a matrix per token to a vector per row here; this is the sum over tokens that its formula says.
    The preset equals TRL 1.16 in value and gradient.
Not this:  a hinge per token.
"""

from upslope.methods.preference.dpo import dpo
from upslope.parts.aggregate import SequenceSum
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.preference import PreferenceLoss, Preferred
from upslope.recipe import Recipe, Term
from upslope.registry import method, preset


@method(
    paper="2305.10425",
    title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    parent="dpo",
)
def slic_hinge() -> Recipe:
    anchor = Term(NegativeLogLikelihood(coefficient=0.1), SequenceSum(), rows=Preferred())
    return dpo().replace(surrogate=PreferenceLoss(beta=1.0, link="hinge", reference=False), terms=(anchor,))


@preset("trl", version="1.16.0")
def slic_hinge_trl() -> Recipe:
    return dpo().replace(surrogate=PreferenceLoss(beta=0.1, link="hinge"))
