"""DFT: maximum likelihood in which every token is weighted by its own probability, so that improbable ones pull less.

    p     exp(logp)                                                                   [R, T]
    loss  mean over the batch's tokens of -sg[p] logp

Differs from sft:  the weight p, without gradient.
Limits:  its gradient is that of -p. A token of probability 1 has weight 1; one that the policy holds impossible has none.
    It is one_token_rollout at temperature 1 and penalty 0, and 1 / (1 - penalty) times it at any penalty.
Expects:  data with prompt and completion, which the model half knows: what it finds impossible it does not learn.
Source:  Wu et al. 2025 (arXiv:2508.05629); the loss as in TRL's sft_trainer.py (dft_loss).
Deviations:  none known.
Not this:  the value of the loss is no measure of fit: -p ln p falls for tokens that become improbable, too. The statistic
    nll is the likelihood's.
"""

from upslope.methods.supervised.sft import sft
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2508.05629",
    title="On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
    parent="sft",
)
def dft() -> Recipe:
    return sft().replace(surrogate=NegativeLogLikelihood(weighting="probability"))
