"""The second loop: act, store, draw, update; or draw from a log and update. What differs stands in the recipe's parts."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.actor_critic.relabel import relabel_log
from upslope.actor_critic.selfcheck import run_checks
from upslope.actor_critic.setup import READ, Opened, open_run
from upslope.collect import seeded
from upslope.control.evaluation import play_episodes, return_metrics
from upslope.errors import UsageError
from upslope.offline.found import normalized_score
from upslope.outcomes import Event
from upslope.registry import make
from upslope.runs.files import write_atomic
from upslope.runs.state import rng_state, set_rng_state
from upslope.selfcheck import Check
from upslope.tasks.environments import EnvironmentFailure, Step
from upslope.trainer import Trainer

WATCHED = 10  # updates of a step whose losses are logged
AHEAD = 64  # updates whose transitions are drawn from a log at once


class ActorCriticTrainer(Trainer):
    """Trains a policy by a recipe of kind ActorCritic. Made by `Trainer(...)` for the methods that have one.

        trainer = upslope.Trainer("sac", task="Pendulum-v1", steps=20)
        trainer.train()
        print(trainer.rows[-1]["eval/return"])

    A step of the run is `rollout.steps` actions in every copy of the environment with the updates that go with them, or as many
    updates on a log. `task` may be an environment, a class or a function that makes one.
    """

    parts: Opened
    reads = READ

    def _open(self, method: Any, task: Any, model: Any, weights: Path | None) -> None:
        recipe = make(self.config.method, **self.config.settings) if isinstance(method, str) else method
        if model is not None:
            raise UsageError(
                f"'{recipe.name}' builds its own network (policy.hidden) and takes no model. Leave it out."
            )
        self.parts = open_run(self.config, recipe, task if task is not None and not isinstance(task, str) else None)
        self._states, self._cursor = {}, {}
        self._saved: dict[str, int] = {}  # step of a checkpoint -> transitions added by then
        self._poured = self.parts.replay.added  # of the log, where it shares the buffer with what is played
        self._stored = self.folder.path / "replay" if self.folder is not None else None

    def _begin(self) -> None:
        """Nothing more to open."""

    def evaluate(self) -> Any:
        """The mean return of whole episodes, the same ones every time; {} without a task."""
        parts, settings = self.parts, self.config.eval
        if parts.evaluation is None or not settings.episodes:
            return {}
        episodes = play_episodes(
            parts.policy,
            parts.evaluation,
            settings.episodes,
            deterministic=settings.deterministic,
            seed=self.config.seed,
        )
        found = return_metrics(episodes)
        if parts.log is not None and parts.log.references is not None:
            found["eval/normalized_score"] = normalized_score(found["eval/return"], parts.log.references)
        return found

    def _evaluate(self, step: int) -> dict[str, Any]:
        return dict(self.evaluate())

    def self_checks(self) -> list[Check]:
        """That the environment repeats itself, that the policy can be saved, and that an update can be resumed."""
        return run_checks(self.parts)

    def _without_effect(self) -> list[str]:
        parts, found = self.parts, []
        if parts.log is None and parts.recipe.data.log_share is not None:  # type: ignore[attr-defined]
            found.append("data.log_share without a log (--data): every batch is of what is played")
        return found

    def _train_step(self, step: int) -> dict[str, Any]:
        parts = self.parts
        rollout: Any = parts.recipe.rollout
        offline = parts.log is not None and (rollout.offline_steps is None or step <= rollout.offline_steps)
        self._seen: list[dict[str, float]] = []
        before = parts.learner.updates
        started = time.perf_counter()
        row = self._learn(step) if offline else self._play(step)
        seconds = time.perf_counter() - started
        row |= _means(self._seen)
        row["updates"] = float(parts.learner.updates)
        row["updates_per_second"] = (parts.learner.updates - before) / seconds
        self._check_finite(step)
        return row

    def _check_finite(self, step: int) -> None:
        """Raises UsageError where training has diverged; nothing is saved then."""
        broken = self.parts.learner.finite()
        if broken is not None:
            raise UsageError(
                f"step {step}: the weights of the {broken} are not finite: training has diverged. The checkpoint before is whole; "
                "lower the learning rates (update.critic_lr, update.actor_lr) or the rewards' scale."
            )

    def _learn(self, step: int) -> dict[str, Any]:
        """As many updates on the log as a step has actions."""
        parts = self.parts
        data: Any = parts.recipe.data
        source = parts.logged if parts.logged is not None else parts.replay
        generator = seeded(self.config.seed, step, "draw")
        relabel: Any = parts.recipe.relabel
        total = parts.recipe.rollout.steps * parts.recipe.update.per_step  # type: ignore[attr-defined]
        every = max(1, total // WATCHED)
        done = 0
        while done < total:
            count = min(AHEAD, total - done)
            if relabel is not None:
                if done % relabel.every == 0:
                    relabel_log(relabel, parts.learner, source)
                count = min(count, relabel.every - done % relabel.every)
            rows = source.draw(count * data.batch_size, generator, parts.shares).view(count, data.batch_size, -1)
            for batch in rows:
                self._update(batch, step, done, watch=(done + 1) % every == 0)
                done += 1
        return {}

    def _play(self, step: int) -> dict[str, Any]:
        """`rollout.steps` actions in every copy, with the updates that go with them."""
        parts, recipe = self.parts, self.parts.recipe
        environments, rollout = parts.environments, recipe.rollout
        assert environments is not None
        warmup: int = rollout.uniform(parts.log is not None)  # type: ignore[attr-defined]
        generator, draws = seeded(self.config.seed, step, "act"), seeded(self.config.seed, step, "draw")
        per_step: int = recipe.update.per_step  # type: ignore[attr-defined]
        every = max(1, rollout.steps * per_step // WATCHED)  # type: ignore[attr-defined]
        act = parts.policy.sampler(generator, rollout.steps)  # type: ignore[attr-defined]
        episodes: list[Any] = []
        try:
            observation = environments.observation if environments.running else environments.reset()
            for index in range(rollout.steps):  # type: ignore[attr-defined]
                action = self._action(act, observation, generator, self._played < warmup)
                found = environments.step(action)
                self._store(observation, action, found)
                observation = found.observation
                episodes += found.episodes
                if self._played <= warmup:
                    continue
                for done in range(index * per_step, (index + 1) * per_step):
                    self._update(self._draw(draws), step, done, watch=(done + 1) % every == 0)
        except EnvironmentFailure as error:
            self._check_finite(step)  # an action that is not a number is no fault of the environment's
            self._keep(step, error)
            raise
        row: dict[str, Any] = {"env_steps": float(self._played)}
        if episodes:
            row["return"] = float(np.mean([episode.total for episode in episodes]))
            row["episode_length"] = float(np.mean([episode.length for episode in episodes]))
        return row

    @property
    def _played(self) -> int:
        """Transitions that were played, rather than read from a log."""
        if self.parts.unfinished is not None:
            return self.parts.unfinished.played
        return self.parts.replay.added - self._poured

    def _action(self, act: Any, observation: np.ndarray, generator: torch.Generator, uniform: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1]."""
        if uniform:
            size = (len(observation), self.parts.layout.action)
            return (torch.rand(size, generator=generator) * 2.0 - 1.0).numpy()
        action: np.ndarray = act(observation)
        exploration: Any = self.parts.recipe.exploration
        if exploration is not None:
            action = exploration(torch.from_numpy(action), generator).numpy()
        return action.clip(-1.0, 1.0)

    def _store(self, observation: np.ndarray, action: np.ndarray, found: Step) -> None:
        columns = (observation, action, found.reward, found.terminated, found.truncated, found.next_observation)
        if self.parts.unfinished is not None:
            for rows in self.parts.unfinished.add(columns, found.valid):
                self.parts.replay.add(rows)
            return
        if found.valid is not None:
            columns = tuple(column[found.valid] for column in columns)
        self.parts.replay.add_step(*columns)

    def _draw(self, generator: torch.Generator) -> Tensor:
        """A batch [B, width]: of what is played, of the log as well where the recipe says so."""
        parts, data = self.parts, self.parts.recipe.data
        size: int = data.batch_size  # type: ignore[attr-defined]
        if parts.logged is None:
            return parts.replay.draw(size, generator)
        share: float = data.log_share if len(parts.replay) else 1.0  # type: ignore[attr-defined]
        logged = round(size * share)
        from_log = parts.logged.draw(logged, generator, parts.shares)
        if logged == size:
            return from_log
        return torch.cat([from_log, parts.replay.draw(size - logged, generator)])

    def _update(self, rows: Tensor, step: int, done: int, *, watch: bool) -> None:
        """One update; `done` are those before it that the step has room for, whether they were made or not (warmup)."""
        recipe = self.parts.recipe
        room = recipe.rollout.steps * recipe.update.per_step  # type: ignore[attr-defined]
        progress = min(1.0, ((step - 1) * room + done) / (self.config.steps * room))
        self.parts.learner.update(rows, progress=progress, watch=watch)
        if watch:
            self._seen.append(self.parts.learner.stats)

    def _keep(self, step: int, error: EnvironmentFailure) -> None:
        """Saves what was learned until an environment failed; a resumed run starts other episodes."""
        assert self.parts.environments is not None
        self.parts.environments.skip()
        if self.parts.unfinished is not None:
            for rows in self.parts.unfinished.cut():
                self.parts.replay.add(rows)
        self._log_event(step, Event("environment failed", str(error)))
        self._finish_step(step, {"env_steps": float(self._played), **_means(self._seen)})
        self._save()

    def _save(self) -> None:
        if self.folder is None:
            return
        parts = self.parts
        state: dict[str, Any] = {
            "facts": self._facts(),
            "learner": parts.learner.state_dict(),
            "skips": self._skips,
            "seconds": self._seconds,
            "events": self._events,
            "rng": rng_state(),
        }
        if parts.environments is not None:
            assert self._stored is not None
            state["replay"] = parts.replay.save(self._stored)
            self._saved[str(self.step)] = parts.replay.added
            self._describe_store()
            state["saved"] = dict(list(self._saved.items())[-self.config.keep_checkpoints :])
            state["environments"] = parts.environments.state()
            if parts.unfinished is not None:
                state["unfinished"] = parts.unfinished.state()
        self.folder.save(self.step, write_policy=parts.policy.save, state=state, keep=self.config.keep_checkpoints)
        if parts.environments is not None and self._stored is not None:
            self._saved = dict(state["saved"])
            parts.replay.forget(self._stored, min(self._saved.values()))

    def _describe_store(self) -> None:
        assert self._stored is not None
        parts = self.parts
        assert parts.environments is not None
        if not (self._stored / "about.json").exists() and self._stored.exists():
            about = {
                "observation": parts.layout.observation,
                "action": parts.layout.action,
                # rows of several copies stand step by step, or whole episodes after each other
                "environments": parts.environments.count if parts.unfinished is None else 1,
                **self._played_in(),
                "observation_noise": parts.recipe.rollout.observation_noise,  # type: ignore[attr-defined]
            }
            write_atomic(self._stored / "about.json", json.dumps(about) + "\n")

    def _played_in(self) -> dict[str, Any]:
        """The task, or the log's, and its settings."""
        log, config = self.parts.log, self.config
        of_log = config.task is None and log is not None
        own = {**log.task_settings, **config.task_settings} if of_log and log is not None else config.task_settings
        return {"task": log.task if of_log and log is not None else config.task, "task_settings": dict(own)}

    def _facts(self) -> dict[str, Any]:
        """What must be the same when a run is resumed although no setting shows it."""
        log = self.parts.log
        facts: dict[str, Any] = {"observation": self.parts.layout.observation, "action": self.parts.layout.action}
        if log is not None:
            facts |= {"transitions in the log": len(log), "rewards in the log": float(np.abs(log.reward).sum())}
        return facts

    def _restore(self, step: int, state: Mapping[str, Any]) -> None:
        parts = self.parts
        changed = {
            name: (old, self._facts()[name]) for name, old in state["facts"].items() if self._facts()[name] != old
        }
        if changed:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
            raise UsageError(
                f"what the run was started with has changed: {listed}. Restore it, or choose another --out."
            )
        parts.learner.load_state_dict(state["learner"])
        self._skips, self._seconds, self._events = state["skips"], state["seconds"], state["events"]
        self.step = step
        if parts.environments is not None:
            assert self._stored is not None
            parts.replay.load(self._stored, state["replay"])
            self._saved = dict(state["saved"])
            if parts.unfinished is not None:
                parts.unfinished.restore(state["unfinished"])
            for lost in parts.environments.restore(state["environments"]):
                self._log_event(step, Event("environment not repeatable", lost))
        set_rng_state(state["rng"])


def _means(seen: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each statistic over the updates that have it."""
    names = dict.fromkeys(name for one in seen for name in one)
    return {name: float(np.mean([one[name] for one in seen if name in one])) for name in names}
