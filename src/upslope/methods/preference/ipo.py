"""IPO: the difference of two log-ratios is pulled to a constant, so that no pair is driven to infinity.

    s     mean over the completion's tokens of logp - ref_logp                      [R]
    loss  mean over pairs of (s_w - s_l - 1 / (2 beta))^2

Differs from dpo:  a square in place of the logistic loss; log-ratios per token.
Limits:  a pair that is always won ends at s_w - s_l = 1 / (2 beta), where dpo's optimum is at infinity. normalized=False is
    CoPG at rewards that differ by 1/2, times 2 / beta.
Expects:  as dpo. `ipo@online`: completions of the policy, paired by the task's reward, as in `dpo@online`.
Source:  Azar et al. 2023 (arXiv:2310.12036), eq. 17, where beta is tau = 0.1.
Deviations:  the paper's log-ratio is that of the whole completion: `ipo@paper`. The mean over tokens keeps the loss from growing
    with the length; it is what TRL and HALOs compute, and according to TRL's comment what the authors did. Value and gradient
    equal those of TRL 1.16 (loss_type="ipo").
Not this:  a margin of the logistic loss (surrogate.margin), past which the slope only fades.
"""

from upslope.methods.preference.dpo import dpo, dpo_online
from upslope.parts.preference import PreferenceLoss
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(
    paper="2310.12036",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    parent="dpo",
)
def ipo() -> Recipe:
    return dpo().replace(surrogate=PreferenceLoss(beta=0.1, link="square", normalized=True))


@preset("paper", version="eq. 17")
def ipo_paper() -> Recipe:
    return dpo().replace(surrogate=PreferenceLoss(beta=0.1, link="square"))


@preset("online", version="arXiv:2402.04792")
def ipo_online() -> Recipe:
    return dpo_online().replace(surrogate=PreferenceLoss(beta=0.1, link="square", normalized=True, pairs="reward"))
