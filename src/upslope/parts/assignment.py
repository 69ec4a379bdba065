"""Settings of many agents of one kind that are given orders in the same step: who scores pairs, how they play."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from upslope.errors import UsageError
from upslope.parts.network import MLP
from upslope.parts.steps import Playing


@dataclass(frozen=True)
class PairScores(MLP):
    """One network that scores every pair of an agent and an order, for all agents; layers and start as in MLP.

    choice   "orders": an agent's probabilities over the orders that it could take, a softmax over them; "agents": an order's
             probabilities over the agents that could take it
    Reads an environment's entries pairs [W, O, F], open [W, O], workers [W, A] and earned [W], as upslope/Dispatch-v0 has them.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: Literal["tanh", "relu", "silu", "gelu"] = "relu"
    choice: Literal["orders", "agents"] = "orders"
    formula: ClassVar[str] = "MLP {hidden} {activation} of each pair, softmax over the {choice}"

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = MLP()
        for name in ("shared", "distribution", "components", "log_std", "normalize"):
            if getattr(self, name) != getattr(plain, name):
                raise UsageError(f"PairScores scores pairs and has no {name}: leave it at {getattr(plain, name)!r}.")

    def build(self, observations: Any, actions: Any) -> Any:
        """A `PairPolicy`."""
        from upslope.policies.assignment import PairPolicy

        return PairPolicy(observations, actions, self)

    def critic(self, policy: Any) -> Any:
        """A `WorkerCritic`: V of an agent's own state, one network for all."""
        from upslope.policies.assignment import WorkerCritic

        return WorkerCritic(policy)


@dataclass(frozen=True)
class Assignments(Playing):
    """`episodes` whole episodes between two updates, in `environments` copies: a row of the batch is an agent in an episode.

    Rows [episodes * W, T]; positions are the environment's steps, `mask` those in which the agent was given an order, and
    `token_reward` what it earned there; `trajectory` is the episode.
    """

    episodes: int = 1
    environments: int = 1
    formula: ClassVar[str] = "{episodes} whole episodes, every agent a row"
    makes: ClassVar[frozenset[str]] = frozenset({"trajectory"})

    def __post_init__(self) -> None:
        for name in ("episodes", "environments"):
            if getattr(self, name) < 1:
                raise UsageError(f"Assignments.{name} is {getattr(self, name)}; it must be at least 1.")

    def player(self, environments: Any, policy: Any, critic: Any) -> Any:
        """An `AssignmentPlayer`."""
        from upslope.control.assigning import AssignmentPlayer

        return AssignmentPlayer(environments, policy, critic, self)
