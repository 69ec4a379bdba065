"""The loop for environments: play, update, evaluate, save."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upslope.config import IN_ENVIRONMENTS, refuse_unread
from upslope.control.on_policy import OnPolicyAgent
from upslope.errors import UsageError
from upslope.outcomes import Event
from upslope.registry import make
from upslope.runs.state import rng_state, set_rng_state
from upslope.selfcheck import Check
from upslope.tasks.environments import EnvironmentFailure
from upslope.trainer import Trainer


class OnPolicyTrainer(Trainer):
    """Trains a policy in an environment by a recipe whose `rollout` plays. Made by `Trainer(...)` for such methods.

        trainer = upslope.Trainer("ppo", task="CartPole-v1", steps=100, out="runs/cartpole")
        trainer.train()
        print(trainer.rows[-1]["eval/return"])

    A step of the run is what the rollout part says: `rollout.steps` actions in each of `rollout.environments` copies, or
    `rollout.episodes` episodes. `task` may be an environment, a class or a function that makes one.
    """

    parts: OnPolicyAgent
    reads = IN_ENVIRONMENTS

    def _open(self, method: Any, task: Any, model: Any, weights: Path | None) -> None:
        recipe = make(self.config.method, **self.config.settings) if isinstance(method, str) else method
        if model is not None:
            raise UsageError(
                f"'{recipe.name}' builds its own network (policy.hidden) and takes no model. Leave it out."
            )
        self.parts = OnPolicyAgent(self.config, recipe, None if isinstance(task, str) else task)
        refuse_unread(self.config, IN_ENVIRONMENTS, "plays in an environment")
        if weights is not None:
            self.parts.load_policy(weights)

    def _begin(self) -> None:
        """Nothing more to open."""

    def evaluate(self) -> Any:
        """The return of whole episodes, the same ones every time; {} where there is nothing to evaluate on."""
        return self.parts.evaluate()

    def _evaluate(self, step: int) -> dict[str, Any]:
        return dict(self.evaluate())

    def self_checks(self) -> list[Check]:
        """That the environment repeats itself, and that the policy can be saved."""
        return self.parts.self_checks()

    def _without_effect(self) -> list[str]:
        return []

    def _train_step(self, step: int) -> dict[str, Any]:
        try:
            row, skipped = self.parts.train_step(step)
        except EnvironmentFailure as error:
            self._log_event(step, Event("environment failed", str(error)))
            self._save()  # what was learned before
            raise
        for reason in skipped:
            self._log_event(step, Event("step skipped", reason))
        self._skips, self._last_skip = (self._skips + 1, skipped[-1]) if skipped else (0, "")
        return row

    def _save(self) -> None:
        if self.folder is None:
            return
        state: dict[str, Any] = {
            "facts": self.parts.facts(),
            "agent": self.parts.state_dict(),
            "skips": self._skips,
            "seconds": self._seconds,
            "events": self._events,
            "rng": rng_state(),
        }
        keep = self.config.keep_checkpoints
        self.folder.save(self.step, write_policy=self.parts.policy.save, state=state, keep=keep)

    def _restore(self, step: int, state: Mapping[str, Any]) -> None:
        now = self.parts.facts()
        changed = {name: (old, now[name]) for name, old in state["facts"].items() if now[name] != old}
        if changed:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
            raise UsageError(
                f"what the run was started with has changed: {listed}. Restore it, or choose another --out."
            )
        self._skips, self._seconds, self._events = state["skips"], state["seconds"], state["events"]
        self.step = step
        for lost in self.parts.load_state_dict(state["agent"]):
            self._log_event(step, Event("environment not repeatable", lost))
        set_rng_state(state["rng"])
