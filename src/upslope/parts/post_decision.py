"""Two critics: V of the state that was acted in, and V of the state after the action, before anything is drawn."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import check_within
from upslope.parts.gae import return_to_go
from upslope.parts.steps import Episodes, Optimizer
from upslope.recipe import Part

Critics = Literal["both", "state", "post_decision"]


@dataclass(frozen=True)
class PostDecisionEpisodes(Episodes):
    """Episodes of an environment that tells the state after an action, `post_decision(observations, actions)`.

    The batch has that state, `post_state` [R, T, P], and what both critics think: `old_value`, `old_post_value` [R, T].
    """

    makes: ClassVar[frozenset[str]] = frozenset({"post_state", "post_value", "old_post_value"})

    def player(self, environments: Any, policy: Any, critic: Any) -> Any:
        """A `PostDecisionPlayer`."""
        from upslope.control.post_decision import PostDecisionPlayer

        return PostDecisionPlayer(environments, policy, critic, self)


@dataclass(frozen=True)
class PostDecisionAdvantage(Part):
    """A = G - min(V, V^x) [R, T] of the critics before the update, G the discounted return of the rest of the episode,
    normalised over the batch: (G - mean) / (std + eps), std with n - 1. `returns` are these G.

    `critics`: both, or one of them alone.
    """

    gamma: float = 0.99
    eps: float = 1e-7
    critics: Critics = "both"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_value", "old_post_value"})

    def __post_init__(self) -> None:
        check_within(self, 0, 1, "gamma")

    def describe(self) -> str:
        return f"G - {_name(self.critics)}, G = return(gamma={self.gamma:g}) normalised over the batch"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        found = return_to_go(batch, self.gamma)
        scaled = (found - batch.masked_mean(found)) / (batch.masked_std(found) + self.eps)
        returns = torch.where(batch.mask, scaled, 0.0)
        return {"advantage": returns - joined(batch.old_value, batch.old_post_value, self.critics), "returns": returns}


@dataclass(frozen=True)
class LesserValue(Part):
    """(min(V, V^x) - G)^2 / 2 [R, T]: of each transition only the smaller critic has a gradient, of equal ones each half.

    `critics`: both, or one of them alone, as in PostDecisionAdvantage.
    """

    critics: Critics = "both"
    needs: ClassVar[frozenset[str]] = frozenset({"value", "post_value", "returns"})

    def describe(self) -> str:
        return f"({_name(self.critics)} - returns)^2 / 2"

    def network(self, policy: Any, environments: Any) -> Any:
        """The two critics of a run."""
        from upslope.control.post_decision import DualCritic

        return DualCritic(policy, environments)

    def __call__(self, batch: Batch) -> Tensor:
        return (joined(batch.value, batch.post_value, self.critics) - batch.returns) ** 2 / 2


@dataclass(frozen=True)
class DualOptimizer(Optimizer):
    """An Optimizer of a policy and its two critics, in one step with one norm."""

    def updater(self) -> Any:
        """A `DualUpdater`."""
        from upslope.control.post_decision import DualUpdater

        return DualUpdater


def joined(value: Tensor, post_value: Tensor, critics: Critics) -> Tensor:
    """What the two critics say together, [R, T]: the smaller value, or that of one."""
    if critics == "both":
        return torch.minimum(value, post_value)
    return value if critics == "state" else post_value


def _name(critics: Critics) -> str:
    return {"both": "min(V, V^x)", "state": "V", "post_decision": "V^x"}[critics]
