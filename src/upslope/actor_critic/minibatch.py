"""Minibatch: the transitions of one update with the networks as they are, and what several parts ask of them, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from upslope.actor_critic.networks import EnsembleNetwork
from upslope.errors import UsageError


class Actor(Protocol):
    """A policy's network: actions [B, A] in [-1, 1] with their log-probs [B]."""

    def sample(self, observation: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Reparametrised: gradient goes through the action. A deterministic policy gives its action, and zeros."""
        ...

    def mode(self, observation: Tensor) -> Tensor:
        """The action to take where nothing is explored."""
        ...

    def logp(self, observation: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s) [B] of given actions."""
        ...


@dataclass
class Networks:
    """Whatever a recipe has; the others are None. `alpha` is the temperature as it is, `index` what a part made of the log."""

    policy: Any
    critic: EnsembleNetwork | None = None
    value: EnsembleNetwork | None = None
    target_policy: Any = None
    target_critic: EnsembleNetwork | None = None
    proposer: Any = None
    index: Any = None
    alpha: float = 0.0


class Minibatch:
    """B transitions as columns, and the networks.

        observation, next_observation [B, O]    action [B, A]    reward, terminated [B]    state_action [B, O + A]
        next_action [B, A], return_to_go, lambda_return, advantage [B]     where they are asked for
        target [B], target_action [B, A]     y and a' of the critic's update, once it was made; `discount` is y's

    combine          members of the target ensemble -> one value, the recipe's stage `ensemble`: q [E, B] -> [B]
    choose           the members that it wants, or None for all
    own_inputs       each critic gets inputs of its own, so that dQ_j/da can be asked for
    """

    def __init__(
        self,
        rows: Tensor,
        columns: dict[str, tuple[int, int]],
        networks: Networks,
        generator: torch.Generator,
        *,
        combine: Callable[[Tensor], Tensor],
        choose: Callable[[int, torch.Generator], Sequence[int] | None] | None,
        own_inputs: bool = False,
    ) -> None:
        self.rows, self.columns, self.networks, self.generator = rows, columns, networks, generator
        self.combine, self.choose, self.own_inputs = combine, choose, own_inputs
        first, last = columns["observation"]
        self.observation = rows[:, first:last]
        first, last = columns["next_observation"]
        self.next_observation = rows[:, first:last]
        begin, end = columns["action"]
        self.action = rows[:, begin:end]
        self.state_action = rows[:, :end]  # they stand side by side: the critics' input without a copy
        self.reward = rows[:, columns["reward"][0]]
        self.terminated = rows[:, columns["terminated"][0]]
        self._policy: tuple[Tensor, Tensor] | None = None
        self._logged: Tensor | None = None
        self._inputs: Tensor | None = None
        self.policy_q: Tensor | None = None
        self.target: Tensor | None = None
        self.target_action: Tensor | None = None
        self.discount = 0.99

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Tensor:
        """A column that only logs have, [B] or [B, A]. Raises UsageError where this data lacks it."""
        if name not in self.columns:
            raise UsageError(
                f"the column '{name}' is read, which these transitions do not have: only a log (--data) gives it."
            )
        first, last = self.columns[name]
        column = self.rows[:, first:last]
        return column if name == "next_action" else column[:, 0]

    @property
    def alpha(self) -> float:
        """The temperature."""
        return self.networks.alpha

    def q(self, observation: Tensor, action: Tensor, *, members: Sequence[int] | None = None) -> Tensor:
        """The critics' values [E, B], with gradient; dropout is active."""
        assert self.networks.critic is not None
        return self.networks.critic(torch.cat([observation, action], -1), members=members, generator=self.generator)

    def target_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """The target ensemble's values as one, [B], by the recipe's `ensemble`."""
        critic = self.networks.target_critic
        assert critic is not None
        inputs = torch.cat([observation, action], -1)
        members = None if self.choose is None else self.choose(critic.members, self.generator)
        return self.combine(critic(inputs, members=members, generator=self.generator))

    def value(self, observation: Tensor) -> Tensor:
        """V(s) [B], with gradient."""
        assert self.networks.value is not None
        return self.networks.value(observation, generator=self.generator)[0]

    def next_sample(self) -> tuple[Tensor, Tensor]:
        """a' ~ pi(.|s') and its log-prob; drawn anew in every call."""
        found: tuple[Tensor, Tensor] = self.networks.policy.sample(self.next_observation, self.generator)
        return found

    def sample(self) -> tuple[Tensor, Tensor]:
        """a ~ pi(.|s) and its log-prob, with gradient; the same in every call."""
        if self._policy is None:
            self._policy = self.networks.policy.sample(self.observation, self.generator)
        return self._policy

    def settle(self, action: Tensor, logp: Tensor) -> None:
        """Makes an action of the policy's, chosen otherwise than by `sample`, the one that `sample` gives from now on."""
        self._policy = action, logp

    def logged_q(self) -> Tensor:
        """Q_j(s, a) of the stored actions [E, B], with gradient; the same in every call."""
        if self._logged is None:
            critic = self.networks.critic
            assert critic is not None
            inputs = self.state_action
            if self.own_inputs:
                inputs = inputs.expand(critic.members, *inputs.shape).detach().clone().requires_grad_()
                self._inputs = inputs
            self._logged = critic(inputs, generator=self.generator)
        return self._logged

    def action_gradient(self) -> Tensor:
        """dQ_j/da at the stored actions [E, B, A], itself differentiable."""
        q = self.logged_q()
        assert self._inputs is not None, "own_inputs is off"
        (gradient,) = torch.autograd.grad(q.sum(), self._inputs, create_graph=True)
        return gradient[..., self.observation.shape[-1] :]
