"""Environments whose transition is a known function, in PyTorch, of state, action and noise that no action changes.

One `Dynamics` serves three readers: the Gymnasium environment of one copy (`Simulation`), many copies in lockstep
(`upslope.tasks.simulated`), and gradients of a cost through whole episodes (`upslope.control.pathwise`).
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from upslope.errors import UsageError


class Dynamics:
    """s' = f(s, a, w) and a reward. States are what is observed, [N, S] float32; w [N, W] is drawn whatever is done.

    obstacle   why the reward's gradient does not tell which action is better, such as a fixed cost; "": it does
    """

    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    obstacle: str = ""

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """The first state of an episode, [S] float32."""
        raise NotImplementedError

    def noise(self, generator: np.random.Generator, steps: int) -> np.ndarray:
        """w of `steps` steps, [steps, W] float32: drawn at once, the same numbers as drawn one by one."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The next state [N, S] and the reward [N]; actions [N, A], or [N] int64. Differentiable where there is no `obstacle`."""
        raise NotImplementedError

    def post_decision(self, observation: Tensor, action: Tensor) -> Tensor:
        """The state [N, P] between the action and the noise: what of the step is known before w is."""
        raise NotImplementedError


class Simulation(gymnasium.Env[np.ndarray, Any]):
    """One copy of a `Dynamics` as a Gymnasium environment. Episodes do not end by themselves."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
        self.observation_space, self.action_space = dynamics.observation_space, dynamics.action_space
        self._state: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation [S]. `options={"state": [S]}` starts from that state instead."""
        super().reset(seed=seed)
        self._state = self.dynamics.start(self.np_random)
        if options and "state" in options:
            given = np.asarray(options["state"], dtype=np.float32)
            if given.shape != self._state.shape or not np.isfinite(given).all():
                raise UsageError(
                    f"{type(self).__name__}: options['state'] has shape {list(given.shape)}; a state is {self._state.size} finite "
                    "numbers, as observed."
                )
            self._state = given
        return self._state.copy(), {}

    @torch.no_grad()
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """observation [S], reward, False, False (time limits are others'), info: the noise of the step."""
        if self._state is None:
            raise UsageError(f"{type(self).__name__}.step was called before reset.")
        noise = self.dynamics.noise(self.np_random, 1)
        state, reward = self.dynamics.step(
            torch.from_numpy(self._state).unsqueeze(0),
            torch.from_numpy(np.asarray(action)).unsqueeze(0),
            torch.from_numpy(noise),
        )
        self._state = state[0].numpy()
        return self._state.copy(), float(reward), False, False, {"noise": noise[0]}

    @torch.no_grad()
    def post_decision(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States [N, P] between actions [N, A] or [N] and noise, for observations [N, S]."""
        seen = torch.from_numpy(np.asarray(observations, dtype=np.float32))
        return self.dynamics.post_decision(seen, torch.from_numpy(np.asarray(actions))).numpy()
