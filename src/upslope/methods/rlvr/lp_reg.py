"""Lp-Reg: holds up unlikely tokens of bad completions the sampling policy gave a fair chance, towards a cleaned copy of it.

    pi'   the sampling policy without the tokens v where pi_old(v) < kappa max pi_old, the rest scaled up to 1  [R, T]
    S     tokens with A < 0 among the share * tokens of the mini-batch with the lowest logp, kept by pi', and with
          logp < log pi'                                                                                  [R, T]
    loss  mean over the mini-batch's tokens of -A r, r at most 10 where A > 0, plus in S beta k3(logp, log pi')

k3 pulls logp up to log pi': its gradient is 1 - pi' / pi, below 0 in S.

Differs from grpo:  ratios from 0 to 10 in place of 0.8 to 1.2; the token mean; k3 against pi' in S, not against the reference.
Limits:  beta=0 or share=0 is grpo's advantage with that clip and a token mean. kappa=0: pi' is the old policy, so S is empty
    until the policy moves.
Expects:  sampling at temperature 1. pi' at the sampled token is observed while sampling, one number per token: no
    distribution is kept and no pass is added.
Source:  Huang et al. 2025 (arXiv:2510.03222); kappa, share, beta and the clip as in the authors' recipe for Qwen3-14B, which
    updates once per batch; their other one has minibatches=8.
Deviations:  the lowest logp are those of the mini-batch; the code's are those of each micro-batch, and among tokens with
    A < 0 only: among="negative", which lp_reg@released sets. logp < log pi' is the code's condition; the paper's (from
    memory) is pi' > 0 alone. The code bounds k3 by 10, here logp - log pi' is kept within +-20; it does not clip tokens of S,
    here the clip's lower bound, 0 by default, does not act on them; and where share gives a single token it selects none.
Not this:  an entropy bonus: tokens that the sampling policy already held for noise are left to fall.
Claim:  keeps entropy and useful rare tokens: in the study "entropy" (5 seeds, leg_counting) entropy is grpo's; pass@1 is
    +0.016 [-0.015, +0.047], not distinguishable from it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import TokenMean
from upslope.parts.kl import kl_estimate
from upslope.parts.selection import check_share, largest, number_of, token_uniform
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Observation, Part, Recipe, Stats
from upslope.registry import method, preset

REMOVED = -1e4  # log-prob of a token that the proxy removes: finite, and below every log-prob


@dataclass(frozen=True)
class AdvantageAndProxy(GroupBaseline):
    """GroupBaseline, and proxy_logp [R, T] = log pi' of the sampled token, as above; -10,000 where pi' is 0."""

    kappa: float = 0.02
    makes: ClassVar[frozenset[str]] = frozenset({"proxy_logp"})

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Those of GroupBaseline, and what is observed."""
        return super().needs | {"proxy_at_sampling"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kappa <= 1:
            raise UsageError(f"AdvantageAndProxy(kappa={self.kappa:g}): a share of the largest probability, e.g. 0.02.")

    def observes(self) -> Mapping[str, Observation]:
        return {"proxy_at_sampling": self._proxy}

    def _proxy(self, log_probs: Tensor, tokens: Tensor) -> Tensor:
        least = log_probs.amax(-1) + (math.log(self.kappa) if self.kappa else -torch.inf)
        kept = log_probs.masked_fill(log_probs < least.unsqueeze(-1), -torch.inf).log_softmax(-1)
        return kept.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).clamp(min=REMOVED)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        return {"advantage": super().__call__(batch), "proxy_logp": batch.proxy_at_sampling}


@dataclass(frozen=True)
class SelectUnlikely(Part):
    """selected [R, T] = S, as above. `among` "negative" takes the share of the tokens with A < 0."""

    share: float = 0.01
    among: Literal["all", "negative"] = "all"
    formula: ClassVar[str] = "S = the {share} of the tokens with the smallest logp, where A < 0 and logp < log pi'"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "proxy_logp", "trajectory"})
    makes: ClassVar[frozenset[str]] = frozenset({"selected"})

    def __post_init__(self) -> None:
        check_share(self, self.share)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        negative = batch.mask & (batch.advantage < 0)
        among = negative if self.among == "negative" else batch.mask
        lowest = largest(-batch.logp, number_of(self.share, among), among, ties=token_uniform(batch, 0))
        return {"selected": lowest & negative & (batch.logp < batch.proxy_logp)}

    def stats(self, batch: Batch) -> Stats:
        return {"proxy/selected": batch.selected.to(batch.dtype)}


@dataclass(frozen=True)
class HoldUp(Part):
    """beta k3(logp, proxy_logp) per token [R, T] where the control selected it; 0 elsewhere."""

    beta: float = 1.0
    formula: ClassVar[str] = "{beta} * k3(logp, log pi') in S"
    needs: ClassVar[frozenset[str]] = frozenset({"proxy_logp", "selected"})

    def __call__(self, batch: Batch) -> Tensor:
        target = torch.where(batch.selected, batch.proxy_logp, batch.logp.detach())
        return self.beta * batch.selected * kl_estimate(batch.logp, target, "k3")


@method(
    paper="2510.03222",
    title="Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward",
    parent="grpo",
)
def lp_reg() -> Recipe:
    return grpo().replace(
        advantage=AdvantageAndProxy(),
        control=SelectUnlikely(),
        surrogate=ClippedRatio(ratio_low=0.0, ratio_high=10.0),
        regularizer=HoldUp(),
        aggregate=TokenMean(),
    )


@preset("released", version="7e7d20b")
def lp_reg_released() -> Recipe:
    return lp_reg().replace(control=SelectUnlikely(among="negative"))
