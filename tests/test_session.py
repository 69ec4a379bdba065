"""A run as the command line makes it: its states, its files, and what it says, each thing once."""

import json
import re
import shutil

import pytest

from upslope import UsageError
from upslope.config import config_from
from upslope.runs.metrics import read_metrics
from upslope.session import run_session
from upslope.trainer import Trainer

REWARDS = {
    "letters": "return [sum(c.islower() for c in one) / 8 for one in completions]",
    "equal": "return [1.0] * len(completions)",
    "failing": "raise ValueError('no luck')",
}


class Notebook:
    """A view that keeps what it is told."""

    def __init__(self):
        self.said, self.rows = [], []

    def say(self, message):
        self.said.append(message)

    def row(self, step, row):
        self.rows.append(step)


@pytest.fixture
def session(toy, questions, tmp_path):
    """Runs a session with one of REWARDS in tmp_path/run; returns its summary and its notebook."""

    def run(reward="letters", resume=False, **changes):
        (tmp_path / f"{reward}.py").write_text(f"def score(completions, **columns):\n    {REWARDS[reward]}\n")
        values = {
            "model": toy, "data": str(questions), "reward": f"{tmp_path / reward}.py:score", "steps": 2, "max_tokens": 8,
            "prompts_per_step": 2, "settings": {"rollout.group_size": 4}, "eval": {"prompts": 4, "samples": 1, "every": 0},
            "threads": 1, "sinks": [], "self_checks": False, **changes,
        }  # fmt: skip
        view = Notebook()
        return run_session(config_from(values), tmp_path / "run", resume=resume, view=view), view

    return run


def status(tmp_path):
    return json.loads((tmp_path / "run" / "status.json").read_text())


def test_finished(session, tmp_path):
    summary, view = session(self_checks=True)
    assert summary.ok
    assert summary.lines[0] == "finished"
    assert summary.lines[1].startswith("Held-out pass@1 ")
    assert summary.lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert view.rows == [0, 1, 2]
    assert "self-checks: 5 of 5 passed" in view.said
    assert any("36 for training, 4 for evaluation" in text for text in view.said)
    assert status(tmp_path) == {"state": "finished", "message": ""}
    assert len(json.loads((tmp_path / "run" / "self_checks.json").read_text())) == 5
    assert "loss = " in (tmp_path / "run" / "describe.txt").read_text()


def test_already_trained(session, tmp_path):
    session()
    (tmp_path / "run" / "status.json").write_text(json.dumps({"state": "running", "message": ""}))  # as after a kill
    summary, view = session(resume=True)
    assert summary.ok
    assert summary.lines[0] == f"{tmp_path / 'run'} has already been trained for 2 steps. Ask for more with --steps."
    assert summary.lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert view.rows == []
    assert status(tmp_path)["state"] == "finished"


def test_resumed_without_checking_again(session):
    session()
    summary, view = session(resume=True, steps=3, self_checks=True)
    assert summary.ok
    assert view.rows == [3]
    assert not any("self-checks" in text for text in view.said)


def test_failed_says_why_and_each_kind_of_event_once(session, tmp_path):
    summary, view = session("failing", steps=9, max_skipped=3)
    assert not summary.ok
    assert summary.lines[0].startswith(
        "failed: stopped at step 3: 3 steps in a row were skipped, the last because every reward failed"
    )
    assert sum(": reward failed: " in text for text in view.said) == 1
    assert sum(": step skipped: " in text for text in view.said) == 1
    assert status(tmp_path)["state"] == "failed"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert sum(event["count"] for event in events if event["kind"] == "reward failed") == 24
    assert (tmp_path / "run" / "report.html").exists()


def test_nothing_to_learn_is_said_plainly(session):
    summary, _ = session("equal")
    assert summary.ok
    assert any(line.startswith("No group had any reward variance in 2 of 2 steps") for line in summary.lines)


def test_failed_self_check_trains_nothing(session, toy, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(toy, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "q"}, "content": "Q"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match=r"1 self-check\(s\) failed: tokens round-trip: .*--set self_checks=false"):
        session(self_checks=True, model=str(model))
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")
    summary, _ = session(model=str(model))
    assert summary.ok


def test_an_unforeseen_error_is_noted_and_raised(session, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session()
    assert status(tmp_path) == {"state": "failed", "message": "ZeroDivisionError: division by zero"}


def test_wrong_settings_leave_no_folder(session, tmp_path):
    with pytest.raises(UsageError, match="leaves no room for a prompt"):
        session(max_tokens=96)
    assert not (tmp_path / "run").exists()


def test_a_run_on_given_pairs_tells_of_its_loss_and_its_pairs(toy, tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "abc"[: 1 + i % 3], "rejected": "XYZ"[: 1 + i % 2]} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "method": "dpo", "model": toy, "data": str(tmp_path / "pairs.jsonl"), "steps": 30, "max_tokens": 8, "sinks": [],
        "prompts_per_step": 4, "eval": {"prompts": 16, "every": 0}, "threads": 1, "optimizer": {"lr": 1e-3}, "self_checks": False,
    }  # fmt: skip
    summary = run_session(config_from(values), tmp_path / "run", resume=False, view=Notebook())
    first, second, _ = summary.lines
    assert first == "finished"
    assert second.startswith("Held-out loss fell from 0.693 [0.693, 0.693] to 0.")
    assert re.search(r"it orders 1\.00 \[0\.\d\d, 1\.00\] rightly, none by the reference it began as\.$", second)
