"""Every bad input ends in a clear message, or in a named and counted failure; and nothing is lost. The lists: bad_*.py."""

import json
import resource
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upslope.__main__ import main
from upslope.runs.lock import RunLock
from upslope.runs.metrics import read_metrics

from . import bad_data, bad_models, bad_reward_models, bad_words
from .bad_rewards import FAILED, REFUSED
from .bad_runs import RESUME, RUNS
from .scene import contents, put, run_here

PLAIN = [*bad_words.CASES, *bad_data.CASES, *bad_models.CASES, *bad_reward_models.CASES]


def named(cases):
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


def test_names_differ_and_there_are_enough():
    names = [case.name for case in [*PLAIN, *REFUSED, *FAILED, *RUNS]]
    assert len(set(names)) == len(names) >= 45


def check(case, folder, toy, capsys, caplog):
    """Runs the case's command, and checks its status, its messages and that every file is as it was; returns the messages."""
    before = contents(folder)
    status = run_here(case.command, toy)
    captured = capsys.readouterr()
    said = captured.out + captured.err + caplog.text
    assert status == case.status, said
    for word in case.words:
        assert word in said
    assert "Traceback" not in said
    after = contents(folder)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    if status == 2:
        (line,) = captured.err.splitlines()
        assert line.startswith("upslope: ")
        assert not changed
        assert [name for name in after if name.endswith("config.yaml")] == [
            n for n in before if n.endswith("config.yaml")
        ]
    assert not [name for name in changed if not name.startswith("run/")]
    return said


@named(PLAIN)
def test_words_data_and_models(case, here, toy, capsys, caplog):
    put(here, case.files, toy)
    check(case, here, toy, capsys, caplog)


@named(REFUSED)
def test_reward_that_cannot_be_loaded(case, here, toy, capsys, caplog):
    put(here, case.files, toy)
    check(case, here, toy, capsys, caplog)


@named(FAILED)
def test_reward_that_fails(case, here, toy, capsys, caplog):
    put(here, case.files, toy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(case, here, toy, capsys, caplog)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # kB
    rows = read_metrics(here / "run" / "metrics.jsonl")[1:]
    events = [json.loads(line) for line in (here / "run" / "events.jsonl").read_text().splitlines()]
    counted = sum(event["count"] for event in events if event["kind"] == "reward failed")
    assert counted == sum(row["rewards/failed"] for row in rows)
    if case.status == 1:  # all failed: the weights are those of the beginning, and are kept
        assert counted == 8
        assert (here / "run" / "checkpoints" / "step-000000" / "model.safetensors").is_file()
        assert json.loads((here / "run" / "status.json").read_text())["state"] == "failed"


@named(RUNS)
def test_run_folder(case, here, toy, trained, capsys, caplog):
    shutil.copytree(trained, here, dirs_exist_ok=True)
    put(here, case.files, toy)
    case.damage(here)
    rows = (here / "run" / "metrics.jsonl").read_text().splitlines()
    check(case, here, toy, capsys, caplog)
    if case.status == 0 and case.command.startswith(RESUME):
        after = (here / "run" / "metrics.jsonl").read_text().splitlines()
        assert after[:2] == rows[:2]
        assert [json.loads(row)["step"] for row in after] == [0, 1, 2, 3]


def test_run_folder_of_another_process(here, toy, trained, capsys):
    shutil.copytree(trained, here, dirs_exist_ok=True)
    lock, before = RunLock(here / "run"), contents(here)
    try:
        assert run_here(RESUME, toy) == 2
    finally:
        lock.release()
    assert "run is in use by process" in capsys.readouterr().err
    assert contents(here) == before


WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
NAME = (
    st.sampled_from(
        ["grpo", "grpo@trl", "ppo_llm", "rlvr", "ratio_high=1.3", "advantage=rloo", "beta=x", "--json", "--page", "--"]
    )
    | WORD
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["show", "diff", "methods", "tasks", "report", "describe", "list"]) | WORD,
    st.lists(NAME, max_size=3),
)
def test_whatever_words_are_typed_there_is_an_answer(here, capsys, command, words):
    status = main([command, *words])
    captured = capsys.readouterr()
    assert status in (0, 2), captured.err
    assert len(captured.err.splitlines()) == (1 if status == 2 else 0), captured.err
