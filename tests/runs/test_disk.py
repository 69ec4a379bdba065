"""Disks that refuse: full, limited, read-only. Every case is a real one."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from upslope.errors import UsageError
from upslope.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from upslope.runs.files import RunError, human_bytes, write_atomic
from upslope.runs.folder import RunFolder
from upslope.runs.metrics import JsonLines, read_metrics


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def file_limit(size):
    """No file may grow beyond `size` bytes, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(folder, step, policy_bytes=1000, tensor_numbers=100, keep=1):
    return save_checkpoint(
        folder,
        step,
        write_policy=lambda path: (path / "model.safetensors").write_bytes(b"w" * policy_bytes),
        tensors={"moment": torch.zeros(tensor_numbers)},
        state={},
        keep=keep,
    )


@pytest.mark.parametrize("large", [{"policy_bytes": 400_000}, {"tensor_numbers": 100_000}])
def test_full_disk_while_saving(small_disk, large):
    save(small_disk, 1)
    with pytest.raises(RunError) as error:
        save(small_disk, 2, **large)
    for part in (
        "checkpoint of step 2",
        "No space left",
        " free of 262 kB",
        "checkpoint of step 1 is whole",
        "Make room",
    ):
        assert part in str(error.value)
    assert os.listdir(small_disk / "checkpoints") == ["step-000001"]
    assert load_checkpoint(small_disk).step == 1
    save(small_disk, 3)
    assert list_checkpoints(small_disk) == [3]


@pytest.mark.parametrize("large", [{"policy_bytes": 400_000}, {"tensor_numbers": 100_000}])
def test_file_limit_while_saving(tmp_path, large):
    save(tmp_path, 1)
    with file_limit(100_000), pytest.raises(RunError, match="checkpoint of step 1 is whole"):
        save(tmp_path, 2, **large)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


def log_many(run):
    for step in range(1000):
        run.log(step, {"text": "x" * 3000})


def test_full_disk_while_logging_leaves_whole_rows(small_disk):
    with RunFolder.open(small_disk, {}, sinks=[]) as run:
        message = r"cannot add to .*metrics.jsonl: No space left on device .* rows before are kept"
        with pytest.raises(RunError, match=message):
            log_many(run)
        rows = read_metrics(small_disk)
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert (small_disk / "metrics.jsonl").read_bytes().endswith(b"\n")
        with pytest.raises(RunError):
            run.log_samples([{"step": 0, "completion": "y" * 200_000}])
        assert (small_disk / "samples.jsonl").stat().st_size == 0


def test_file_limit_while_logging_removes_the_torn_row(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append([{"step": 1}])
    with file_limit(1000), pytest.raises(RunError, match="File too large"):
        lines.append([{"step": 2, "text": "x" * 2000}])
    lines.append([{"step": 3}])
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]


def test_full_disk_at_the_start(small_disk):
    (small_disk / "filler").write_bytes(b"x" * 4096 * (os.statvfs(small_disk).f_bavail))
    with pytest.raises((RunError, UsageError), match=r"No space left on device \(0 B free of 262 kB on its disk\)"):
        RunFolder.open(small_disk / "run", {"seed": 1})
    (small_disk / "filler").unlink()
    RunFolder.open(small_disk / "run", {"seed": 1}).close()


def test_full_disk_keeps_the_old_file(small_disk):
    write_atomic(small_disk / "config.yaml", "old")
    with pytest.raises(RunError, match=r"config.yaml: No space left .* The file is as it was before"):
        write_atomic(small_disk / "config.yaml", "x" * 300_000)
    assert (small_disk / "config.yaml").read_text() == "old"
    assert os.listdir(small_disk) == ["config.yaml"]


def test_disk_remounted_read_only(small_disk):
    save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(RunError, match=r"Read-only file system.*checkpoint of step 1 is whole"):
        save(small_disk, 2)
    with pytest.raises(UsageError, match=r"Read-only file system.*--out"):
        RunFolder.open(small_disk, {})
    with pytest.raises(UsageError, match=r"Read-only file system.*--out"):
        RunFolder.open(small_disk / "run", {})
    assert load_checkpoint(small_disk).step == 1


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "a" / "b"):
        with pytest.raises(
            UsageError, match=rf"cannot be made: {tmp_path / 'file'} is no folder. Choose another --out"
        ):
            RunFolder.open(path, {})
    with pytest.raises(UsageError, match=r"cannot be made: .* Choose another --out"):
        RunFolder.open("/proc/upslope", {})


def test_a_folder_without_permission(tmp_path):
    """As another user, in a process of its own: root may write anywhere."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from upslope.errors import UsageError\n"
        "from upslope.runs.lock import RunLock\n"
        "if os.getuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        "try: RunLock(Path('.'))\n"
        "except UsageError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=closed, capture_output=True, text=True)
    assert "Permission denied" in result.stdout, result.stderr
    assert "--out" in result.stdout


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (2_500_000, "2.5 MB"), (7e15, "7e+03 TB")])
def test_human_bytes(count, text):
    assert human_bytes(count) == text
