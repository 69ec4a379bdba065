"""Checkpoints that are whole or absent, whenever the process is killed; a damaged one is noticed and passed over.

    checkpoints/step-000010/               an ordinary Hugging Face folder, written by the policy
                            trainer/       tensors.safetensors, state.json: everything else that training needs
                            manifest.json  size and SHA-256 of every file, step, versions

A checkpoint is written under a hidden name, flushed to the disk with its hashes, and renamed. Older ones are removed
only then. Nothing is pickled.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from upslope.errors import UsageError
from upslope.runs.files import DISK_ERRORS, RunError, reason, sync, sync_tree
from upslope.runs.state import unpack

logger = logging.getLogger(__name__)

FORMAT = 1
NAME = re.compile(r"step-(\d{6,})")
UNFINISHED, REPLACED, REMOVED = ".unfinished-", ".replaced-", ".removed-"


class DamagedError(Exception):
    """Why a checkpoint cannot be used; callers see it in a warning or a UsageError."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: `path` is its Hugging Face folder, `tensors` (on the CPU) and `state` are what was saved."""

    step: int
    path: Path
    tensors: Mapping[str, Tensor]
    state: Any

    def tree(self) -> Any:
        """What was packed into `state` and `tensors`, for a checkpoint saved by `RunFolder.save`."""
        return unpack(self.state, self.tensors)


def save_checkpoint(
    folder: str | Path,
    step: int,
    *,
    write_policy: Callable[[Path], object],
    tensors: Mapping[str, Tensor],
    state: Any,
    keep: int | None,
    best: int | None = None,
) -> Path:
    """Save `checkpoints/step-N` in the run folder, then remove all but the newest `keep` (None: keep all) and `best`.

    `write_policy` fills an empty folder; `state` has to be JSON (`pack` makes it so). A checkpoint of the same step is
    replaced. When this returns, the checkpoint survives a power cut; if it raises, what was there before is there still.
    Raises RunError if the disk refuses (full, read-only), after removing the unfinished files.
    """
    if keep is not None and keep < 1:
        raise UsageError(f"keep={keep} would remove the checkpoint just saved. Keep at least 1, or None for all.")
    checkpoints = Path(folder) / "checkpoints"
    unfinished = checkpoints / f"{UNFINISHED}{_name(step)}"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)
        unfinished.mkdir()
        _fill(unfinished, step, write_policy, tensors, state)
        _publish(unfinished, checkpoints / _name(step))
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(unfinished)
        if isinstance(error, DISK_ERRORS):
            raise RunError(_refused(checkpoints, step, error)) from error
        raise
    _rotate(checkpoints, step, keep, best)
    return checkpoints / _name(step)


def load_checkpoint(folder: str | Path, step: int | None = None) -> Checkpoint:
    """The newest whole checkpoint of the run folder, or the one of `step`; every file's hash is verified.

    A damaged one is named in a warning, and the one before is used. Raises UsageError if there is none, if the one
    asked for is damaged, or if all are: with what is wrong with each.
    """
    steps = list_checkpoints(folder)
    if step is not None and step not in steps:
        has = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"there is no checkpoint of step {step} in {folder}. There are: {has}.")
    if not steps:
        raise UsageError(
            f"there is no checkpoint in {folder}. Start the run anew, or give the folder that train wrote."
        )
    damages = []
    for candidate in reversed(steps) if step is None else [step]:
        path = Path(folder) / "checkpoints" / _name(candidate)
        try:
            checkpoint = _read(path, candidate)
        except DamagedError as error:
            damages.append(f"step {candidate}: {error}")
            continue
        for damage in damages:
            logger.warning("a checkpoint is damaged and passed over (%s); step %d is used.", damage, candidate)
        return checkpoint
    raise UsageError(
        f"no checkpoint asked for in {folder} is whole: {'; '.join(damages)}. Copy it anew, or start another run."
    )


def model_folder(name: str) -> str:
    """The model that a name stands for: of a run's folder its newest whole checkpoint, anything else as it is.

    Raises UsageError for a run's folder without a whole checkpoint.
    """
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file() and not (folder / "config.json").exists():
        return str(load_checkpoint(folder).path)
    return name


def run_of(checkpoint: Path) -> Path | None:
    """The run's folder that a checkpoint belongs to, or this folder where it is one itself; None for one of no run."""
    return next((place for place in (checkpoint.parent.parent, checkpoint) if (place / "config.yaml").is_file()), None)


def list_checkpoints(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in a run folder, ascending; damaged ones too. Raises RunError if it cannot be read."""
    checkpoints = Path(folder) / "checkpoints"
    try:
        names = [entry.name for entry in checkpoints.iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # not the same as none: a run must not start again for want of a permission
        raise RunError(f"cannot read {checkpoints}: {reason(error, checkpoints)}.") from error
    return sorted(int(match[1]) for name in names if (match := NAME.fullmatch(name)))


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run."""
    try:
        upslope = version("upslope")
    except PackageNotFoundError:  # run from a source tree
        upslope = "unknown"
    return {"upslope": upslope, "torch": torch.__version__}


def clean_leftovers(folder: str | Path) -> None:
    """Remove what a killed process left unfinished in `checkpoints`. Only for the holder of the run folder's lock."""
    checkpoints = Path(folder) / "checkpoints"
    for leftover in sorted(checkpoints.glob(f"{REPLACED}*")):
        original = checkpoints / leftover.name.removeprefix(REPLACED)
        if not original.exists():  # killed between the two renames of a replacement
            os.rename(leftover, original)
    for prefix in (UNFINISHED, REPLACED, REMOVED):
        for leftover in checkpoints.glob(f"{prefix}*"):
            _remove(leftover)


def _fill(
    path: Path,
    step: int,
    write_policy: Callable[[Path], object],
    tensors: Mapping[str, Tensor],
    state: Any,
) -> None:
    write_policy(path)
    (path / "trainer").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "trainer" / "tensors.safetensors")
    _write_json(path / "trainer" / "state.json", state)
    files = {
        str(file.relative_to(path)): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    _write_json(path / "manifest.json", {"format": FORMAT, "step": step, "versions": versions(), "files": files})
    sync_tree(path)


def _publish(unfinished: Path, path: Path) -> None:
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if path.exists():
        _remove(replaced)
        os.rename(path, replaced)
    try:
        os.rename(unfinished, path)
    except BaseException:
        if replaced.exists():
            os.rename(replaced, path)
        raise
    sync(path.parent)
    _discard(replaced)


def _rotate(checkpoints: Path, step: int, keep: int | None, best: int | None) -> None:
    """A later step than `step` is a damaged one that a resumed run has yet to replace: it counts for nothing here."""
    if keep is None:
        return
    for old in [known for known in list_checkpoints(checkpoints.parent) if known <= step][:-keep]:
        if old == best:
            continue
        path = checkpoints / _name(old)
        removed = path.with_name(f"{REMOVED}{path.name}")
        try:
            os.rename(path, removed)  # at once, lest half a checkpoint be taken for a damaged one
        except OSError as error:
            logger.warning("cannot remove the old checkpoint %s: %s.", path, reason(error, checkpoints))
        _discard(removed)


def _read(path: Path, step: int) -> Checkpoint:
    """Verify and load. Raises DamagedError."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        files, written = manifest["files"], manifest["step"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except OSError as error:
        raise DamagedError(f"manifest.json cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("manifest.json is not what was written") from error
    if manifest.get("format") != FORMAT:
        raise DamagedError(f"its format is {manifest.get('format')}, this Upslope reads {FORMAT}")
    if written != step:
        raise DamagedError(f"manifest.json is of step {written}")
    for name, (size, digest) in expected.items():
        _verify(path, name, size, digest)
    try:
        mapped = load_file(path / "trainer" / "tensors.safetensors")
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}  # lest they change or end with the file
        state = json.loads((path / "trainer" / "state.json").read_bytes())
    except (*DISK_ERRORS, ValueError) as error:
        raise DamagedError(f"the files in trainer/ cannot be read ({error})") from error
    return Checkpoint(step, path, tensors, state)


def _verify(path: Path, name: str, size: int, digest: str) -> None:
    file = path / name
    try:
        found = file.stat().st_size
        if found != size:
            raise DamagedError(f"{name} has {found} bytes instead of {size}")
        if _sha256(file) != digest:
            raise DamagedError(f"{name} has other content than was written (SHA-256 differs)")
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is missing") from error
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise DamagedError(f"{name!r} cannot be read ({error})") from error


def _refused(checkpoints: Path, step: int, error: BaseException) -> str:
    kept = list_checkpoints(checkpoints.parent)
    remains = f"The checkpoint of step {kept[-1]} is whole" if kept else "There is no earlier checkpoint"
    existing = next(path for path in (checkpoints, *checkpoints.parents) if path.exists())
    return (
        f"cannot save the checkpoint of step {step} in {checkpoints}: {reason(error, existing)}. "
        f"The unfinished files were removed. {remains}. Make room (or keep fewer checkpoints) and resume the run."
    )


def _write_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the state for {path.name} is not JSON: {error}. Give it to pack() first.") from error
    path.write_text(text + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _discard(path: Path) -> None:
    """Remove what is no longer needed; a new checkpoint is durable already, and stays a success if this fails."""
    try:
        _remove(path)
    except OSError as error:
        logger.warning(
            "cannot remove %s: %s. The next run in this folder tries again.", path, reason(error, path.parent)
        )


def _name(step: int) -> str:
    return f"step-{step:06d}"
