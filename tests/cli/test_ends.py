"""How a run ends when it is interrupted, or the disk fills up: what it says, what it leaves, and that it goes on from there."""

import json
import re
import signal
import subprocess
import time

import pytest

from upslope.runs.checkpoint import list_checkpoints, load_checkpoint
from upslope.runs.metrics import read_metrics

from .scene import put, run_here, start

TRAIN = "train grpo --model TOY --data questions.jsonl --reward exact --out {out} --steps {steps} --set checkpoint_every={every}"
SLOW = "import time\n\ndef score(prompts, completions, **columns):\n    time.sleep(3)\n    return [1.0] * len(completions)\n"


@pytest.fixture
def small_disk(here):
    """A disk of 2 MB, where this user may mount one, and a function that makes it larger."""
    disk = here / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield lambda: subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk(here, toy, small_disk, capsys):
    put(here, {}, toy)
    command = TRAIN.format(out="disk/run", steps=9, every=1) + " --set keep_checkpoints=20"
    assert run_here(command, toy) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    found = re.search(
        r"upslope: failed: cannot save the checkpoint of step (\d+) in .*: No space left on device \(.* free of 2.1 MB on its "
        r"disk\)\. The unfinished files were removed\. The checkpoint of step (\d+) is whole\. Make room .* and resume",
        said.err,
    )
    assert found, said.err
    assert int(found[2]) == int(found[1]) - 1 == list_checkpoints(here / "disk/run")[-1]
    assert load_checkpoint(here / "disk/run").step == int(found[2])
    small_disk()
    assert run_here(command + " --resume", toy) == 0
    assert [row["step"] for row in read_metrics(here / "disk/run/metrics.jsonl")] == list(range(10))


def wait_for(process, text):
    """Reads the process's lines up to the one that has the text."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended without '{text}': {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_finishes_the_step_and_saves(here, toy, number, capsys):
    put(here, {}, toy)
    process = start(TRAIN.format(out="run", steps=5000, every=1000), toy, here)
    wait_for(process, "step 2/")
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "finishing the step, then saving" in err
    step = int(re.search(r"stopped: at step (\d+) of 5000; go on with --out run --resume", out)[1])
    assert list_checkpoints(here / "run") == [0, step]
    assert json.loads((here / "run/status.json").read_text())["state"] == "stopped"
    assert run_here(TRAIN.format(out="run", steps=step + 1, every=1000) + " --resume", toy) == 0
    assert [row["step"] for row in read_metrics(here / "run/metrics.jsonl")] == list(range(step + 2))


def test_second_signal_stops_at_once(here, toy):
    put(here, {"slow.py": SLOW}, toy)
    process = start(TRAIN.format(out="run", steps=50, every=1).replace("exact", "slow.py:score"), toy, here)
    wait_for(process, "step 1/")
    time.sleep(1)  # it sleeps in the reward of step 2 now
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "upslope: interrupted. A run goes on from its last checkpoint with --resume." in err
    assert "Traceback" not in err
    assert time.monotonic() - started < 30
    assert load_checkpoint(here / "run").step == 1
