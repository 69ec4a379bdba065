"""A training run from the command line: checks, training, status, report and a summary in words."""

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.collect import Event
from upslope.config import Config
from upslope.errors import UsageError
from upslope.progress import View
from upslope.registry import describe
from upslope.runs.files import RunError
from upslope.tasks.reward_model import RewardModelJudge
from upslope.trainer import Trainer


@dataclass
class Summary:
    """What came of a run: whether it did what it was asked, and lines to print."""

    ok: bool
    lines: list[str] = field(default_factory=list)


def run_session(config: Config, folder: Path, *, resume: bool, view: View) -> Summary:
    """Opens, checks, trains and reports. Wrong usage raises UsageError; a run that fails later is a Summary with ok=False."""
    said: set[str] = set()

    def on_event(step: int, event: Event) -> None:
        if event.kind not in said:
            said.add(event.kind)
            view.say(
                f"step {step}: {event.kind}: {event.message} ({event.count}). Further ones are counted in {folder}/events.jsonl."
            )

    with Trainer(config=config, out=folder, resume=resume, on_row=view.row, on_event=on_event) as trainer:
        run = trainer.folder
        assert run is not None
        describe_task = getattr(trainer.parts.task, "describe", None)
        if describe_task is not None:
            view.say(describe_task())
        judge = trainer.parts.judge
        if isinstance(judge, RewardModelJudge) and judge.verifier is not None:
            view.say(f"trained on: {judge.describe()}; the reward above only measures")
        if trainer.step >= config.steps:
            _note(run, "finished", "")  # the run may have been killed between its last checkpoint and its status
            already = f"{folder} has already been trained for {trainer.step} steps. Ask for more with --steps."
            return Summary(True, [already, *verdict(run.path), f"report: {_report(run.path)}"])
        run.write_text("describe.txt", describe(config.method, **config.settings))
        if config.self_checks and trainer.step < 0:
            _check(trainer, run, view)
        state, message = _train(trainer, run)
        lines = [f"{state}: {message}" if message else state]
        try:
            _note(run, state, message)
            lines += verdict(run.path)
            lines.append(f"report: {_report(run.path)}")
        except RunError as error:  # a full disk, most likely, which the message before has told of
            lines.append(f"no report: {error}")
        return Summary(state != "failed", lines)


def _train(trainer: Trainer, run: Any) -> tuple[str, str]:
    """Trains; returns the state that the run ended in and what there is to say about it."""
    _note(run, "running", "")
    try:
        trainer.train()
    except (UsageError, RunError, FloatingPointError) as error:  # the last where logits are not finite
        return "failed", str(error)
    except BaseException as error:
        with contextlib.suppress(RunError):
            _note(run, "failed", f"{type(error).__name__}: {error}")
        raise
    if trainer.step >= trainer.config.steps:
        return "finished", ""
    return "stopped", f"at step {trainer.step} of {trainer.config.steps}; go on with --out {run.path} --resume"


def _note(run: Any, state: str, message: str) -> None:
    run.write_text("status.json", json.dumps({"state": state, "message": message}))


def _check(trainer: Trainer, run: Any, view: View) -> None:
    checks = trainer.self_checks()
    run.write_text("self_checks.json", json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    failed = [check for check in checks if not check.ok]
    view.say(
        f"self-checks: {len(checks) - len(failed)} of {len(checks)} passed"
        + "".join(f"\n  {c.name}: {c.message}" for c in failed)
    )
    if failed:
        raise UsageError(
            f"{len(failed)} self-check(s) failed: {'; '.join(f'{c.name}: {c.message}' for c in failed)}. Train anyway with "
            f"--set self_checks=false."
        )


def _report(folder: Path) -> Path:
    from upslope.report import write_report

    return write_report([folder], folder / "report.html")


def verdict(folder: Path) -> list[str]:
    """Whether held-out pass@1 rose, or plainly why it could not."""
    from upslope.report.read import read_run
    from upslope.report.verdict import verdict as judge

    found = judge(read_run(folder))
    return [found.sentence, *found.reasons]
