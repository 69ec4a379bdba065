"""Scorers: whatever gives log-probs of given tokens. One interface for the policy, a reference and a teacher."""

from collections.abc import Mapping
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


class AveragingScorer(FrozenScorer):
    """A copy of the policy that follows it: in every step, w <- rate * policy's w + (1 - rate) * w, in float32."""

    def __init__(self, policy: LanguagePolicy, rate: float) -> None:
        super().__init__(policy)
        self.rate = rate
        trained = policy.state_dict().keys()
        self._weights = {name: p for name, p in self.policy.model.named_parameters() if name in trained}
        self._average = {name: weight.data.float() for name, weight in self._weights.items()}

    @torch.no_grad()
    def follow(self, policy: LanguagePolicy) -> None:
        """One step towards the policy, in new tensors: those that `state_dict` gave before stay as they were."""
        newest = policy.state_dict()
        self.load_state_dict({n: torch.lerp(w, newest[n].to(w), self.rate) for n, w in self._average.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that follow, by name, not copied."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state_dict` returned."""
        self._average = {name: state[name].to(average) for name, average in self._average.items()}
        for name, weight in self._weights.items():
            weight.data = self._average[name].to(weight.dtype)


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
