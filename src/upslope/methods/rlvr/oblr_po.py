"""OBLR-PO: the baseline of least variance, and a learning rate that falls with the gradient's signal-to-noise ratio.

    w_i   |grad log pi(completion i)|^2, or a proxy of it                                                  [R]
    b*    sum over the group of w R / sum over the group of w; leave-one-out: over the group's others
    A_i   R_i - b*, copied to the tokens                                                                   [R]
    S, N  <a, b> and s (1 - s) |a - b|^2, a and b the gradients of two halves of the step's prompts, the first of them a share
          s of the rows; both averaged over the steps, the past with weight ema
    lr    the scheduled one times S / (S + N), S at least 0

Differs from dr_grpo:  the weights of the baseline; the learning rate.
Limits:  equal w is dr_grpo's mean of the group; leave_one_out=True with equal w is rloo's advantage. S / N to infinity is the
    scheduled rate. norm="length" is the length-weighted mean of OPO.
Expects:  two or more completions per prompt and two or more prompts per step: halves are made by prompt, so a mini-batch of one
    prompt takes the rate of the step before. The rate starts low where signal is rare, and is 0 while the smoothed signal is
    negative. Costs one more gradient in memory, and at least two passes per update, of different prompts: a step of a small
    model takes a tenth to a third longer. norm="proxy" is free: it is observed while sampling. norm="exact" takes a
    forward and a backward pass for every completion on its own: ten times the step of a small model, hopeless for a large one.
Source:  Huang et al. 2025 (arXiv:2511.23310), by its abstract: no code is published. The baseline is what minimizes the
    estimator's variance, the rate what maximizes lr |grad J|^2 - (L lr^2 / 2) (|grad J|^2 + V / N) with 1 / L = the scheduled
    rate. A reconstruction, as are ema and the estimates S and N.
Deviations:  norm="proxy" is sum over tokens of |e_a - pi|^2, the squared norm with respect to the logits of each token, which
    leaves out how the network couples tokens. The averages (ema = 0.9) are made before S is cut at 0, so that noise alone has no
    signal. The rate scales AdamW's step, while the derivation is for plain gradient descent.
Not this:  the sample's own reward in b* biases the gradient by O(1 / G), as it does in grpo; leave_one_out=True does not.
Claim:  a rate from the signal: reproduced. At ten times the default rate (study "aggressive", 5 seeds) pass@1 ends at 0.863
    [0.826, 0.876], where grpo falls to 0.201, and grpo at the default rate reaches 0.840. Less variance by b*: in the exact
    lab only from groups of about 8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.dr_grpo import dr_grpo
from upslope.parts.sampling import Update
from upslope.recipe import Observation, Part, Recipe
from upslope.registry import method

COLUMN = {"proxy": "score_norm_squared", "exact": "grad_norm_squared"}


@dataclass(frozen=True)
class OptimalBaseline(Part):
    """R - b* [R], as above; a group with fewer than two valid rollouts gets 0, one whose weights are all 0 equal weights."""

    norm: Literal["proxy", "length", "exact"] = "proxy"
    leave_one_out: bool = False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"reward", "group", COLUMN.get(self.norm, "reward")})

    def observes(self) -> Mapping[str, Observation]:
        return {"score_norm_squared": score_norm_squared} if self.norm == "proxy" else {}

    def describe(self) -> str:
        others = "the group's others" if self.leave_one_out else "the group"
        return f"reward - mean of {others}, weighted by the squared gradient norm ({self.norm})"

    def __call__(self, batch: Batch) -> Tensor:
        reward, weight = batch.reward.double(), self._weight(batch).double()
        mates = (batch.group.unsqueeze(1) == batch.group) & batch.valid
        compared = (
            mates & ~torch.eye(len(batch), dtype=torch.bool, device=mates.device) if self.leave_one_out else mates
        )
        weights = compared * weight
        weights = torch.where(weights.any(1, keepdim=True), weights, compared.double())
        baseline = weights @ reward / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)
        return torch.where(mates.sum(1) > 1, reward - baseline, 0.0).to(batch.reward.dtype)

    def _weight(self, batch: Batch) -> Tensor:
        if self.norm == "length":
            return batch.length
        column = getattr(batch, COLUMN[self.norm])
        return torch.where(batch.mask, column, 0.0).sum(1) if self.norm == "proxy" else column


def score_norm_squared(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """|e_a - pi|^2 = 1 - 2 pi(a) + sum of pi^2 for log_probs [M, V] and tokens a [M], as [M]."""
    probability = log_probs.exp()
    chosen = probability.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return 1 - 2 * chosen + probability.square().sum(-1)


@dataclass(frozen=True)
class SignalToNoise(Update):
    """The scheduled learning rate times S / (S + N), as above; `ema` is the past's weight in the averages of both."""

    ema: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise UsageError(
                f"SignalToNoise.ema is {self.ema}; it must be at least 0 (no memory) and below 1, e.g. 0.9."
            )

    def rate_factor(self, signal: float, noise: float) -> float:
        """S / (S + N), 0 where there is neither."""
        signal = max(signal, 0.0)
        return signal / (signal + noise) if signal + noise > 0 else 0.0


@method(
    paper="2511.23310", title="OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning", parent="dr_grpo"
)
def oblr_po() -> Recipe:
    return dr_grpo().replace(advantage=OptimalBaseline(), update=SignalToNoise())
