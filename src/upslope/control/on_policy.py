"""On-policy control: plays with the policy as it is, learns from that by a recipe, and plays on."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope.collect import key_number, seeded
from upslope.config import Config, OptimizerConfig
from upslope.control.evaluation import play_episodes, return_metrics
from upslope.control.learning import MODEL_COLUMNS
from upslope.control.playing import Player
from upslope.errors import UsageError
from upslope.parts.network import MLP, POINTS
from upslope.parts.optimizing import Optimizing
from upslope.parts.steps import StepUpdate
from upslope.policies.control import ControlPolicy, Critic
from upslope.recipe import Recipe
from upslope.tasks.environments import EnvironmentFailure, Environments
from upslope.tasks.noise import noisy
from upslope.tasks.opening import open_environments

PLAYED_COLUMNS = frozenset({"logp", "old_logp", "token_reward", "reward", "ended", "mask", "progress", "step"})
CRITIC_COLUMNS = frozenset({"old_value", "next_value", "value"})


class OnPolicyAgent:
    """A policy, its critic where the recipe has one, and the environments that it plays in: the parts of a run.

    environment   what `open_environments` takes; None: the config's task
    """

    judge = None

    def __init__(self, config: Config, recipe: Recipe, environment: Any = None) -> None:
        check_recipe(recipe, config)
        self.config, self.recipe = config, recipe
        self.what = config.task if environment is None else environment
        if self.what is None:
            raise UsageError(
                f"'{recipe.name}' learns in an environment: give --task with the id of one, such as CartPole-v1, or module:Class."
            )
        rollout: Any = recipe.rollout
        self.rollout = rollout
        network: Any = recipe.policy
        torch.manual_seed(config.seed)
        self.environments = self._open(
            self.rollout.environments, config.seed, "scale" if network.distribution == "squashed" else "clip"
        )
        self.evaluation: Environments | None = None
        try:
            self.policy: ControlPolicy = network.build(self.environments.observations, self.environments.actions)
            self.critic = critic_of(recipe, self.policy, self.environments)
            optimizer: Any = recipe.optimizer
            self.updater = optimizer.updater()(recipe, self.policy, self.critic, config.steps)
            self.player: Player = self.rollout.player(self.environments, self.policy, self.critic)
        except BaseException:
            self.environments.close()
            raise
        self.states = recipe.init()

    def _open(self, count: int, seed: int, convention: Any) -> Environments:
        found = open_environments(self.what, count, seed, settings=self.config.task_settings, convention=convention)
        return noisy(found, self.rollout.observation_noise)

    @property
    def task(self) -> "OnPolicyAgent":
        """What is told of the task is told here."""
        return self

    def describe(self) -> str:
        """What is seen and done."""
        seen, done = self.environments.observations, self.environments.actions
        kind = f"{done.size} in a box" if done.kind == "continuous" else "x".join(map(str, done.values))
        limit = f", at most {self.environments.limit} steps an episode" if self.environments.limit else ""
        return f"{self.environments.name}: {seen.size} numbers are observed, actions: {kind} ({done.kind}){limit}"

    def facts(self) -> dict[str, Any]:
        """What must be the same when the run is resumed although no setting shows it."""
        environments = self.environments
        return {
            "environment": environments.name,
            "observations": environments.observations.size,
            "actions": environments.actions.to_dict(),
            "time limit": environments.limit,
        }

    def train_step(self, step: int) -> tuple[dict[str, Any], list[str]]:
        """One step of the run, from 1: metrics, and the reasons of skipped optimizer steps.

        Raises EnvironmentFailure where the environment fails; nothing has been learned from the step then.
        """
        config, key = self.config, (self.config.seed, step)
        started = time.perf_counter()
        try:
            found = self.updater.play(self.player, key)
        except EnvironmentFailure:
            self.environments.skip()  # a checkpoint of now goes on with other episodes, not into the same failure
            raise
        played = time.perf_counter()
        rows = len(found.batch)
        batch = found.batch
        if {"progress", "step"} & self.updater.read:
            progress = torch.full((rows,), (step - 1) / config.steps)
            batch = batch.replace(progress=progress, step=torch.full((rows,), step))
        rate = self.updater.learner.rate()
        result, self.states = self.updater.update(found.played, batch, self.states, key)
        if self.policy.moments is not None:
            self.policy.observe(found.played.observation[found.new][batch.mask[found.new]])
        ended = time.perf_counter()
        metrics = {
            **self.player.metrics(),
            "reward": float(found.batch.token_reward[found.new][batch.mask[found.new]].mean()),
            **({} if rate is None else {"lr": rate}),
            **result.metrics,
            "time/rollout": played - started,
            "time/update": ended - played,
            "steps_per_second": found.steps / (ended - started),
        }
        return metrics | self._spread(), result.skipped

    @torch.no_grad()
    def _spread(self) -> dict[str, float]:
        """The standard deviation of a Gaussian's noise, where it is one for all states."""
        log_std = self.policy.log_std
        return {} if log_std is None else {"policy/std": float(log_std.exp().mean())}

    def evaluate(self) -> dict[str, Any]:
        """eval/return and its like on the same episodes every time; {} where the environment cannot be made once more."""
        settings = self.config.eval
        if settings.episodes == 0 or not (isinstance(self.what, str) or callable(self.what)):
            return {}
        if self.evaluation is None:
            seed = key_number(f"{self.config.seed}/evaluation") % 2**32
            self.evaluation = self._open(min(settings.episodes, 32), seed, self.policy.convention)
        return return_metrics(
            play_episodes(
                self.policy,
                self.evaluation,
                settings.episodes,
                deterministic=settings.deterministic,
                seed=self.config.seed,
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, beside the policy."""
        updater, critic = self.updater, self.critic
        return {
            "player": self.player.state_dict(),
            "parts": self.states,
            "learner": updater.learner.state_dict(),
            "critic": dict(critic.state_dict()) if critic is not None else {},
            "critic_learner": updater.critic_learner.state_dict() if updater.critic_learner is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Puts back what `state_dict` returned; sentences about what cannot be."""
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.updater.learner.load_state_dict(state["learner"])
        if self.updater.critic_learner is not None:
            self.updater.critic_learner.load_state_dict(state["critic_learner"])
        self.states = state["parts"]
        return self.player.load_state_dict(state["player"])

    def load_policy(self, folder: Path) -> None:
        """Weights and moments of a saved policy."""
        saved = ControlPolicy.load(folder)
        self.policy.load_state_dict(saved.state_dict())
        if self.policy.moments is not None and saved.moments is not None:
            self.policy.set_moments(saved.moments)

    def self_checks(self) -> list[Any]:
        """The environment repeats itself from a seed; a saved policy is the same one."""
        from upslope.selfcheck import Check

        twice = []
        for _ in range(2):
            copy = self._open(1, self.config.seed, self.policy.convention)
            draw = self.policy.sampler(seeded(self.config.seed, "self-check"), 50)
            observation, seen = copy.reset(), []
            for _ in range(50):
                step = copy.step(draw(observation))
                observation = step.observation
                seen.append(np.append(step.next_observation, step.reward))
            twice.append(np.stack(seen))
            if not isinstance(self.what, str) and not callable(self.what):
                break
            copy.close()
        gap = float(np.abs(twice[0] - twice[-1]).max())
        repeats = Check(
            "environment repeats itself",
            gap == 0,
            gap,
            0.0,
            f"50 steps from the same seed with the same actions differ by at most {gap:.1e}; an environment must draw from "
            "self.np_random alone",
        )
        with tempfile.TemporaryDirectory() as folder:
            self.policy.save(Path(folder))
            again = ControlPolicy.load(folder).state_dict()
        changed = [name for name, value in self.policy.state_dict().items() if not torch.equal(value, again[name])]
        saved = Check(
            "save and load", not changed, float(len(changed)), 0.0, f"saved and loaded, {len(changed)} weights changed"
        )
        return [repeats, saved]

    def close(self) -> None:
        """Closes the environments; a second call does nothing."""
        self.environments.close()
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None


def critic_of(recipe: Recipe, policy: ControlPolicy, environments: Environments) -> Critic | None:
    """The critic of a run: what the recipe's critic part makes by `network(policy, environments)`, or else its policy part's."""
    if recipe.critic is None:
        return None
    own, network = getattr(recipe.critic, "network", None), recipe.policy
    assert isinstance(network, MLP)
    found: Critic = network.critic(policy) if own is None else own(policy, environments)
    return found


def check_recipe(recipe: Recipe, config: Config) -> None:
    """Raises UsageError where a part is missing or of another kind, or a column is read that nothing here makes."""
    for stage, kind, example in (
        ("policy", MLP, "MLP()"),
        ("update", StepUpdate, "StepUpdate()"),
        ("optimizer", Optimizing, "Optimizer()"),
    ):
        if not isinstance(getattr(recipe, stage), kind):
            raise UsageError(f"'{recipe.name}' plays in an environment, so its {stage} must be {example}.")
    parts = [part for part in (recipe.rollout, recipe.optimizer) if part is not None]
    own = frozenset[str]().union(*(part.makes for part in parts))
    made = PLAYED_COLUMNS | own | MODEL_COLUMNS | (CRITIC_COLUMNS if recipe.critic is not None else frozenset())
    absent = sorted(recipe.needs - made)
    if absent:
        raise UsageError(
            f"'{recipe.name}' reads {', '.join(absent)}, which playing in an environment "
            f"{'without a critic ' if recipe.critic is None else ''}does not make. Call the recipe on a Batch of your own."
        )
    if getattr(recipe.policy, "distribution", "") in POINTS and "cost" not in recipe.needs:
        raise UsageError(
            f"'{recipe.name}' learns from log-probs of drawn actions, which a policy of one action does not have. Set "
            "policy.distribution=gaussian or squashed."
        )
    if config.optimizer != OptimizerConfig():
        raise UsageError(
            f"the optimizer of '{recipe.name}' is a part of the recipe: set lr, eps, grad_clip ... as settings, e.g. --set lr=1e-3."
        )
    for name in ("data", "reward", "teacher"):
        if getattr(config, name) is not None:
            raise UsageError(f"'{recipe.name}' plays in an environment and does not read --{name}. Leave it out.")
