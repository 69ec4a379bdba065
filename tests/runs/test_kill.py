"""A save loop is killed at random moments; what is on the disk is always whole, and never older than acknowledged."""

import errno
import json
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from upslope.errors import UsageError
from upslope.runs import checkpoint as module
from upslope.runs.checkpoint import load_checkpoint
from upslope.runs.files import RunError
from upslope.runs.folder import RunFolder
from upslope.runs.metrics import read_metrics

SCRIPT = Path(__file__).with_name("save_loop.py")


@pytest.mark.parametrize("mode", ["increasing", "same"])
def test_killed_at_random_moments(tmp_path, mode):
    result = subprocess.run([sys.executable, SCRIPT, tmp_path, mode, "15"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "damaged" not in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 15
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


class Killed(BaseException):
    """The process ends here: nothing after it changes the disk any more."""


def save_until(monkeypatch, folder, value, changes, error, times):
    """Save step 7; the disk's change number `changes` raises `error`, and those after it too, `times` in all.

    Returns how many changes a save makes.
    """
    counter = count()

    def counted(function):
        def call(*arguments, **options):
            if changes <= next(counter) < changes + times:
                raise error
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "rename"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir"), (module, "save_file")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        module.save_checkpoint(
            folder,
            7,
            write_policy=lambda path: (path / "model.safetensors").write_text(str(value)),
            tensors={},
            state={"value": value},
            keep=1,
        )
    return next(counter)


@pytest.mark.parametrize(("error", "times"), [(Killed(), 1000), (OSError(errno.EIO, "Input/output error"), 1)])
def test_interrupted_between_any_two_changes_of_the_disk(tmp_path, monkeypatch, error, times):
    """Exhaustively: a save that replaces a checkpoint ends at its first, second, ... change, by a kill or an error."""
    save_until(monkeypatch, tmp_path, "old", 0, error, 0)
    total = save_until(monkeypatch, tmp_path, "old", 0, error, 0)
    assert total > 10
    for changes in range(total + 1):
        folder = tmp_path / str(changes)
        save_until(monkeypatch, folder, "old", 0, error, 0)
        try:
            save_until(monkeypatch, folder, "new", changes, error, times)
        except (Killed, RunError):
            allowed = ["old", "new"]
        else:
            allowed = ["new"]
        if error.__class__ is Killed:
            module.clean_leftovers(folder)
        checkpoint = load_checkpoint(folder)
        assert checkpoint.state["value"] in allowed
        assert (checkpoint.path / "model.safetensors").read_text() == checkpoint.state["value"]
    assert allowed == ["new"]  # the last one came after the end


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
