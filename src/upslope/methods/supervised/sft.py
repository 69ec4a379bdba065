"""SFT: maximum likelihood of given completions.

    loss  mean over the batch's tokens of -logp                                     [R, T]

Limits:  the policy gradient with reward 1 for the data's tokens and importance weight 1 / probability.
Expects:  data with prompt and completion (or messages, question and answer, instruction and output); the prompt's tokens are not
    trained on.
Source:  maximum likelihood. The denominator counts the tokens of the whole optimizer step: micro-batches of short completions
    weigh no more than others.
Deviations:  none.
Not this:  a mean over completions of their means, aggregate=SequenceMean(), in which tokens of short ones weigh more.
"""

from upslope.parts.aggregate import TokenMean
from upslope.parts.data import FromData
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.sampling import Uniform, Update
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="", title="Supervised fine-tuning by maximum likelihood")
def sft() -> Recipe:
    return Recipe(
        curriculum=Uniform(),
        rollout=FromData(kind="demonstrations"),
        surrogate=NegativeLogLikelihood(),
        aggregate=TokenMean(),
        update=Update(),
    )
