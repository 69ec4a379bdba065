"""Scorers: whatever gives log-probs of given tokens. One interface for the policy, a reference and a teacher."""

from typing import Protocol

import torch
from torch import Tensor

from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import has_adapters
from upslope.rollout import Rollouts


class Scorer(Protocol):
    """Gives columns [r, T, ...] of rollouts; `LanguagePolicy.score` says which there are."""

    def score(
        self, rollouts: Rollouts, needs: frozenset[str] = ..., *, rows: Tensor | None = ..., temperature: float = ...
    ) -> dict[str, Tensor]: ...


class FrozenScorer:
    """A policy as it is now, without gradient, whatever happens to the original afterwards.

    With `copy=False` the policy itself is used: for a teacher that nobody trains.
    """

    def __init__(self, policy: LanguagePolicy, *, copy: bool = True) -> None:
        self.policy = policy.frozen() if copy else policy

    @torch.no_grad()
    def score(
        self,
        rollouts: Rollouts,
        needs: frozenset[str] = frozenset({"logp"}),
        *,
        rows: Tensor | None = None,
        temperature: float = 1.0,
    ) -> dict[str, Tensor]:
        """As `LanguagePolicy.score`, without gradient."""
        return self.policy.score(rollouts, needs, rows=rows, temperature=temperature)


class AdapterlessScorer:
    """A policy with its adapters switched off: the model it started from, at no memory.

    Raises:
        UsageError: the policy has no adapters.
    """

    def __init__(self, policy: LanguagePolicy) -> None:
        with policy.reference():
            self.policy = policy

    @torch.no_grad()
    def score(
        self,
        rollouts: Rollouts,
        needs: frozenset[str] = frozenset({"logp"}),
        *,
        rows: Tensor | None = None,
        temperature: float = 1.0,
    ) -> dict[str, Tensor]:
        """As `LanguagePolicy.score`, without adapters and without gradient."""
        return self.policy.score(rollouts, needs, rows=rows, temperature=temperature, adapter=False)


def reference_of(policy: LanguagePolicy) -> Scorer:
    """A scorer for the policy as it was before its first update: adapters off where it has them, else a copy."""
    return AdapterlessScorer(policy) if has_adapters(policy.model) else FrozenScorer(policy)
