"""SimPO: the mean log-prob of a completion as its score, a margin, and no reference.

    s     mean over the completion's tokens of logp                                 [R]
    z     beta * (s_w - s_l) - margin                                               [pairs]
    loss  mean over pairs of log(1 + exp(-z))

Differs from dpo:  no reference; the mean over tokens; a margin; beta of the scale of a mean.
Limits:  margin = 0 with sums in place of means is dpo under a uniform reference and completions of one length.
Expects:  as dpo. No pass of a reference model: cheaper than dpo. Nothing holds the policy near where it started, so the
    learning rate does: 3e-7 to 1e-6 for models of 7B. `simpo@online`: completions of the policy, paired by the task's reward, as
    in `dpo@online`.
Source:  Meng et al. 2024 (arXiv:2405.14734), eq. 6; scripts/simpo_trainer.py of the authors, whose gamma_beta_ratio is
    margin / beta. beta 2 to 2.5 (up to 10), margin / beta 0.3 to 0.55.
Deviations:  none known; value and gradient equal those of TRL 1.16 (CPOTrainer, loss_type="simpo", cpo_alpha=0). With
    surrogate.smoothing, their exchanged pair has the margin's sign exchanged too; here both labels ask for the margin.
Not this:  ipo with normalized=True measures from a reference.
"""

from upslope.methods.preference.dpo import dpo, dpo_online
from upslope.parts.preference import PreferenceLoss
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(paper="2405.14734", title="SimPO: Simple Preference Optimization with a Reference-Free Reward", parent="dpo")
def simpo() -> Recipe:
    return dpo().replace(surrogate=PreferenceLoss(beta=2.0, reference=False, normalized=True, margin=1.0))


@preset("online", version="pairs of samples, by reward")
def simpo_online() -> Recipe:
    online = PreferenceLoss(beta=2.0, reference=False, normalized=True, margin=1.0, pairs="reward")
    return dpo_online().replace(surrogate=online)
