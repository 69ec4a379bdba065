"""`upslope compare`: killed midway it goes on, called again it trains nothing twice, and it refuses to mix settings."""

import json
import time

import psutil
import pytest

from upslope.runs.lock import RunLock
from upslope.runs.metrics import read_metrics

from .scene import contents, put, run_here, start

DATA = "--model TOY --data questions.jsonl --reward mine.py:score"
COMPARE = f"compare grpo dr_grpo:ratio_high=1.5 {DATA} --out c --seeds 2 --steps 2"
LETTERS = (
    "def score(completions, **columns):\n    return [float(any(c.islower() for c in one)) for one in completions]\n"
)
RUNS = [f"{method}/seed-{seed}" for method in ("grpo", "dr_grpo-ratio_high=1.5") for seed in (0, 1)]


def test_killed_repeated_and_changed(here, toy, capsys):
    put(here, {"mine.py": LETTERS}, toy)
    process = start(COMPARE, toy, here)
    assert any(line.startswith("1/4 ") for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    done = [run for run in RUNS if (here / "c" / run / "report.html").exists()]
    kept = {run: contents(here / "c" / run) for run in done}
    assert 1 <= len(done) < 4

    assert run_here(COMPARE, toy) == 0
    text = capsys.readouterr().out
    assert f"{len(done)} of 4 runs are finished already." in text
    assert "interquartile mean [95 % interval]" in text
    assert all(contents(here / "c" / run) == files for run, files in kept.items())
    results = json.loads((here / "c" / "results.json").read_text())
    assert list(results["methods"]) == ["grpo", "dr_grpo:ratio_high=1.5"]
    for found in results["methods"].values():
        assert found["seeds"] == [0, 1]
        assert found["low"] <= found["iqm"] <= found["high"]
    assert results["methods"]["dr_grpo:ratio_high=1.5"]["difference"]["from"] == "grpo"
    first = [read_metrics(here / "c" / run / "metrics.jsonl")[0]["eval/pass@1"] for run in RUNS]
    assert first[0] == first[2] and first[1] == first[3]  # noqa: PT018 - the same prompts and noise for every method
    assert "ratio_high: 1.5" in (here / "c" / RUNS[2] / "config.yaml").read_text()
    assert (here / "c" / "report.html").exists()

    before = contents(here / "c")
    assert run_here(COMPARE, toy) == 0
    assert "4 of 4 runs are finished already." in capsys.readouterr().out
    assert {name: digest for name, digest in contents(here / "c").items() if "/" in name} == {
        name: digest for name, digest in before.items() if "/" in name
    }

    assert run_here(COMPARE + " --set optimizer.lr=0.5", toy) == 2
    assert (
        "c/grpo/seed-0 is of other settings: optimizer.lr was None, now 0.5. Choose another --out."
        in capsys.readouterr().err
    )
    assert run_here(COMPARE.replace("--steps 2", "--steps 1"), toy) == 2
    assert "steps was 2, now 1" in capsys.readouterr().err


@pytest.fixture
def failing(here, toy):
    put(here, {"mine.py": "def score(completions, **columns):\n    raise ValueError('no luck')\n"}, toy)
    return COMPARE.replace("--seeds 2", "--seeds 1") + " --set max_skipped=1"


def test_failed_runs_are_named(failing, here, toy, capsys):
    assert run_here(failing, toy) == 1
    text = capsys.readouterr().out
    assert (
        "grpo seed 0 failed: stopped at step 1: 1 steps in a row were skipped, the last because every reward failed (ValueError"
        in text
    )
    assert "no run has finished." in text
    assert "2 of 2 runs are not finished; the same command goes on with them." in text


def test_wrong_usage_that_only_a_run_finds_stops_all(failing, here, toy, capsys):
    assert run_here(failing.replace("mine.py", "absent.py") + " --parallel 1", toy) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "upslope: grpo seed 0: the reward file absent.py cannot be read: No such file or directory."


def test_sigint_stops_all_and_loses_nothing(here, toy):
    put(here, {"mine.py": LETTERS}, toy)
    process = start(COMPARE.replace("--steps 2", "--steps 2000") + " --parallel 2", toy, here)
    log = here / "c" / "grpo" / "seed-0" / "metrics.jsonl"
    while not (log.exists() and len(read_metrics(log)) > 2):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "4 of 4 runs are not finished; the same command goes on with them." in out
    assert json.loads((log.parent / "status.json").read_text())["state"] == "stopped"
    RunLock(log.parent).release()
