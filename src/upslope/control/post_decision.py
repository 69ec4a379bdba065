"""Playing and learning with post-decision states: what an environment tells of them, and the critics that read them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.control.learning import Rows, StepUpdater
from upslope.control.playing import Experience, Player
from upslope.errors import UsageError
from upslope.policies.control import Body, ControlPolicy, Critic
from upslope.recipe import Recipe
from upslope.tasks.environments import Copies, Environments
from upslope.tasks.simulated import Simulated


def post_states(environments: Environments, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
    """States [M, P] after actions [M] or [M, A] of a policy in states that are observed as [M, D].

    An environment tells them by a method `post_decision(observations, actions)`, of flat observations [M, D] and actions
    [M, *shape] as it takes them, to [M, P]. Raises UsageError where there is none, or it gives something else.
    """
    hook: Any = None
    if isinstance(environments, Simulated):
        hook = environments.dynamics.post_decision
        observation, given = torch.from_numpy(observation), _given(environments, action)  # type: ignore[assignment]
        with torch.no_grad():
            found = hook(observation, torch.from_numpy(given)).numpy()
    else:
        hook = getattr(environments.copies[0], "post_decision", None) if isinstance(environments, Copies) else None
        if hook is None:
            raise UsageError(
                f"{environments.name} does not tell the state between an action and what is drawn after it. Give its class a "
                "method post_decision(observations [M, D], actions [M, ...]) -> [M, P], a function of the two alone; "
                "upslope/LotSizing-v0 and upslope/FrozenLake-v0 have it. A wrapper hides it, and observation_noise does.",
            )
        found = np.asarray(hook(observation, _given(environments, action)), dtype=np.float32)
    if found.ndim != 2 or len(found) != len(observation) or not np.isfinite(found).all():
        raise UsageError(
            f"{environments.name}: post_decision gave shape {list(found.shape)} for {len(observation)} observations; it must be "
            f"[{len(observation)}, P], of finite numbers."
        )
    return found


def _given(environments: Environments, action: np.ndarray) -> np.ndarray:
    return environments.actions.to_environment(action, environments.convention)


class DualCritic(Critic):
    """V of observations, as a Critic, and V^x of post-decision states, by layers of its own of the same widths.

    Post-decision states are normalised as observations are where they have as many numbers; else they are read as they are.
    """

    def __init__(self, policy: ControlPolicy, environments: Environments) -> None:
        super().__init__(policy)
        action = policy.actions
        one = np.zeros((1,) if action.kind == "discrete" else (1, action.size))
        one = one.astype(np.float32 if action.kind == "continuous" else np.int64)
        size = post_states(environments, np.zeros((1, policy.observations.size), dtype=np.float32), one).shape[1]
        self.alike = size == policy.observations.size
        self.post_body = Body(size, policy.settings)
        self.post_head = nn.Linear(self.post_body.width, 1)
        nn.init.orthogonal_(self.post_head.weight, policy.settings.value_gain)
        nn.init.zeros_(self.post_head.bias)

    def post(self, state: Tensor) -> Tensor:
        """V^x of post-decision states [..., P], [...]."""
        seen = self._policy[0].normalized(state) if self.alike else state
        value: Tensor = self.post_head(self.post_body(seen))
        return value.squeeze(-1)


class PostDecisionPlayer(Player):
    """A Player whose batches have the post-decision states of what was played, and both critics' values."""

    def play(self, generator: torch.Generator) -> Experience:
        """The experience of one step of the run. Raises EnvironmentFailure, and UsageError as `post_states`."""
        found = super().play(generator)
        played, mask = found.played, found.batch.mask
        reached = post_states(self.environments, played.observation[mask].numpy(), played.action[mask].numpy())
        states = torch.zeros(*mask.shape, reached.shape[1])
        states[mask] = torch.from_numpy(reached)
        critic = self.critic
        assert isinstance(critic, DualCritic)
        with torch.no_grad():
            values = {"old_value": critic(played.observation), "old_post_value": critic.post(states)}
        return replace(found, batch=found.batch.replace(post_state=states, **values))


class DualUpdater(StepUpdater):
    """Policy and both critics in one optimizer step: adds the column `post_value`."""

    def __init__(self, recipe: Recipe, policy: ControlPolicy, critic: Any, total_steps: int) -> None:
        if not isinstance(critic, DualCritic):
            raise UsageError(f"'{recipe.name}' learns with two critics: its critic must be LesserValue().")
        super().__init__(recipe, policy, critic, total_steps)
        if not self.joint:
            raise UsageError(f"'{recipe.name}' has one optimizer for policy and critics. Set value_coefficient=1.")
        self.read |= {"post_state"}

    def _columns(self, mini: Rows) -> dict[str, Tensor]:
        assert isinstance(self.critic, DualCritic)
        value = self.critic.post(mini.batch.post_state)
        return {**super()._columns(mini), "post_value": torch.where(mini.batch.mask, value, 0.0)}
