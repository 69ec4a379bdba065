"""Policies of many agents of one kind: every pair of an agent and an order is scored, and the scores are settled by assignment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from upslope.errors import UsageError
from upslope.parts.assignment import PairScores
from upslope.policies.control import Body, ControlPolicy, Critic, _linear
from upslope.policies.distributions import Categorical
from upslope.tasks.spaces import ActionSpec, ObservationSpec

CLOSED = 1e6  # what a pair that is not open costs: more than any log-prob


class Layout(NamedTuple):
    """W agents, O places of orders, F numbers of a pair, A of an agent."""

    agents: int
    orders: int
    pair: int
    agent: int

    @classmethod
    def of(cls, observations: ObservationSpec, actions: ActionSpec) -> "Layout":
        """From what an environment shows and takes. Raises UsageError for one that has no pairs."""
        shapes = {leaf.name: leaf.shape for leaf in observations.leaves}
        if set(shapes) != {"pairs", "open", "workers", "earned"} or len(shapes["pairs"]) != 3:
            raise UsageError(
                "a policy that assigns reads a dict of pairs [W, O, F], open [W, O], workers [W, A] and earned [W], such as "
                f"upslope/Dispatch-v0 gives, and this environment shows {', '.join(shapes)}."
            )
        agents, orders, pair = shapes["pairs"]
        wanted = {"open": (agents, orders), "earned": (agents,), "workers": (agents, *shapes["workers"][1:])}
        wrong = [name for name, shape in wanted.items() if shapes[name] != shape]
        if wrong or actions.values != (orders + 1,) * agents:
            raise UsageError(
                f"a policy that assigns {orders} orders to {agents} agents reads open [{agents}, {orders}], workers [{agents}, A] "
                f"and earned [{agents}], and takes MultiDiscrete([{orders + 1}] * {agents}); this environment has other "
                f"{', '.join(wrong) or 'actions'}."
            )
        return cls(agents, orders, pair, *shapes["workers"][1:])


class Scores(nn.Module):
    """Of the K pairs that a choice compares, [..., K * F + K + A] to [..., K], -inf where one is not open."""

    def __init__(self, rivals: int, layout: Layout, settings: PairScores) -> None:
        super().__init__()
        self.rivals, self.layout = rivals, layout
        self.inner = Body(layout.pair, settings)
        self.last = _linear(self.inner.width, 1, settings, settings.policy_gain)

    def forward(self, seen: Tensor) -> Tensor:
        pairs, open_, _ = seen.split([self.rivals * self.layout.pair, self.rivals, self.layout.agent], -1)
        return self.of(pairs.unflatten(-1, (self.rivals, self.layout.pair)), open_ > 0.5)

    def of(self, pairs: Tensor, open_: Tensor) -> Tensor:
        """Of pairs [..., F]: [...]. Only open ones pass through the network."""
        found = functional.linear(self.inner(pairs[open_]), self.last.weight, self.last.bias).squeeze(-1)
        return pairs.new_full(open_.shape, -torch.inf).masked_scatter(open_, found)


class PairPolicy(ControlPolicy):
    """pi(order | agent), or pi(agent | order), by one network that scores pairs; who takes what is settled for all at once.

    The agents' choices are drawn by adding Gumbel noise to the log-probs of all open pairs; the assignment of the largest sum
    (Hungarian method) takes as many pairs as it can. An agent alone, with orders enough, so takes a draw from its softmax.
    Learning sees single choices, [..., K * F + K + A]: the pairs that were compared (an agent's K = O orders, or an order's
    K = W agents), which of them were open, and the agent's own state; the action is the index of the one chosen.
    """

    settings: PairScores

    def __init__(self, observations: ObservationSpec, actions: ActionSpec, settings: PairScores) -> None:
        nn.Module.__init__(self)
        self.observations, self.actions, self.settings = observations, actions, settings
        self.layout = Layout.of(observations, actions)
        self.body: Any = Scores(self.rivals, self.layout, settings)
        self.log_std, self.moments = None, None

    @property
    def rivals(self) -> int:
        """K, how many pairs a choice compares."""
        return self.layout.orders if self.settings.choice == "orders" else self.layout.agents

    def parts(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """The entries of flat observations [N, D] by name, in their shapes."""
        found, place = {}, 0
        for leaf in self.observations.leaves:
            found[leaf.name] = observation[:, place : place + leaf.size].reshape(len(observation), *leaf.shape)
            place += leaf.size
        return found

    def choices(self, parts: dict[str, np.ndarray], where: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """What learning sees of the pairs (observation, agent, order) in `where`, [M, K * F + K + A], and what was chosen [M]."""
        row, agent, order = where
        of_agent = self.settings.choice == "orders"
        pairs = parts["pairs"][row, agent] if of_agent else parts["pairs"][row, :, order]
        rivals = parts["open"][row, agent] if of_agent else parts["open"][row, :, order]
        own = parts["workers"][row, agent]
        seen = np.concatenate([pairs.reshape(len(row), self.rivals * self.layout.pair), rivals, own], 1).astype(
            np.float32
        )
        return seen, order if of_agent else agent

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The last layer."""
        last: nn.Linear = self.body.last
        return last

    def distribution_at(self, features: Tensor) -> Categorical:
        """Over the pairs compared."""
        return Categorical(features)

    @torch.no_grad()
    def act(
        self, observation: np.ndarray, generator: torch.Generator | None = None, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """For the environment's observations [N, D]: for each agent 0 or 1 + the place of its order, [N, W], and the log-prob [N]
        of all choices, as if each had been made alone.
        """
        parts = self.parts(np.asarray(observation, dtype=np.float32))
        open_ = torch.from_numpy(parts["open"] > 0.5)
        scores = self.body.of(torch.from_numpy(parts["pairs"]), open_)
        logp = scores.log_softmax(2 if self.settings.choice == "orders" else 1)
        value = logp
        if not deterministic:
            value = logp - torch.empty(scores.shape).exponential_(generator=generator).log()
        action = np.stack([assign(one, there) for one, there in zip(value.numpy(), open_.numpy(), strict=True)])
        row, agent = action.nonzero()
        taken = np.zeros(len(action))
        np.add.at(taken, row, logp.numpy()[row, agent, action[row, agent] - 1])
        return action, taken

    def sampler(self, generator: torch.Generator, steps: int) -> Callable[[np.ndarray], np.ndarray]:
        """A function from observations [N, D] to drawn actions [N, W]."""
        return lambda observation: self.act(observation, generator)[0]


def assign(value: np.ndarray, open_: np.ndarray) -> np.ndarray:
    """For each of W agents 0 or 1 + its order: the pairs among `open_` [W, O], as many as can be, with the largest sum of value."""
    from scipy.optimize import linear_sum_assignment

    action = np.zeros(len(value), dtype=np.int64)
    agents, orders = np.flatnonzero(open_.any(1)), np.flatnonzero(open_.any(0))
    block = np.ix_(agents, orders)
    chosen, taken = linear_sum_assignment(np.where(open_[block], -value[block], CLOSED))
    real = open_[block][chosen, taken]
    action[agents[chosen[real]]] = 1 + orders[taken[real]]
    return action


class Own(nn.Module):
    """Hidden layers on the agent's own state, the last A numbers of [..., K * F + K + A]."""

    def __init__(self, size: int, settings: PairScores) -> None:
        super().__init__()
        self.size, self.inner = size, Body(size, settings)

    def forward(self, seen: Tensor) -> Tensor:
        hidden: Tensor = self.inner(seen[..., -self.size :])
        return hidden


class WorkerCritic(Critic):
    """V of an agent's own state, [..., K * F + K + A] to [...]: one network for all agents."""

    def __init__(self, policy: PairPolicy) -> None:
        nn.Module.__init__(self)
        self.shared = False
        self.body: Any = Own(policy.layout.agent, policy.settings)
        self.head = _linear(self.body.inner.width, 1, policy.settings, policy.settings.value_gain)
        self._policy = (policy,)
