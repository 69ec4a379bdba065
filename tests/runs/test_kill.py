"""A save loop is killed at random moments; what is on the disk is always whole, and never older than acknowledged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from upslope.errors import UsageError
from upslope.runs import checkpoint as module
from upslope.runs.checkpoint import load_checkpoint
from upslope.runs.folder import RunFolder
from upslope.runs.metrics import read_metrics

SCRIPT = Path(__file__).with_name("save_loop.py")


@pytest.mark.parametrize("mode", ["increasing", "same"])
def test_killed_at_random_moments(tmp_path, mode):
    result = subprocess.run([sys.executable, SCRIPT, tmp_path, mode, "20"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "damaged" not in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 20
    for look in found:
        assert [look["step"], look["serial"]] >= look["acknowledged"]
        assert look["tensors"]
        assert look["policy"]
        assert look["last_row"]["step"] == look["step"]
        assert look["cleaned"]
    assert ".unfinished" in {name for look in found for name in look["leftovers"]}  # killed in the middle, that is
    if mode == "increasing":
        rows = read_metrics(tmp_path)
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert [row["reward"] for row in rows] == list(range(len(rows)))


def test_killed_between_any_two_file_operations(tmp_path, monkeypatch):
    """The same, exhaustively: a save stops dead at its first, second, ... change of the disk."""

    class Killed(BaseException):
        pass

    def save(folder, value, budget):
        remaining = [budget]

        def counted(function):
            def call(*arguments, **options):
                if remaining[0] == 0:
                    raise Killed
                remaining[0] -= 1
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in (
                (os, "rename"),
                (os, "fsync"),
                (shutil, "rmtree"),
                (Path, "mkdir"),
                (module, "save_file"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            module.save_checkpoint(
                folder,
                7,
                write_policy=lambda path: (path / "model.safetensors").write_text(str(value)),
                tensors={},
                state={"value": value},
                keep=1,
            )

    for budget in range(100):
        folder = tmp_path / str(budget)
        save(folder, "old", 1000)
        try:
            save(folder, "new", budget)
        except Killed:
            finished = False
        else:
            finished = True
        module.clean_leftovers(folder)
        checkpoint = load_checkpoint(folder)
        assert checkpoint.state["value"] in (["new"] if finished else ["old", "new"])
        assert (checkpoint.path / "model.safetensors").read_text() == checkpoint.state["value"]
        if finished:
            break
    assert 10 < budget < 99


def test_second_process_is_told_who_has_the_folder(tmp_path):
    process = subprocess.Popen([sys.executable, SCRIPT, tmp_path, "increasing", "0"], stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        with pytest.raises(UsageError, match=rf"in use by process {process.pid} on "):
            RunFolder.open(tmp_path, {"seed": 1}, resume=True)
    finally:
        process.kill()
        process.communicate()
    RunFolder.open(tmp_path, {"seed": 1}, resume=True).close()
