"""metrics.jsonl and samples.jsonl: one strictly valid JSON object per line, in order of the step.

A row is one write, so a killed process leaves whole lines and at most one torn one. Resuming at a checkpoint cuts the
file after the last row of its step, so that an interrupted run ends with the rows of an uninterrupted one.

A row of metrics.jsonl:  {"step": 3, "reward": 0.41, "ratio/clip_fraction": 0.02, "time/update": 0.8, ...}
A row of samples.jsonl:  {"step", "split", "key", "prompt", "completion", "reward", "parts", "failure", "finish"} and,
    for training rows, "advantage".
Numbers that JSON has no name for are null, and named beside: {"loss": null, "nonfinite": {"loss": "nan"}}.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from upslope.errors import UsageError
from upslope.runs.files import RunError, reason

logger = logging.getLogger(__name__)


class JsonLines:
    """Appends rows to a JSON-lines file; every row has an integer "step" that never falls."""

    def __init__(self, path: Path) -> None:
        """Open `path`, a new file or one to go on with. Raises RunError if it cannot be written."""
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise RunError(f"cannot write {path}: {reason(error, path.parent)}.") from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows, all or none. Raises RunError if the disk refuses; the file is then as it was before."""
        data = "".join(encode_row(row) + "\n" for row in rows).encode()
        size = os.fstat(self.descriptor).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self.descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self.descriptor, size)
            raise RunError(
                f"cannot add to {self.path}: {reason(error, self.path.parent)}. The rows before are kept."
            ) from error

    def rewind(self, step: int) -> int:
        """Drop the rows after `step`, and a torn last line; returns how many were dropped.

        A damaged line among those that stay stays too, with a warning: its row cannot be written again.
        """
        end, dropped = 0, 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if dropped or not line.endswith(b"\n") or _step(line, self.path, number, default=step) > step:
                    dropped += 1
                else:
                    end += len(line)
        os.ftruncate(self.descriptor, end)
        return dropped

    def sync(self) -> None:
        """Make the rows so far survive a power cut."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """A second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def encode_row(row: Mapping[str, Any]) -> str:
    """The row as one line of JSON. Raises UsageError for a value that JSON cannot hold, or a row without a step."""
    if not isinstance(row.get("step"), int):
        raise UsageError(f'a row needs an integer "step", got {row.get("step")!r} in {sorted(row)}.')
    nonfinite: dict[str, str] = {}
    clean = {name: jsonable(value, name, nonfinite) for name, value in row.items()}
    if nonfinite:
        clean["nonfinite"] = nonfinite
    return json.dumps(clean, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace").decode()


def jsonable(value: Any, path: str, nonfinite: dict[str, str]) -> Any:
    """`value` in JSON's types; NaN and infinities become None, and `nonfinite` gains their path and name."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): jsonable(item, f"{path}.{name}", nonfinite) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item, f"{path}[{index}]", nonfinite) for index, item in enumerate(value)]
    if not isinstance(value, int | float) and hasattr(value, "tolist"):  # a tensor, an array, or a scalar of theirs
        return jsonable(value.tolist(), path, nonfinite)
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, float):
        raise UsageError(f"the value of {path!r} in a row is a {type(value).__name__}, which JSON cannot hold.")
    if math.isfinite(value):
        return float(value)
    nonfinite[path] = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl (or of the run folder that holds one), in order; a torn last line is left out.

    Raises UsageError if there is no such file; a damaged line in the middle is passed over with a warning.
    """
    return list(_read_rows(Path(path), "metrics.jsonl"))


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a samples.jsonl (or of the run folder that holds one); otherwise as `read_metrics`."""
    return list(_read_rows(Path(path), "samples.jsonl"))


def _read_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    path = path / name if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}. Give a run folder, or its {name}.") from error
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or torn
        if row := _parse(line, path, number):
            yield row


def _step(line: bytes, path: Path, number: int, *, default: int) -> int:
    row = _parse(line, path, number)
    return row["step"] if row else default


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, dict) and isinstance(row.get("step"), int):
        return row
    logger.warning('%s, line %d is damaged (no JSON object with an integer "step"): it is passed over.', path, number)
    return None
