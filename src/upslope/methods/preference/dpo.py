"""DPO: the policy itself as reward model, fitted to preference pairs by a logistic loss.

    s     sum over the completion's tokens of logp - ref_logp                       [R]
    z     beta * (s of the preferred completion - s of the other)                   [pairs]
    loss  mean over pairs of log(1 + exp(-z))

Limits:  at the reference every pair costs log 2. With the labels of a Bradley-Terry model with reward r and pairs of full
    support, the optimum is ref * exp(r / beta) / Z, the optimum of J - beta KL(policy || ref). It is logistic regression
    without an intercept on the difference of s. surrogate.divergence and surrogate.alpha change s into f'(exp(s)), for other
    f-divergences than the reverse KL: alpha=1 is the forward KL, divergence="js" Jensen-Shannon.
Expects:  data with prompt, chosen, rejected, of which both completions are likely under the reference: it is trained on chosen
    first. Both completions of a prompt are one tree, so the prompt is computed once.
    `dpo@online`: eight completions of the policy, paired by the task's reward, in the place of data; prompts whose completions
    earn the same are in no pair. `dpo@iterative`: the same, and every update.fresh_reference steps the reference becomes the
    policy as it is; that setting makes an iteration of given pairs, too. update.minibatches are the optimizer's steps on each.
Source:  Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; trainers.py of the authors. beta 0.1, AdamW or RMSprop at 5e-7.
    Divergences: Wang et al. 2023 (arXiv:2309.16240); TRL's f_alpha_divergence_coef is 1 - alpha. Online: Guo et al. 2024
    (arXiv:2402.04792), two completions and a judge; iterative: Yuan et al. 2024 (arXiv:2401.10020), three iterations.
Deviations:  none known; value and gradient equal those of TRL 1.16 (loss_type="sigmoid"), with every divergence. The length of
    a completion is not divided out. Of a soft label p both directions count, with weights p and 1 - p.
Not this:  simpo has no reference and divides by the length; ipo has a squared loss. The probability of the preferred completion
    may fall: only the difference is trained.
"""

from upslope.parts.aggregate import GroupSum
from upslope.parts.data import FromData
from upslope.parts.preference import PreferenceLoss
from upslope.parts.sampling import Sample, Uniform, Update
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="2305.18290", title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model")
def dpo() -> Recipe:
    return Recipe(
        curriculum=Uniform(),
        rollout=FromData(kind="pairs"),
        surrogate=PreferenceLoss(beta=0.1),
        aggregate=GroupSum(),
        update=Update(),
    )


@preset("online", version="arXiv:2402.04792")
def dpo_online() -> Recipe:
    return dpo().replace(rollout=Sample(group_size=8), surrogate=PreferenceLoss(beta=0.1, pairs="reward"))


@preset("iterative", version="arXiv:2401.10020")
def dpo_iterative() -> Recipe:
    return dpo_online().replace(update=Update(fresh_reference=20))
