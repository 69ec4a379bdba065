"""Minibatches with networks that are plain functions, so that a loss can be held against numbers worked out by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.actor_critic.critics import Lowest
from upslope.actor_critic.minibatch import Minibatch, Networks
from upslope.actor_critic.replay import Layout

QFunction = Callable[[Tensor], Tensor]


class GivenCritic:
    """An ensemble that is a function of its inputs: [B, in] (or [E, B, in]) -> [E, B]."""

    def __init__(self, function: QFunction, members: int) -> None:
        self.function, self.members = function, members

    def __call__(
        self, inputs: Tensor, *, members: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        found = self.function(inputs)
        return found if members is None else found[list(members)]


class GivenPolicy:
    """A policy that always gives this action [B, A] with this log-prob [B]; `logp` of any action is `density`, if given."""

    def __init__(self, action: Tensor, logp: Tensor, density: Tensor | None = None) -> None:
        self.action, self.log_prob, self.density = action, logp, density

    def sample(self, observation: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The action and its log-prob, repeated where more observations are given."""
        times = len(observation) // len(self.action)
        return self.action.repeat_interleave(times, 0), self.log_prob.repeat_interleave(times, 0)

    def mode(self, observation: Tensor) -> Tensor:
        """The action."""
        return self.action

    def logp(self, observation: Tensor, action: Tensor) -> Tensor:
        """`density`."""
        assert self.density is not None
        return self.density


def minibatch_of(
    action: Any,
    *,
    reward: Any = None,
    terminated: Any = None,
    q: QFunction | None = None,
    target_q: QFunction | None = None,
    members: int = 2,
    value: QFunction | None = None,
    policy: Any = None,
    target_policy: Any = None,
    alpha: float = 0.0,
    ensemble: Any = None,
    own_inputs: bool = False,
    seed: int = 0,
    **extras: Any,
) -> Minibatch:
    """B transitions of one observation number each (0, 1, 2 ...; its successor is 0.5 more) with these actions [B, A].

    `q`, `target_q` and `value` are functions of inputs [.., 1 + A] or [.., 1]; `extras` the columns next_action, return_to_go.
    Everything is float64.
    """
    actions = torch.as_tensor(action, dtype=torch.float64)
    rows, size = actions.shape
    layout = Layout(1, size, tuple(sorted(extras)))
    given = {
        "observation": torch.arange(rows, dtype=torch.float64),
        "action": actions,
        "reward": torch.zeros(rows) if reward is None else reward,
        "terminated": torch.zeros(rows) if terminated is None else terminated,
        "truncated": torch.zeros(rows),
        "next_observation": torch.arange(rows) + 0.5,
        **extras,
    }
    made = torch.empty(rows, layout.width, dtype=torch.float64)
    for name, (first, last) in layout.columns().items():
        made[:, first:last] = torch.as_tensor(given[name], dtype=torch.float64).reshape(rows, last - first)
    networks = Networks(policy, target_policy=target_policy, alpha=alpha)
    for name, function, count in (("critic", q, members), ("target_critic", target_q, members), ("value", value, 1)):
        if function is not None:
            setattr(networks, name, GivenCritic(function, count))
    combine = ensemble or Lowest()
    generator = torch.Generator().manual_seed(seed)
    return Minibatch(
        made,
        layout.columns(),
        networks,
        generator,
        combine=combine,
        choose=combine.choose,
        own_inputs=own_inputs,
    )
