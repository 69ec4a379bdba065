"""EMPG: an agent's confident steps count for more, its uncertain ones for less, and a step before a clear one gets a bonus.

    A     (R - mean of group) / (standard deviation of group + eps), of the trajectory                     [R]
    H_s   mean over step s of the sampling policy's token entropies
    h_s   (H_s - min) / (max - min + 1e-8), over the batch's steps
    g_s   exp(-k h_s) / mean over the batch's steps of it;  f_s = exp(-k_future h_s)
    A_s   A g_s + zeta f_{s+1}, the latter if the trajectory has a step s + 1; minus its mean over the batch's steps    [R, T]
    loss  mean over sequences of the mean over tokens of max(-A_s r, -A_s clip(r, 0.8, 1.2)) + beta k3

Differs from grpo:  the advantage.
Limits:  k = 0 and zeta = 0 is grpo's A minus its mean over steps. The mean of g is 1 always.
Expects:  a task of several turns: a step is a turn of a trajectory. In one of single turns a step is a whole completion, and no
    bonus is paid. One step of outlying entropy compresses all others; uncertain steps of a failed trajectory are punished less.
    Subtracting the mean gives groups of equal rewards a gradient, too. The engine records H while it samples: no extra pass.
Source:  Wang et al. 2025 (arXiv:2509.09265), eq. 7 to 12, and the pseudocode of the authors' project page: k = k_future = 1,
    zeta = 0.1, the mean over steps, each counting once whatever its length.
Deviations:  none known. The paper's other base, dapo: its parts with advantage="empg".
Not this:  high_entropy_20 keeps the most uncertain tokens; here they count least.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.recipe import Recipe
from upslope.registry import method


@dataclass(frozen=True)
class EntropyModulated(GroupBaseline):
    """A_s [R, T], as above: GroupBaseline's advantage, modulated per step, which is a turn of a trajectory."""

    k: float = 1.0
    k_future: float = 1.0
    zeta: float = 0.1

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """GroupBaseline's columns, and what makes the steps and their entropy."""
        return super().needs | {"entropy", "turn", "trajectory"}

    def describe(self) -> str:
        bonus = f"{self.zeta:g} exp(-{self.k_future:g} h of the next step)"
        return f"({super().describe()}) * exp(-{self.k:g} h) / its mean + {bonus}, minus its mean over steps"

    def __call__(self, batch: Batch) -> Tensor:
        advantage = super().__call__(batch)
        places = batch.mask.nonzero(as_tuple=True)
        turns = int(batch.turn.max()) + 1
        named = batch.trajectory.unique(return_inverse=True)[1][places[0]] * turns + batch.turn[places]
        steps, step, length = named.unique(return_inverse=True, return_counts=True)

        def step_mean(column: Tensor) -> Tensor:
            return column.new_zeros(len(steps)).index_add_(0, step, column) / length

        entropy = step_mean(batch.entropy[places].to(advantage.dtype))
        h = (entropy - entropy.min()) / (entropy.max() - entropy.min() + 1e-8)
        scale, clarity = (-self.k * h).exp(), (-self.k_future * h).exp()
        continues = steps[1:] // turns == steps[:-1] // turns  # `unique` sorts: by trajectory, then by turn
        bonus = torch.zeros_like(h)
        bonus[:-1] = torch.where(continues, clarity[1:], 0.0)
        modulated = step_mean(advantage[places[0]]) * scale / scale.mean() + self.zeta * bonus
        found = torch.zeros_like(batch.logp, dtype=modulated.dtype)
        found[places] = (modulated - modulated.mean())[step]
        return found


@method(
    paper="2509.09265",
    title="Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents",
    parent="grpo",
)
def empg() -> Recipe:
    return grpo().replace(advantage=EntropyModulated())
