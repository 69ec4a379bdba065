"""80/20: only the tokens at which the policy was most undecided are trained on, the top fifth by entropy.

    H     entropy of the sampling policy's next-token distribution, constant                               [R, T]
    h     the (1 - rho) quantile of H over all tokens of the batch
    w     1 where H >= h, else 0                                                                           [R, T]
    loss  sum over tokens of w max(-A r, -A clip(r, 0.8, 1.28)) / number of all tokens, A and r as in dapo

Differs from dapo:  the selection of tokens.
Limits:  rho = 1 is dapo.
Expects:  long completions, mostly of tokens that could hardly be others. The engine records H while it samples: no extra pass.
Source:  Wang et al. 2025 (arXiv:2506.01939), eq. 5; rho = 0.2. The quantile interpolates linearly, as TRL's.
Deviations:  the quantile is that of the whole step, the denominator that of each mini-batch. TRL takes H of the current policy,
    anew for every micro-batch.
Not this:  denominator="kept" divides by the kept tokens (a gradient about 1 / rho times as long): re-implementations that clear
    the response mask. scope="response" takes the quantile within each completion, so that every one keeps its fifth.
Claim:  a fifth of the tokens suffices: entropy stays higher in the study "entropy" (5 seeds, leg_counting), 0.294 [0.275,
    0.320] beside grpo's 0.221, but at equal rollouts pass@1 is lower by 0.072 [0.042, 0.109], pass@8 the same. Answers of a
    few tokens have few that do not matter.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.dapo import dapo
from upslope.parts.aggregate import TokenMean
from upslope.recipe import Part, Recipe
from upslope.registry import method


@dataclass(frozen=True)
class TopEntropy(Part):
    """w [R, T], as above; with `scope="response"` h is each completion's own. Ties with h are kept."""

    rho: float = 0.2
    scope: Literal["batch", "response"] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise UsageError(
                f"TopEntropy.rho is {self.rho:g}; it is a share of the tokens: over 0, at most 1, e.g. 0.2."
            )

    def describe(self) -> str:
        return f"1 for the {100 * self.rho:g} % of the {self.scope}'s tokens with the highest entropy, else 0"

    def __call__(self, batch: Batch) -> Tensor:
        shape = (1, -1) if self.scope == "batch" else batch.mask.shape
        entropy, mask = batch.entropy.reshape(shape), batch.mask.reshape(shape)
        keep = mask & (entropy >= row_quantile(entropy, mask, 1 - self.rho))
        return keep.view(batch.mask.shape).to(batch.dtype)


def row_quantile(column: Tensor, mask: Tensor, q: float) -> Tensor:
    """The q-quantile of each row's entries where `mask`, linearly interpolated, [rows, 1]; inf or NaN for a row without any."""
    ordered = torch.where(mask, column, torch.inf).sort(1).values
    place = q * (mask.sum(1, keepdim=True).double() - 1).clamp(min=0)
    low, high = (ordered.gather(1, at.long()) for at in (place.floor(), place.ceil()))
    return low + (high - low) * (place - place.floor()).to(column.dtype)


@method(
    paper="2506.01939",
    title="Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning",
    parent="dapo",
)
def high_entropy_20() -> Recipe:
    return dapo().replace(weight=TopEntropy(rho=0.2), aggregate=TokenMean(denominator="all"))
