"""OSP: DPO on the policy's own completions with soft labels, the probabilities that a judge prefers one to the other.

    r     the judge's score of a completion, as log-odds                            [R]
    p     sigma(r_w - r_l), of each completion against the next one of the ranking  [pairs]
    z     beta * (s_w - s_l), as in dpo
    loss  mean over pairs of p log(1 + exp(-z)) + (1 - p) log(1 + exp(z)), then over prompts

Differs from dpo:  completions are sampled, paired along the ranking, and their labels are soft.
Limits:  p = 1 is dpo, p = 1 - e is cdpo. A pair ends at z = log(p / (1 - p)), not at infinity. With p = sigma(r_w - r_l) that
    is the policy ref * exp(r / beta) / Z, dpo's population optimum, with any pairing.
Expects:  a task whose reward is a score on the scale of log-odds: where it is another, surrogate.reward_scale divides it.
    With probabilities in the data instead: `dpo` reads them as soft labels of its pairs.
Source:  Zhai et al. 2024 (arXiv:2405.14103). There is no public code: the loss follows the paper, the pairing along the ranking
    and N = 4 are a reconstruction from its abstract and summaries.
Deviations:  the paper's judge is the policy itself, which is asked for A or B in both orders. There is no such judge here: p comes
    from scores, by a Bradley-Terry model, and so is always transitive.
Not this:  dpo with pairs="reward" takes the better one as certain.
"""

from upslope.methods.preference.dpo import dpo
from upslope.parts.preference import PreferenceLoss
from upslope.parts.sampling import Sample
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="2405.14103", title="Online Self-Preferring Language Models", parent="dpo")
def osp() -> Recipe:
    soft = PreferenceLoss(beta=0.1, pairs="reward", which="neighbours", reward_scale=1.0)
    return dpo().replace(rollout=Sample(group_size=4), surrogate=soft)
