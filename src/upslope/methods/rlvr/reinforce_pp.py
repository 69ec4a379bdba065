"""REINFORCE++: token returns with the KL in the reward, whitened over the whole batch; no critic, no groups.

    rho   reward at the last token - beta (old_logp - ref_logp) at every token                              [R, T]
    g     sum of rho from token t on, discounted by gamma                                                   [R, T]
    A     (g - mean) / sqrt(variance + eps), both over all tokens of the batch (n - 1)                      [R, T]
    loss  mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.2))

Differs from reinforce:  k1 in the reward; the batch's whitening in place of a baseline; the clipped ratio; the token mean.
Limits:  rewards mapped by a positive affine function give the same A (beta = 0). One completion per prompt is enough.
Expects:  a batch large enough for its statistics; one token in all gives A = 0. With one completion per prompt no prompt is shared:
    a step takes about a quarter longer than grpo's with groups of 8 and short prompts, more with long ones.
Source:  Hu et al. 2025 (arXiv:2501.03262), algorithm 1; whitening as in verl and OpenRLHF.
Deviations:  statistics are over tokens, so long completions weigh more, as in both code bases. Tool text is stepped over, while
    verl (018f23b) starts the return anew there, so that turns before a tool's answer earn nothing.
Not this:  reinforce_pp_baseline, which takes the prompt's mean off first.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.advantage import whiten
from upslope.parts.aggregate import TokenMean
from upslope.parts.gae import return_to_go
from upslope.parts.kl import KLInReward
from upslope.parts.sampling import Sample
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe
from upslope.registry import method, preset


@dataclass(frozen=True)
class WhitenedReturn(Part):
    """A [R, T], as above."""

    gamma: float = 1.0
    eps: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def describe(self) -> str:
        discount = "" if self.gamma == 1 else f", discounted by {self.gamma:g}"
        return f"sum of reward from the token on{discount}, whitened over the batch's tokens"

    def __call__(self, batch: Batch) -> Tensor:
        return whiten(batch, return_to_go(batch, self.gamma), self.eps)


@method(
    paper="2501.03262",
    title="REINFORCE++: An Efficient RLHF Algorithm with Robustness to Both Prompt and Reward Models",
    parent="reinforce",
)
def reinforce_pp() -> Recipe:
    return reinforce().replace(
        rollout=Sample(group_size=1),
        reward=KLInReward(beta=0.01, level="token"),
        advantage=WhitenedReturn(),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.2),
        aggregate=TokenMean(),
    )


@preset("verl", version="018f23b")
def reinforce_pp_verl() -> Recipe:
    return reinforce_pp().replace(reward=None, surrogate=ClippedRatio(0.8, 1.2, dual=3.0))
