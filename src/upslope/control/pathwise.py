"""Gradients through known dynamics: traces of noise are drawn once and simulated anew under the policy as it is."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.control.learning import Rows, StepUpdater
from upslope.control.playing import Experience, Played, Player
from upslope.environments.dynamics import Dynamics
from upslope.errors import UsageError
from upslope.parts.network import POINTS
from upslope.parts.traces import Traces
from upslope.policies.control import ControlPolicy
from upslope.tasks.environments import Environments, Episode
from upslope.tasks.simulated import Simulated

TRACE_COLUMNS = frozenset({"start", "noise"})


class Path(NamedTuple):
    """What was observed [R, T, D], done [R, T, A] and earned [R, T] on R traces; with gradient to whatever acted."""

    observation: Tensor
    action: Tensor
    reward: Tensor


def simulate(dynamics: Dynamics, act: Any, start: Tensor, noise: Tensor) -> Path:
    """Plays `act`, from states [R, D] to actions [R, A], on traces: first states [R, D], noise [R, T, W].

    Actions are cut to the box, as an environment cuts them.
    """
    box: Any = dynamics.action_space
    low, high = (torch.from_numpy(bound) for bound in (box.low, box.high))
    state, seen, done, earned = start, list[Tensor](), list[Tensor](), list[Tensor]()
    for t in range(noise.shape[1]):
        action = torch.minimum(torch.maximum(act(state), low), high)
        seen.append(state)
        done.append(action)
        state, reward = dynamics.step(state, action, noise[:, t])
        earned.append(reward)
    return Path(torch.stack(seen, 1), torch.stack(done, 1), torch.stack(earned, 1))


class TracePlayer(Player):
    """Plays a policy's mode on traces. The batch has, beside what a `Player` makes, `start` [R, D] and `noise` [R, T, W], of whole
    traces or of pieces of them.

    Raises UsageError for environments whose dynamics are not known, or have no gradient.
    """

    def __init__(self, environments: Environments, policy: ControlPolicy, critic: Any, rollout: Traces) -> None:
        super().__init__(environments, policy, critic, rollout)  # type: ignore[arg-type]
        self.dynamics = dynamics_of(environments)
        self.traces: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def play(self, generator: torch.Generator) -> Experience:
        """The traces of one step of the run, and what the policy as it is makes of them. `generator` is not drawn from."""
        environments, rollout = self.environments, self.rollout
        assert isinstance(environments, Simulated)
        assert isinstance(rollout, Traces)
        if self.traces is None or rollout.fresh:
            if not rollout.fresh:
                environments.rewind()
            self.traces = environments.traces(rollout.steps)
            self._check_felt()
        start, noise = self.traces
        path = simulate(self.dynamics, mode_of(self.policy), start, noise)
        total = path.reward.sum(1)
        last = torch.zeros(path.reward.shape, dtype=torch.bool)
        last[:, -1] = True
        seen, earned = rollout.pieces(path.observation), rollout.pieces(path.reward)
        nothing = torch.zeros_like(earned)
        batch = Batch(
            logp=nothing,
            old_logp=nothing,
            token_reward=earned,
            reward=earned.sum(1),
            ended=rollout.pieces(last),
            start=seen[:, 0],
            noise=rollout.pieces(noise),
        )
        episodes = [Episode(row, self.steps, value, rollout.steps) for row, value in enumerate(total.tolist())]
        found = Experience(Played(seen, rollout.pieces(path.action)), batch, path.reward.numel(), episodes)
        self.steps += found.steps
        self.episodes += len(episodes)
        self.recent.clear()  # the mean is over all traces of the step
        self.mean = float(total.mean())
        return found

    @torch.enable_grad()
    def _check_felt(self) -> None:
        """Raises UsageError where a gradient ends before any action is felt."""
        assert self.traces is not None
        start, noise = (column[:8] for column in self.traces)
        reach = min(getattr(self.rollout, "reach", None) or noise.shape[1], noise.shape[1])
        action = mode_of(self.policy)(start).detach().requires_grad_()
        path = simulate(self.dynamics, lambda state: action, start, noise[:, :reach])
        felt = path.reward.requires_grad and torch.autograd.grad(path.reward.sum(), action)[0].any()
        if not felt:
            raise UsageError(
                f"no action changes what is earned within the {reach} steps that a gradient goes through, such as where an order "
                "arrives later: raise rollout.reach, or rollout.steps."
            )

    def metrics(self) -> dict[str, float]:
        """Steps and traces so far; the mean return over the step's traces."""
        found = {"env_steps": float(self.steps), "episodes": float(self.episodes)}
        return found | {"return": self.mean, "episode_length": float(self.rollout.steps)}  # type: ignore[union-attr]

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Puts back what `state_dict` returned."""
        self.traces = None
        return super().load_state_dict(state)


class PathwiseUpdater(StepUpdater):
    """Makes the column `cost` [R, T] of a mini-batch of traces: simulated under the policy as it is, with gradient."""

    def __init__(self, recipe: Any, policy: ControlPolicy, critic: Any, total_steps: int) -> None:
        _check(recipe, policy)
        super().__init__(recipe, policy, critic, total_steps)
        self.read |= TRACE_COLUMNS
        self.dynamics: Dynamics | None = None

    def play(self, player: Player, key: tuple[object, ...]) -> Experience:
        """As of StepUpdater; the player's dynamics are what is simulated."""
        assert isinstance(player, TracePlayer)
        self.dynamics = player.dynamics
        return super().play(player, key)

    def _plain_networks(self) -> tuple[None, None]:
        return None, None  # a network that is called at every step of a trace is autograd's

    def _columns(self, mini: Rows) -> dict[str, Tensor]:
        assert self.dynamics is not None
        path = simulate(self.dynamics, mode_of(self.policy), mini.batch.start, mini.batch.noise)
        return {"cost": -path.reward}


def mode_of(policy: ControlPolicy) -> Any:
    """The likeliest action [R, A] for states [R, D], with gradient, as an environment that cuts actions takes it."""

    def act(state: Tensor) -> Tensor:
        return policy.distribution(state).mode()

    return act


def dynamics_of(environments: Environments) -> Dynamics:
    """Raises UsageError for environments whose dynamics are not known, or have no gradient."""
    if not isinstance(environments, Simulated):
        raise UsageError(
            f"{environments.name} cannot be differentiated: its dynamics are not known. Take upslope/Inventory-v0 or "
            "upslope/Warehouse-v0, or make an environment of upslope.environments.dynamics.Simulation."
        )
    if environments.actions.kind != "continuous":
        raise UsageError(
            f"{environments.name} takes {environments.actions.kind} actions, to which a cost has no gradient. For an "
            "inventory set task_settings.lot=0, which allows any amount."
        )
    if environments.dynamics.obstacle:
        raise UsageError(
            f"{environments.name}: {environments.dynamics.obstacle}, so the gradient of the cost does not tell which order is "
            "better. Take ppo or pdppo."
        )
    return environments.dynamics


def _check(recipe: Any, policy: ControlPolicy) -> None:
    """Raises UsageError for what a pathwise gradient does not read."""
    if not isinstance(recipe.rollout, Traces):
        raise UsageError(f"'{recipe.name}' has the optimizer Pathwise(), which learns from rollout=Traces(). Set both.")
    if recipe.update.transitions or recipe.update.target_kl is not None or recipe.critic is not None:
        raise UsageError(
            f"'{recipe.name}' learns from whole traces, without a critic: set transitions=false, target_kl=null, critic=null."
        )
    if policy.settings.distribution not in (*POINTS, "gaussian") or policy.convention != "clip":
        raise UsageError(
            f"'{recipe.name}' plays the policy's mode in the environment's units: policy.distribution must be softplus or "
            f"gaussian, and is {policy.settings.distribution}."
        )
