"""The loop: collect, update, evaluate, save. One loop for every recipe; what differs stands in the recipe's parts."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from upslope.assembly import Assembly
from upslope.config import FREE_ON_RESUME, Config, config_from, is_stage
from upslope.effects import without_effect
from upslope.embedded import with_embedded
from upslope.errors import UsageError
from upslope.evaluate import Evaluation, evaluate
from upslope.given import evaluate_given
from upslope.loop import open_loop
from upslope.outcomes import Event
from upslope.recipe import State
from upslope.registry import make
from upslope.resets import reference_weights, reset_reference, restore_reference
from upslope.rollout import Sampling
from upslope.runs.folder import RunFolder
from upslope.runs.signals import GracefulStop
from upslope.runs.state import rng_state, set_rng_state
from upslope.selfcheck import Check, self_checks
from upslope.setup import open_parts, task_facts
from upslope.tasks.reward_model import mean_score
from upslope.unjudged import NotJudged, evaluate_unjudged

OnRow = Callable[[int, dict[str, Any]], None]


class Trainer:
    """Trains a language model by a recipe, with or without a run folder.

        trainer = upslope.Trainer("grpo", task="chain_sum", steps=60, out="runs/first", ratio_high=1.28)
        trainer.train()
        print(trainer.rows[-1]["eval/pass@1"])

    Keywords are fields of Config, or settings of the recipe. `out` None keeps no files. `task` may be a Task of your own and
    `model` a LanguagePolicy. `on_row(step, row)` is called with every row of metrics. Raises UsageError for wrong settings.
    """

    parts: Any
    reads: ClassVar[frozenset[str] | None] = None  # settings that are in config.yaml; None: all
    _states: State
    _cursor: State

    def __new__(cls, method: Any = "grpo", *, config: Config | None = None, **_: Any) -> Self:
        """A trainer of the kind that the method's recipe asks for."""
        name = method if config is None else config.method
        recipe = method if isinstance(method, Assembly) else make(name)
        return super().__new__(cls if cls is not Trainer else recipe.trainer())

    def __init__(
        self,
        method: str | Assembly = "grpo",
        *,
        out: str | Path | None = None,
        resume: bool = False,
        config: Config | None = None,
        task: Any = None,
        model: Any = None,
        on_row: OnRow | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        **settings: Any,
    ) -> None:
        self.config = config or _config(method, task, model, settings)
        self.rows: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.step = -1
        self._on_row, self._on_event = on_row, on_event
        self._skips = 0
        self._seconds = 0.0
        self._events: dict[str, int] = {}
        self.folder = self._open_folder(out, resume) if out is not None else None
        try:
            checkpoint = self.folder.restore() if self.folder is not None and self.folder.resumed else None
            self._open(method, task, model, checkpoint.path if checkpoint else None)
            if checkpoint is not None:
                self._restore(checkpoint.step, checkpoint.tree())
        except BaseException:
            if self.folder is not None:
                self.folder.abandon()
            self.close()
            raise
        self._begin()

    def _open(self, method: Any, task: Any, model: Any, weights: Path | None) -> None:
        """Everything that the config names, before a checkpoint is put back; `weights` is that checkpoint's folder."""
        self.parts = open_parts(
            self.config,
            recipe=None if isinstance(method, str) else method,
            task=None if isinstance(task, str) else task,
            policy=None if isinstance(model, str) else model,
            weights=weights,
        )
        self._states = self.parts.recipe.init()
        self._cursor = {"cursor": 0}
        self._reference_reset = False

    def _begin(self) -> None:
        """What needs the run as it is, after a checkpoint was put back."""
        self.collector, self.updater = open_loop(self.config, self.parts)

    def train(self) -> "Trainer":
        """Evaluates, trains to `steps`, evaluates, saves. SIGINT and SIGTERM finish the step, save and return.

        Raises UsageError where the run cannot go on: `max_skipped` steps in a row were skipped.
        """
        config, last = self.config, self.config.steps
        with GracefulStop() as stop:
            if self.step < 0:
                for message in self._without_effect():
                    self._log_event(0, Event("setting without effect", message))
                self._finish_step(0, self._evaluate(0))
                self._save()
            while self.step < last and not stop.requested:
                step = self.step + 1
                started = time.perf_counter()
                row = self._train_step(step)
                every = config.eval.every
                if step == last or (every and step % every == 0):
                    evaluated = time.perf_counter()
                    row |= self._evaluate(step)
                    row["time/eval"] = time.perf_counter() - evaluated
                row["time/total"] = time.perf_counter() - started
                self._seconds += row["time/total"]
                self._finish_step(step, row)
                due = config.checkpoint_every and step % config.checkpoint_every == 0
                if due or step == last or stop.requested or self._skips >= config.max_skipped:
                    self._save()
                if self._skips >= config.max_skipped:
                    raise UsageError(
                        f"stopped at step {step}: {self._skips} steps in a row were skipped, the last because {self._last_skip}. "
                        f"The last good weights are kept{f' in {self.folder.path}' if self.folder else ''}."
                    )
        return self

    def evaluate(self) -> Evaluation:
        """pass@k on the held-out prompts with the current weights; without a judge, the loss of their given completions, or the
        KL to the teacher.
        """
        config, parts = self.config, self.parts
        if parts.task.judge is None:
            return evaluate_given(
                self.collector,
                self.updater,
                parts.eval_examples,
                self._states,
                config.seed,
                state=self._cursor,
                sampling=self._sampling(),
            )
        drawn: dict[str, Any] = {"samples": config.eval.samples, "seed": config.seed}
        drawn["sampling"] = dataclasses.replace(self._sampling(), temperature=config.eval.temperature)
        if isinstance(parts.task.judge, NotJudged):
            return evaluate_unjudged(self.collector, self.updater, parts.eval_examples, self._states, **drawn)
        found = evaluate(
            engine=parts.engine,
            judge=parts.task.judge,
            encode=parts.actors.policy.encode,
            examples=parts.eval_examples,
            solved_at=parts.task.solved_at,
            **drawn,
        )
        found.metrics.update(mean_score(parts.judge, parts.task.judge, found.examples, found.rollouts.text))
        return found

    def close(self) -> None:
        """Ends the reward workers and gives the run folder back; a second call does nothing."""
        if hasattr(self, "parts"):
            self.parts.close()
        if self.folder is not None:
            self.folder.close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def self_checks(self) -> list[Check]:
        """Checks of the actual model and data, before the first step."""
        return self_checks(self.parts, self.config)

    def _without_effect(self) -> list[str]:
        """Settings that act on nothing in this run, a sentence each."""
        return without_effect(self.parts.recipe, self.config, self.parts.max_tokens)

    def _sampling(self) -> Sampling:
        c, temperature = self.config, self.parts.recipe.rollout.temperature
        return Sampling(self.parts.max_tokens, temperature, c.top_p, c.top_k, c.stop)

    def _train_step(self, step: int) -> dict[str, Any]:
        config, actors = self.config, self.parts.actors
        if self.parts.judge is not None:
            self.parts.judge.step = step
        self._prepare_step(step)
        collected, self._cursor = self.collector.collect(
            self._cursor, prompts=config.prompts_per_step, sampling=self._sampling(), key=(config.seed, step)
        )
        for event in [*collected.events, *self._notes()]:
            self._log_event(step, event)
        row: dict[str, Any] = {
            **collected.metrics,
            **self._judge_metrics(),
            **{f"time/{name}": s for name, s in collected.seconds.items()},
        }
        row["lr"] = actors.learner.rate()
        reasons = []
        if collected.batch is None:
            reasons.append(_why_empty(collected.events, row))
        else:
            started = time.perf_counter()
            rows = len(collected.batch)
            batch = collected.batch.replace(
                progress=torch.full((rows,), (step - 1) / config.steps), step=torch.full((rows,), step)
            )
            result, self._states = self.updater.update(collected.rollouts, batch, self._states, (config.seed, step))
            row |= result.metrics
            if not collected.sampled:  # there is no sampler, or one that has moved since: no gap to the trainer
                row = {name: value for name, value in row.items() if not name.startswith("sampler_gap/")}
            row["time/update"] = time.perf_counter() - started
            row["tokens_per_second"] = row["tokens"] / (row["time/rollout"] + row["time/reward"] + row["time/update"])
            reasons += result.skipped
        for reason in reasons:
            self._log_event(step, Event("step skipped", reason))
        self._skips, self._last_skip = (self._skips + 1, reasons[-1]) if reasons else (0, "")
        if step % max(1, config.steps // 20) == 0 or step == 1:
            self._log_samples(
                step,
                "train",
                collected.examples,
                collected.outcomes,
                collected.rollouts,
                range(0, len(collected.examples), 8),
            )
        return row

    def _prepare_step(self, step: int) -> None:
        """What the recipe's `update` part asks for before a step, and the recipe as it is in this step."""
        update: Any = self.parts.recipe.update
        asked = update.before_step(step)
        unknown = sorted(asked - {"reset_optimizer", "reset_reference"})
        if unknown:
            raise UsageError(
                f"{type(update).__name__}.before_step asks for {', '.join(unknown)}; there is reset_optimizer and reset_reference."
            )
        if "reset_optimizer" in asked:
            self.parts.actors.learner.optimizer.state.clear()
        if "reset_reference" in asked and self.parts.actors.reference is not None:
            reset_reference(self.parts.actors)
            self._reference_reset = True
        self.updater.recipe = self.collector.recipe = update.recipe_at(self.parts.recipe, step)

    def _notes(self) -> list[Event]:
        """What the judge has to say: warnings of rewards, and what they printed."""
        take = getattr(self.parts.judge, "take_notes", list)
        return [Event("reward note", note) for note in take()]

    def _judge_metrics(self) -> dict[str, float]:
        """Means of what rewards logged beside the score."""
        take = getattr(self.parts.judge, "take_metrics", dict)
        return {f"rewards/{name}/mean": value for name, value in take().items()}

    def _evaluate(self, step: int) -> dict[str, Any]:
        if not self.parts.eval_examples:
            return {}
        found = self.evaluate()
        self._log_samples(
            step,
            "eval",
            found.examples,
            found.outcomes,
            found.rollouts,
            range(0, len(found.examples), self.config.eval.samples if self.parts.task.judge else 1),
        )
        return dict(found.metrics)

    def _finish_step(self, step: int, row: dict[str, Any]) -> None:
        self.step = step
        self.rows.append({"step": step, **row})
        if self.folder is not None:
            self.folder.log(step, row)
        if self._on_row is not None:
            self._on_row(step, row)

    def _log_event(self, step: int, event: Event) -> None:
        self._events[event.kind] = self._events.get(event.kind, 0) + event.count
        if self.folder is not None:
            self.folder.log_event({"step": step, "kind": event.kind, "message": event.message, "count": event.count})
        if self._on_event is not None:
            self._on_event(step, event)

    def _log_samples(self, step: int, split: str, examples: Any, outcomes: Any, rollouts: Any, rows: range) -> None:
        found = [
            {
                "step": step,
                "split": split,
                "key": examples[row].key,
                "prompt": examples[row].prompt,
                "completion": rollouts.text[row],
                "reward": outcomes[row].value,
                "parts": dict(outcomes[row].parts),
                "failure": outcomes[row].failure,
                "finish": rollouts.finish[row],
            }
            for row in list(rows)[:32]
        ]
        self.samples = found
        if self.folder is not None:
            self.folder.log_samples(found)

    def _open_folder(self, out: str | Path, resume: bool) -> RunFolder:
        return RunFolder.open(
            out,
            self.config.to_dict(self.reads),
            resume=resume,
            free=FREE_ON_RESUME,
            sinks=self.config.sinks,
            defaults=Config().to_dict(),
        )

    def _save(self) -> None:
        if self.folder is None:
            return
        actors = self.parts.actors
        state: dict[str, Any] = {
            "task": task_facts(self.parts),
            "learner": actors.learner.state_dict(),
            "parts": self._states,
            "curriculum": self._cursor,
            "skips": self._skips,
            "seconds": self._seconds,
            "events": self._events,
            "rng": rng_state(),
            "adapters": actors.policy.state_dict() if self.config.lora.rank else {},
        }
        if self._reference_reset:
            state["reference"] = reference_weights(actors)
        if actors.critic is not None and actors.critic_learner is not None:
            state["critic"] = actors.critic.state_dict()
            state["critic_learner"] = actors.critic_learner.state_dict()
        self.folder.save(self.step, write_policy=actors.policy.save, state=state, keep=self.config.keep_checkpoints)

    def _restore(self, step: int, state: Mapping[str, Any]) -> None:
        actors = self.parts.actors
        changed = {
            name: (old, task_facts(self.parts)[name])
            for name, old in state["task"].items()
            if task_facts(self.parts)[name] != old
        }
        if changed:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
            raise UsageError(
                f"what the run was started with has changed: {listed}. Restore it, or choose another --out."
            )
        if state["adapters"]:
            actors.policy.load_state_dict(state["adapters"])
        actors.learner.load_state_dict(state["learner"])
        if "reference" in state:
            restore_reference(actors, state["reference"])
            self._reference_reset = True
        if actors.critic is not None and actors.critic_learner is not None:
            actors.critic.load_state_dict(state["critic"])
            actors.critic_learner.load_state_dict(state["critic_learner"])
        self._states, self._cursor = state["parts"], state["curriculum"]
        self._skips, self._seconds, self._events = state["skips"], state["seconds"], state["events"]
        self.step = step
        set_rng_state(state["rng"])


def _why_empty(events: list[Event], row: Mapping[str, Any]) -> str:
    failed = [event for event in events if event.kind == "reward failed"]
    if failed:
        return f"every reward failed ({failed[0].message})"
    return (
        f"no group was kept: {row['groups/zero_variance']:.0%} of {row['groups/sampled']:.0f} groups have equal rewards"
    )


def _config(method: str | Assembly, task: Any, model: Any, settings: Mapping[str, Any]) -> Config:
    known = {f.name for f in dataclasses.fields(Config)}
    if "reward" in settings and isinstance(method, str) and is_stage(method, "reward"):
        known -= {"reward"}
    values: dict[str, Any] = {name: value for name, value in settings.items() if name in known}
    recipe_settings = {name: value for name, value in settings.items() if name not in known}
    values["settings"] = {**values.get("settings", {}), **recipe_settings}
    values["method"] = method.name if isinstance(method, Assembly) else method
    if isinstance(task, str):
        values["task"] = task
    if isinstance(model, str):
        values["model"] = model
    config = config_from(values, where="Trainer")
    named = all(one is None or isinstance(one, str) for one in (task, model)) and isinstance(method, str)
    return with_embedded(config) if named else config
