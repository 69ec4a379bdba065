"""INPO: each step an IPO against a mixture of the first reference and the policy that sampled it.

    s     sum over tokens of logp - (tau / eta) ref_logp - (1 - tau / eta) old_logp [R]
    loss  mean over pairs of (s_w - s_l - 1 / (2 eta))^2, of each prompt the best completion against the worst

Differs from ipo:  completions are sampled and judged in every step; the mixed reference; sums over tokens.
Limits:  tau = eta (share 1) is ipo of whole completions against the first reference, and so is the first step, where the policy
    is the reference. One exact step from pi_t goes to exp(P(y beats pi_t) / eta) ref^(tau / eta) pi_t^(1 - tau / eta) / Z, whose
    fixed point is the Nash policy of the game with a KL penalty tau.
Expects:  a step is one iteration: large batches, update.minibatches steps of the optimizer on each. eta and tau are not named:
    surrogate.beta is eta, control.share is tau / eta. 1 / (2 eta) = 66.7 is far for short completions: a larger beta there.
Source:  Zhang et al. 2024 (arXiv:2407.00617), algorithm 1 and eqs. 5 to 8. K = 8; eta = 0.0075 and tau = eta / 3 as a port by
    others quotes the paper.
Deviations:  the paper finds best and worst by a tournament of comparisons with an oracle, which may be intransitive; here the
    task's rewards rank them. Of equals the first is taken; a prompt with equal rewards makes no pair. Four mini-batches are our
    choice; the paper has three iterations of one epoch.
Not this:  dno: logistic, and without a share of the first reference.
"""

from upslope.methods.preference.ipo import ipo
from upslope.parts.iterate import IterateReference
from upslope.parts.preference import PreferenceLoss
from upslope.parts.sampling import Sample, Update
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2407.00617",
    title="Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
    parent="ipo",
)
def inpo() -> Recipe:
    return ipo().replace(
        rollout=Sample(group_size=8),
        control=IterateReference(share=1 / 3),
        surrogate=PreferenceLoss(beta=0.0075, link="square", pairs="reward", which="extremes"),
        update=Update(minibatches=4),
    )
