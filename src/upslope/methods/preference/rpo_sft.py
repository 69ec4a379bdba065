"""RPO: DPO, with the likelihood of the preferred completion as a regularizer against overoptimization.

    dpo     as in dpo, with beta
    nll     mean over preferred completions of -(sum over tokens of logp)
    loss    dpo + eta beta nll

Differs from dpo:  the term nll, with eta beta = 0.005 * 0.01; beta 0.01.
Limits:  eta = 0 is dpo.
Expects:  as dpo; no further pass. eta beta is one setting, coefficient: where only beta changes, eta does.
Source:  Liu et al. 2024 (arXiv:2405.16436), whose baseline completion y0 is in practice the preferred one; rpo_trainer.py of the
    authors. eta 0.005 and beta 0.01 for chat models (Zephyr-beta; 0.05 for Gemma).
    `rpo_sft@average`: the authors' form for reasoning, eta = 0.2 times the mean over tokens, not times beta; beta 0.5.
Deviations:  none known. `rpo_sft@trl` is what TRL 1.16 computes with loss_type=["sigmoid", "sft"], loss_weights=[1, 0.2]: the
    mean over all tokens of the preferred completions, in which long ones weigh more; equal in value and gradient.
Not this:  slic_hinge has the same term beside a hinge without reference. A reward clip, or a KL penalty.
Claim:  mitigates over-optimization: reproduced in the study "over_optimization" (5 seeds), with beta 0.1 and the
    coefficient 0.2: the true reward rises to 0.828 [0.825, 0.834] at a KL of 1.3 nats where dpo falls to 0.459 [0.437,
    0.474] at 4.3.
"""

from upslope.methods.preference.dpo import dpo
from upslope.parts.aggregate import SequenceMean, SequenceSum, TokenMean
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.preference import PreferenceLoss, Preferred
from upslope.recipe import Part, Recipe, Term
from upslope.registry import method, preset


def _with_likelihood(beta: float, aggregate: Part, coefficient: float) -> Recipe:
    likelihood = Term(NegativeLogLikelihood(coefficient=coefficient), aggregate, rows=Preferred())
    return dpo().replace(surrogate=PreferenceLoss(beta=beta), terms=(likelihood,))


@method(
    paper="2405.16436",
    title="Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
    parent="dpo",
)
def rpo_sft() -> Recipe:
    return _with_likelihood(0.01, SequenceSum(), 0.005 * 0.01)


@preset("average", version="rpo_trainer.py of the authors")
def rpo_sft_average() -> Recipe:
    return _with_likelihood(0.5, SequenceMean(), 0.2)


@preset("trl", version="1.16.0")
def rpo_sft_trl() -> Recipe:
    return _with_likelihood(0.1, TokenMean(), 0.2)
