"""GRPO-Guard: Flow-GRPO with a normalized ratio, so that the clip acts alike at every denoising step, and balanced gradients.

    A_i   (R_i - mean of group) / (population standard deviation of group + 1e-4), within -5 and 5           [R]
    s     noise scale of a step, sigma_t sqrt(Delta_t); ms: mean square over the D dimensions                [R, T]
    r     exp((logp - old_logp + ms(mean - old_mean) / (2 s^2)) s)                                           [R, T]
    loss  mean over trajectories of the mean over their steps of max(-A r, -A clip(r, 1 - 2e-6, 1 + 2e-6)) / Delta_t

Differs from grpo:  the ratio and its interval; the weight 1 / Delta_t; population deviation, eps and bound of A; no KL; groups
    of 24, 2 updates per step.
Limits:  r = exp(mean of e (mean - old_mean)), e the noise that was drawn, for any action: 1 where the policy has not moved,
    and with log r of mean 0 where it has.
Expects:  rows that are trajectories of a sampler by stochastic differential equation, positions their T steps: logp [R, T],
    the mean over the D dimensions of log N(x; mean, s^2), mean with gradient and old_mean [R, T, D], noise_scale = s and
    step_size = Delta_t [R, T]. Call the recipe on such a Batch; no trainer of this library makes one yet. Log-probs in
    float32 at least: the interval is some 50 of its roundings wide.
Source:  arXiv:2510.22319; the released script (Flow-GRPO, train_sd3_GRPO_Guard.py) and its settings (grpo_guard.py there:
    2e-6, and 4e-6 for PickScore; learning rate 1e-4).
Deviations:  the script takes s and sqrt(Delta_t) as means over a micro-batch, whose samples share their step; here each has
    its own. It takes one step of the sampler at a time; here all steps of a trajectory are in one loss.
    regularizer=GaussianKL(beta) is its optional KL, off there too, with s^2 in the denominator where the script has
    sigma_t^2, without Delta_t.
Not this:  a guard of GRPO for language models. Flow-GRPO's plain ratio has the mean log-ratio -ms(mean - old_mean) / (2
    s^2), so it falls below 1 in low-noise steps, where the upper bound then never acts.
"""

from dataclasses import dataclass

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.guard import NormalizedRatio, StepBalance
from upslope.parts.sampling import Sample, Update
from upslope.recipe import Recipe
from upslope.registry import method


@dataclass(frozen=True)
class BoundedGroupBaseline(GroupBaseline):
    """GroupBaseline, kept within -limit and limit, [R]: with the deviation of the group, it acts in groups of more than 26."""

    limit: float = 5.0

    def describe(self) -> str:
        return f"clip({super().describe()}, -{self.limit:g}, {self.limit:g})"

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch).clamp(-self.limit, self.limit)


@method(
    paper="2510.22319",
    title="GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping",
    parent="grpo",
)
def grpo_guard() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=24),
        advantage=BoundedGroupBaseline(scale="population_std", eps=1e-4),
        weight=StepBalance(),
        surrogate=NormalizedRatio(ratio_low=1 - 2e-6, ratio_high=1 + 2e-6),
        regularizer=None,
        update=Update(minibatches=2),
    )
