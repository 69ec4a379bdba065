"""From a Config to what a run of the second loop works with: environments, log, policy, buffers, learner."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.actor_critic.data import Affine, ReturnRange
from upslope.actor_critic.learner import Learner
from upslope.actor_critic.log import Log, open_log
from upslope.actor_critic.recipe import ActorCritic
from upslope.actor_critic.replay import AHEAD, Layout, Replay
from upslope.actor_critic.unfinished import Unfinished
from upslope.collect import key_number, seeded
from upslope.config import IN_ENVIRONMENTS, Config, refuse_unread
from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy
from upslope.tasks.environments import Environments
from upslope.tasks.noise import noisy
from upslope.tasks.opening import open_environments
from upslope.tasks.spaces import ActionSpec, Leaf, ObservationSpec

READ = IN_ENVIRONMENTS | {"data"}
"""Settings of a run that this loop reads; any other is refused where it is set."""


@dataclass
class Opened:
    """What a run works with.

    environments   that are played in; None where the run learns from a log alone
    evaluation     copies of the same for evaluation, one per episode; None without a task
    log            None without --data
    replay         what is played; the log, too, unless the recipe draws from it separately (`logged`)
    shares         summed chances [n] of the log's transitions; None: all alike
    unfinished     episodes that still run, held back where a column is of their rest
    """

    recipe: ActorCritic
    policy: ControlPolicy
    learner: Learner
    replay: Replay
    layout: Layout
    environments: Environments | None
    evaluation: Environments | None
    log: Log | None
    logged: Replay | None
    shares: Tensor | None
    unfinished: Unfinished | None
    task: Any
    judge: None = None

    def close(self) -> None:
        """Closes the environments."""
        for environments in (self.environments, self.evaluation):
            if environments is not None:
                environments.close()


class Setting:
    """What is trained on, in words, for the session."""

    judge: None = None

    def __init__(self, text: str) -> None:
        self.text = text

    def describe(self) -> str:
        """A sentence."""
        return self.text

    def close(self) -> None:
        """Nothing is open here."""


def open_run(config: Config, recipe: ActorCritic, task: Any) -> Opened:
    """Opens what the config names. Raises UsageError naming the setting to change."""
    refuse_unread(config, READ, "learns from stored transitions")
    torch.set_num_threads(config.threads or 1)  # networks this small are slower with more
    _seed(config.seed)
    rollout: Any = recipe.rollout
    name = task if task is not None else config.task
    log = None
    if config.data is not None and name is None:
        log = open_log(config.data, None)
        name = log.task
        config = dataclasses.replace(config, task_settings={**log.task_settings, **config.task_settings})
    seed = key_number(f"{config.seed}/evaluation") % 2**32
    noise: float = rollout.observation_noise
    evaluation = (
        _environments(config, name, max(1, min(config.eval.episodes, 32)), seed, noise) if name is not None else None
    )
    if config.data is not None and log is None:
        assert evaluation is not None
        log = open_log(config.data, evaluation.actions)
    plays = evaluation is not None and (log is None or rollout.offline_steps is not None)
    _refuse_unlearnable(config, recipe, log, plays)
    log, chances = _selected(recipe, log)
    environments = _environments(config, name, rollout.environments, config.seed, noise) if plays else None
    observations, actions = _spaces(evaluation, log)
    layout = Layout(observations.size, actions.size, tuple(sorted(recipe.needs)))
    _fitting(log, layout, config)
    policy = ControlPolicy(observations, actions, _network(recipe, log))
    scale = _scale(recipe, layout, log, policy)
    learner = Learner(recipe, policy, layout, seeded(config.seed, "learner"), scale=scale)
    reward = _of_reward(layout, scale)
    replay, logged = _buffers(recipe, layout, log, reward, environments is not None)
    if log is not None:
        source = logged if logged is not None else replay
        learner.index_log(source.rows[: len(source)])
    shares = _shares(log, chances, layout)
    unfinished = None
    if environments is not None and recipe.needs:
        unfinished = Unfinished(environments.count, layout, _discount(recipe), reward)
    text = _told(config, recipe, name, environments, log)
    return Opened(
        recipe,
        policy,
        learner,
        replay,
        layout,
        environments,
        evaluation,
        log,
        logged,
        shares,
        unfinished,
        Setting(text),
    )


def _refuse_unlearnable(config: Config, recipe: ActorCritic, log: Log | None, plays: bool) -> None:
    """Raises UsageError where a recipe asks for what neither the log nor what is played gives."""
    rollout: Any = recipe.rollout
    if log is not None and not log.rewarded and any((recipe.critic, recipe.value, recipe.selection)):
        raise UsageError(
            f"the log {config.data} has no rewards, which '{recipe.name}' learns from. Imitate it: upslope train bc."
        )
    if log is None and (recipe.needs or recipe.any_reads("reads_log")):
        raise UsageError(
            f"'{recipe.name}' keeps to the actions of a log: give --data FILE, or the folder of a run that has played."
        )
    if plays and (only := sorted(recipe.needs - AHEAD)):
        raise UsageError(
            f"'{recipe.name}' reads {', '.join(only)}, which only a log has. Set rollout.offline_steps=None."
        )
    played = config.steps * rollout.steps * rollout.environments
    if plays and rollout.uniform(log is not None) >= played > 0:
        raise UsageError(
            f"the first rollout.warmup={rollout.warmup} actions are drawn at random, and this run has {played} in all: nothing "
            f"would be learned. Lower rollout.warmup, or raise --steps ({rollout.steps * rollout.environments} actions each)."
        )


def _selected(recipe: ActorCritic, log: Log | None) -> tuple[Log | None, np.ndarray | None]:
    """The log's episodes that are drawn at all, with the weight of each of its transitions; None: all alike."""
    part: Any = recipe.selection
    if part is None:
        return log, None
    if log is None:
        raise UsageError(f"'{recipe.name}' chooses among the episodes of a log: give --data FILE, or a run's folder.")
    weight = np.asarray(part(log), dtype=np.float64)[log.episode]
    log, weight = log.at(weight > 0), weight[weight > 0]
    return log, None if (weight == weight[0]).all() else weight


def _shares(log: Log | None, weight: np.ndarray | None, layout: Layout) -> Tensor | None:
    if log is None or weight is None:
        return None
    summed = np.cumsum(weight[log.kept(layout)])
    return torch.from_numpy(summed / summed[-1])


def _discount(recipe: ActorCritic) -> float:
    return float(getattr(recipe.target, "discount", 0.99))


def _of_reward(layout: Layout, scale: tuple[Tensor, Tensor] | None) -> tuple[float, float]:
    """(factor, offset) of rewards."""
    place = layout.columns()["reward"][0]
    return (1.0, 0.0) if scale is None else (float(scale[1][place]), float(scale[0][place]))


def _environments(config: Config, name: Any, count: int, seed: int, noise: float) -> Environments:
    found = open_environments(name, count, seed, settings=config.task_settings, convention="scale")
    if found.actions.kind != "continuous":
        raise UsageError(
            f"'{config.method}' takes continuous actions, and those of {found.name} are {found.actions.kind}. Take a method for "
            "these, such as ppo."
        )
    return noisy(found, noise)


def _spaces(environments: Environments | None, log: Log | None) -> tuple[ObservationSpec, ActionSpec]:
    if environments is not None:
        return environments.observations, environments.actions
    assert log is not None
    size = log.action.shape[1]
    observations = ObservationSpec((Leaf("observation", (log.observation.shape[1],)),))
    if log.actions is not None:
        return observations, log.actions
    return observations, ActionSpec("continuous", (size,), low=(-1.0,) * size, high=(1.0,) * size)


def _fitting(log: Log | None, layout: Layout, config: Config) -> None:
    if log is not None and (log.observation.shape[1] != layout.observation or log.action.shape[1] != layout.action):
        raise UsageError(
            f"the log {config.data} has observations of {log.observation.shape[1]} and actions of {log.action.shape[1]} numbers; "
            f"{config.task} has {layout.observation} and {layout.action}. It is of another environment."
        )
    if log is not None and not log.kept(layout).any():
        raise UsageError(
            f"no step of the log {config.data} has a next action, which '{config.method}' reads: every episode is one step that "
            "was cut. Take a log whose steps are in the order of their episodes, or another method, such as td3_bc."
        )


def _network(recipe: ActorCritic, log: Log | None) -> Any:
    """The settings of the policy's network; with the log's moments where the recipe standardizes."""
    data: Any = recipe.data
    network: Any = recipe.policy
    if log is None or not data.standardize:
        return network
    return dataclasses.replace(network, normalize=True, normalize_clip=float("inf"))


def _scale(recipe: ActorCritic, layout: Layout, log: Log | None, policy: ControlPolicy) -> tuple[Tensor, Tensor] | None:
    """What rows are multiplied by and moved by: standardized observations, scaled rewards; None: nothing."""
    offset, factor = torch.zeros(layout.width), torch.ones(layout.width)
    columns = layout.columns()
    if log is not None and recipe.data.standardize:  # type: ignore[attr-defined]
        policy.observe(torch.from_numpy(log.observation))
        shift, scale = policy.shift_and_scale()
        for name in ("observation", "next_observation"):
            first, last = columns[name]
            factor[first:last], offset[first:last] = scale, -shift * scale
    reward = columns["reward"][0]
    if isinstance(recipe.reward, ReturnRange) and log is not None:
        factor[reward] = recipe.reward.factor(torch.from_numpy(log.returns()))
    elif isinstance(recipe.reward, Affine):
        factor[reward], offset[reward] = recipe.reward.scale, recipe.reward.shift
    return (offset, factor) if bool((offset != 0).any() or (factor != 1).any()) else None


def _buffers(
    recipe: ActorCritic, layout: Layout, log: Log | None, reward: tuple[float, float], plays: bool
) -> tuple[Replay, Replay | None]:
    data: Any = recipe.data
    if log is None:
        return Replay(data.capacity, layout), None
    rows = log.rows(layout, _discount(recipe), reward)
    if not plays or data.log_share is not None:
        logged = Replay(len(rows), layout)
        logged.add(rows)
        return Replay(data.capacity if plays else 1, layout), logged
    replay = Replay(max(data.capacity, len(rows)), layout)
    replay.add(rows)
    return replay, None


def _told(config: Config, recipe: ActorCritic, name: Any, environments: Environments | None, log: Log | None) -> str:
    rollout: Any = recipe.rollout
    parts = []
    if log is not None:
        returns = log.returns()
        drawn = f" ({recipe.selection.describe()})" if recipe.selection is not None else ""
        parts.append(
            f"log {config.data}: {len(log):,} transitions in {len(returns)} episodes{drawn}, mean return {returns.mean():.4g}"
        )
        parts += log.notes
    if environments is not None:
        parts.append(
            f"{environments.name}: {rollout.environments} x {rollout.steps} actions a step, {config.steps} steps: "
            f"{rollout.environments * rollout.steps * config.steps:,} in all"
        )
    elif name is None:
        parts.append("no --task: nothing is evaluated by playing")
    return "; ".join(parts)


def _seed(seed: int) -> None:
    """Every global generator: what an environment draws from them belongs to the run, too."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
