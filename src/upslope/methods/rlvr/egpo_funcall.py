"""EGPO (FunRL): GRPO for function calls, with a bonus for uncertain reasoning that never turns an advantage's sign.

    R_i   1 if the format is valid and the calls equal the reference's, else 0: the task's reward, ast:think
    A_i   (R_i - mean of group) / (standard deviation of group + eps)                                      [R]
    H_i   mean over the reasoning's tokens of the sampling policy's entropy, constant                      [R]
    A'_i  A_i + alpha * min(H_i, |A_i| / kappa)                                                            [R]
    loss  mean over sequences of the mean over tokens of max(-A' r, -A' clip(r, 0.8, 1.2)) + beta k3

Differs from grpo:  the bonus; beta = 0.001.
Limits:  alpha = 0 is grpo. A' has the sign of A for every kappa > alpha, and is 0 where A is.
Expects:  completions that reason before they call, reward="ast:think". reasoning_end holds the token ids that end the
    reasoning, such as those of </think>; without it, or where they do not occur, the whole completion counts as reasoning. The
    engine records the entropy while it samples: no extra pass.
Source:  Hao et al. 2025 (arXiv:2508.05118), at second hand: the bonus is a reconstruction, from a re-implementation in verl
    that quotes it as alpha clip(H, -|A| / kappa, |A| / kappa), alpha = 0.4, kappa = 2, beta = 0.001. The authors' code is not
    public.
Deviations:  the paper's preparation of data (judging by a model in several rounds, a check of the syntax tree, dropping what
    stays unsolved) is no part of this. It samples at a temperature of 0.7, here 1. Which KL estimator it uses is unknown.
Not this:  Cheng et al. (arXiv:2506.14758) cap the bonus after scaling, min(alpha H, |A| / kappa) per token; for a row, their
    0.4 and 2 are kappa=0.8 here. The EGPO of arXiv:2602.22751 is another method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.kl import KL
from upslope.recipe import Recipe
from upslope.registry import method


@dataclass(frozen=True)
class EntropyBonus(GroupBaseline):
    """A' [R], as above: GroupBaseline's advantage and the bonus. Raises UsageError unless 0 <= alpha < kappa."""

    alpha: float = 0.4
    kappa: float = 2.0
    reasoning_end: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < self.kappa:
            raise UsageError(
                f"EntropyBonus(alpha={self.alpha:g}, kappa={self.kappa:g}): a bonus of up to alpha / kappa of |A| keeps A's "
                "sign only where 0 <= alpha < kappa, e.g. alpha=0.4, kappa=2."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """GroupBaseline's columns and the entropy; the tokens where they say how far the reasoning goes."""
        return super().needs | {"entropy"} | ({"tokens"} if self.reasoning_end else set())

    def describe(self) -> str:
        return f"A + {self.alpha:g} min(entropy of the reasoning, |A| / {self.kappa:g}), A = {super().describe()}"

    def __call__(self, batch: Batch) -> Tensor:
        advantage = super().__call__(batch)
        reasoning = before(batch, self.reasoning_end) if self.reasoning_end else batch.mask
        entropy = torch.where(reasoning, batch.entropy, 0.0).sum(1) / reasoning.sum(1).clamp(min=1)
        return advantage + self.alpha * torch.minimum(entropy, advantage.abs() / self.kappa)


def before(batch: Batch, ending: tuple[int, ...]) -> Tensor:
    """Trained tokens before the first place at which the tokens `ending` stand, all where they do not, bool [R, T]."""
    rows, width = batch.mask.shape
    found = torch.zeros(rows, width + 1, dtype=torch.bool, device=batch.mask.device)
    starts = max(width - len(ending) + 1, 0)
    if starts:
        windows, written = (column.unfold(1, len(ending), 1) for column in (batch.tokens, batch.mask))
        found[:, :starts] = ((windows == windows.new_tensor(ending)) & written).all(2)
    found[:, -1] = True
    return batch.mask & (torch.arange(width, device=found.device) < found.long().argmax(1, keepdim=True))


@method(
    paper="2508.05118",
    title="Reasoning through Exploration: A Reinforcement Learning Framework for Robust Function Calling",
    parent="grpo",
)
def egpo_funcall() -> Recipe:
    return grpo().replace(advantage=EntropyBonus(), regularizer=KL(beta=0.001, estimator="k3"))
