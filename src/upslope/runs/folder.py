"""The folder of one run, held by one process: settings, metrics, samples, checkpoints.

RUN/config.yaml      resolved settings          RUN/checkpoints/step-N   policy and training state (checkpoint.py)
    metrics.jsonl    one row per step           RUN/tensorboard          event files
    samples.jsonl    completions, as sampled    RUN/run.json, lock       where and by what the run was started
    events.jsonl     what went otherwise        RUN/*.txt, *.json        what `write_text` was given
"""

import contextlib
import json
import logging
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from upslope.errors import UsageError
from upslope.runs.checkpoint import (
    Checkpoint,
    clean_leftovers,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    versions,
)
from upslope.runs.config import FREE_SETTINGS, HEADER, changed_settings, is_free, read_config, write_config
from upslope.runs.files import reason, write_atomic
from upslope.runs.lock import RunLock
from upslope.runs.metrics import JsonLines
from upslope.runs.sinks import Sinks, check_sinks
from upslope.runs.state import pack

logger = logging.getLogger(__name__)

CONTENTS = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "events.jsonl",
    "checkpoints",
    "replay",
    "tensorboard",
    "run.json",
)
NOTES = ("describe.txt", "self_checks.json", "status.json")


class RunFolder:
    """A run's folder, locked until `close`. Made by `open`; a context manager.

    path, config    as given to `open`
    resumed         whether there was a run to go on with; then `restore` comes before the first `log`
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], lock: RunLock, sinks: Sequence[str], resumed: bool
    ) -> None:
        """Use `RunFolder.open`, which takes the lock and checks what is there."""
        self.path = path
        self.config = config
        self.resumed = resumed
        self._lock = lock
        self._metrics = JsonLines(path / "metrics.jsonl")
        self._samples = JsonLines(path / "samples.jsonl")
        self._events = JsonLines(path / "events.jsonl")
        self._sink_names = tuple(sinks)
        self._sinks: Sinks | None = None
        self._purge_step: int | None = None
        self._ready = not resumed
        self._settings_due = resumed

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        free: Collection[str] = FREE_SETTINGS,
        sinks: Sequence[str] = ("tensorboard",),
        defaults: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create the folder and lock it, or go on with the run in it.

        resume      go on with the run that is there; none there yet starts one, with a warning, so that a job that may
                    be killed at any time can always be started with the same command
        overwrite   delete the run that is there (Upslope's own files only) and start anew
        free        dotted settings (with all under them) that a resumed run may change
        sinks       of "tensorboard", "wandb", "trackio"
        defaults    what a setting is where config.yaml or `config` leaves it out

        Raises UsageError if another process has the folder; if there is a run and neither `resume` nor `overwrite`; if
        a resumed run changes a setting that is not free; if the folder cannot be written; if a sink's package is missing.
        """
        path = Path(path)
        if resume and overwrite:
            raise UsageError("resume goes on with a run and overwrite deletes it. Ask for one of them.")
        check_sinks(sinks)
        _make_folder(path)
        lock = RunLock(path)
        try:
            if overwrite:
                _remove_run(path)
            _clean(path)
            resumed = _resume(path, config, free, defaults) if resume else _start(path, config)
            return cls(path, config, lock, sinks, resumed)
        except BaseException:
            lock.release()
            raise

    def restore(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None if the run has none yet; later rows of the .jsonl files are dropped.

        Raises UsageError if every checkpoint is damaged, naming what is wrong with each.
        """
        checkpoint = load_checkpoint(self.path) if list_checkpoints(self.path) else None
        step = checkpoint.step if checkpoint else -1
        dropped = sum(lines.rewind(step) for lines in (self._metrics, self._samples, self._events))
        if dropped and checkpoint is None:
            logger.warning("%s has no checkpoint: it starts again, and its %d rows are dropped.", self.path, dropped)
        elif checkpoint:
            logger.info("resuming after step %d; %d rows after it are dropped, to be written again.", step, dropped)
        self._purge_step = step + 1 if self.resumed else None
        self._ready = True
        return checkpoint

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl and its numbers to the sinks. Steps never fall. Raises RunError on a full disk."""
        self._check_ready()
        self._metrics.append([{"step": step, **row}])
        if self._sinks is None:
            self._sinks = Sinks(self._sink_names, self.path, self.config, self._run_id(), self._purge_step)
        self._sinks.log(step, row)

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to samples.jsonl (their columns: metrics.py). Raises RunError on a full disk."""
        self._check_ready()
        self._samples.append(rows)

    def log_event(self, row: Mapping[str, Any]) -> None:
        """Add a row to events.jsonl: {"step", "kind", "message", "count"}. Raises RunError on a full disk."""
        self._check_ready()
        self._events.append([row])

    def write_text(self, name: str, text: str) -> None:
        """Write one of NOTES, the whole file at once. Raises RunError on a full disk."""
        write_atomic(self.path / name, text)

    def save(
        self,
        step: int,
        *,
        write_policy: Callable[[Path], object],
        state: Any,
        keep: int | None,
        best: int | None = None,
    ) -> Path:
        """Make all rows so far durable, then save a checkpoint; log the rows of `step` before.

        `state` is any tree that `pack` takes; `Checkpoint.tree` gives it back. The rest as `save_checkpoint`.
        """
        self._metrics.sync()
        self._samples.sync()
        self._events.sync()
        structure, tensors = pack(state)
        return save_checkpoint(
            self.path, step, write_policy=write_policy, tensors=tensors, state=structure, keep=keep, best=best
        )

    def abandon(self) -> None:
        """Close, and take the files of a run away that has been started and has no row yet: what never began leaves nothing."""
        if not self.resumed and not _found(self.path):
            for name in ("config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "events.jsonl", "lock"):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there is something else in it
                self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Close the files and sinks and give the lock back; a second call does nothing."""
        if self._sinks is not None:
            self._sinks.close()
        self._metrics.close()
        self._samples.close()
        self._events.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_ready(self) -> None:
        if not self._ready:
            raise UsageError("a resumed run is to be restored before it logs: call RunFolder.restore() first.")
        if self._settings_due:  # only now, when nothing more can keep the run from going on
            write_config(self.path / "config.yaml", self.config)
            self._settings_due = False

    def _run_id(self) -> str:
        try:
            return str(json.loads((self.path / "run.json").read_bytes())["id"])
        except (OSError, ValueError, KeyError, TypeError):
            return uuid.uuid4().hex[:8]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(parent for parent in (path, *path.parents) if parent.exists())
        raise UsageError(f"the run folder {path} cannot be made: {file} is no folder. Choose another --out.") from None
    except OSError as error:
        raise UsageError(
            f"the run folder {path} cannot be made: {reason(error, path)}. Choose another --out."
        ) from error


def _clean(path: Path) -> None:
    """Remove what a killed process left half-written."""
    for name in CONTENTS:
        for leftover in path.glob(f".{name}.*.tmp"):
            leftover.unlink()
    clean_leftovers(path)


def _start(path: Path, config: Mapping[str, Any]) -> bool:
    if found := _found(path):
        raise UsageError(
            f"{path} already has a run ({', '.join(found)}). Go on with it by --resume, or choose another folder with "
            "--out."
        )
    write_config(path / "config.yaml", config)
    about = {
        "id": uuid.uuid4().hex[:8],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions() | {"python": platform.python_version()},
        "platform": platform.platform(),
        "command": sys.argv,
    }
    write_atomic(path / "run.json", json.dumps(about, indent=2) + "\n")
    return False


def _found(path: Path) -> list[str]:
    """Names of what must not be lost: all but empty files, and the settings of a run that ended before its first row."""
    found = [
        name
        for name in CONTENTS
        if (file := path / name).exists() and (any(file.iterdir()) if file.is_dir() else file.stat().st_size)
    ]
    return [] if _is_ours(path) and set(found) <= {"config.yaml", "run.json"} else found


def _is_ours(path: Path) -> bool:
    try:
        return (path / "config.yaml").read_bytes().startswith(HEADER.encode())
    except OSError:
        return False


def _resume(path: Path, config: Mapping[str, Any], free: Collection[str], defaults: Mapping[str, Any] | None) -> bool:
    if not (path / "config.yaml").exists():
        if found := _found(path):
            names = ", ".join(found)
            raise UsageError(f"{path} has {names} but no config.yaml: it cannot be resumed. Choose another --out.")
        logger.warning("there is no run to resume in %s: a new one starts.", path)
        return _start(path, config)
    changes = changed_settings(read_config(path / "config.yaml"), config, defaults)
    if fixed := [name for name in changes if not is_free(name, free)]:
        listed = "; ".join(f"{name} was {changes[name][0]!r}, now {changes[name][1]!r}" for name in fixed)
        raise UsageError(
            f"the run in {path} was started with other settings: {listed}. Set them back, or choose another --out."
        )
    for name, (old, new) in changes.items():
        logger.info("resuming with %s = %r (it was %r).", name, new, old)
    _warn_of_versions(path)
    return True


def _warn_of_versions(path: Path) -> None:
    try:
        before = json.loads((path / "run.json").read_bytes())["versions"]
        changed = [f"{name} {before[name]} is now {now}" for name, now in versions().items() if before[name] != now]
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s cannot be read: the versions that the run was started with are unknown.", path / "run.json")
        return
    if changed:
        logger.warning("%s: %s; the numbers may differ from an uninterrupted run's.", path, ", ".join(changed))


def _remove_run(path: Path) -> None:
    found = [path / name for name in (*CONTENTS, *NOTES, "report.html") if (path / name).exists()]
    if not found:
        return
    if not _is_ours(path):
        names = ", ".join(file.name for file in found)
        raise UsageError(f"{path} has {names}, but not of a run of Upslope: nothing was deleted. Choose another --out.")
    for file in sorted(found, key=lambda file: file.name == "config.yaml"):  # it tells whose files these are: last
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()
