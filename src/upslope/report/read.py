"""A run folder as the report sees it: tolerant of files that are missing, damaged or still being written."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from upslope.errors import UsageError
from upslope.report.samples import Samples, collect_samples
from upslope.report.text import cut, format_short, number, plural, visible
from upslope.runs.config import flatten

COLUMNS_LIMIT = 400  # metric columns


@dataclass(frozen=True)
class Event:
    """Something that happened at a step and is worth telling: skipped steps, truncated prompts, fallbacks."""

    step: int | None
    kind: str
    message: str
    count: int


@dataclass(frozen=True)
class Check:
    """A self-check that ran before the first step."""

    name: str
    ok: bool
    value: str
    limit: str
    message: str


@dataclass(frozen=True)
class Run:
    """One run folder. `settings` is config.yaml with dotted names; `metrics` has one row per step, in order.

    `notes` names, in sentences, every file that was missing and every line that could not be read.
    """

    path: Path
    settings: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    samples: Samples
    events: list[Event]
    checks: list[Check]
    objective: str
    state: str
    message: str
    notes: list[str] = field(default_factory=list)

    def setting(self, *names: str) -> str:
        """The first of these settings that is set, as text; empty if none is."""
        for name in names:
            value = self.settings.get(name)
            if value is not None and not isinstance(value, list | dict):
                return cut(value, 200)
        return ""

    def columns(self) -> list[str]:
        """Names of all metrics, in the order of their first appearance."""
        names = dict.fromkeys(name for row in self.metrics for name in row if name != "step")
        return list(names)[:COLUMNS_LIMIT]

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [n] and values [n] of a metric, where it is a finite number."""
        pairs = [(row["step"], value) for row in self.metrics if (value := number(row.get(name))) is not None]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, dtype=float), np.array(values, dtype=float)

    @property
    def evaluated_on_data(self) -> bool:
        """Whether held-out completions were given by the data, so that none was sampled."""
        names = self.columns()
        return "eval/loss" in names and "eval/pass@1" not in names

    @property
    def steps(self) -> int:
        """The last step with metrics; 0 before the first."""
        return max((row["step"] for row in self.metrics), default=0)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UsageError: `path` is no folder, or has neither config.yaml nor metrics.jsonl.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder. Give the run folder that `upslope train` wrote (its --out).")
    if not any((path / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise UsageError(f"{path} is not a run folder: it has neither config.yaml nor metrics.jsonl.")
    notes: list[str] = []
    metrics = _merge_steps(read_rows(path / "metrics.jsonl", notes), notes)
    status = _read_json(path / "status.json", dict, notes)
    return Run(
        path=path,
        settings=_read_settings(path / "config.yaml", notes),
        metrics=metrics,
        samples=collect_samples(read_rows(path / "samples.jsonl", notes)),
        events=[_event(row) for row in read_rows(path / "events.jsonl", notes, optional=True)],
        checks=[_check(row) for row in _read_json(path / "self_checks.json", list, notes) if isinstance(row, dict)],
        objective=cut(_read_text(path / "describe.txt", notes), 20_000),
        state=visible(status.get("state", "")),
        message=cut(status.get("message") or "", 1000),
        notes=notes,
    )


def read_rows(path: Path, notes: list[str], *, optional: bool = False) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file, one at a time; a line that is none is skipped and named in `notes`."""
    damaged: list[int] = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for index, line in enumerate(file, 1):
                try:
                    row = json.loads(line) if line.strip() else {}
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    if row:
                        yield row
                else:
                    damaged.append(index)
    except FileNotFoundError:
        if not optional:
            notes.append(f"{path.name} is missing.")
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror}.")
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (" ..." if len(damaged) > 5 else "")
        notes.append(
            f"{path.name}: {plural(len(damaged), 'line')} skipped, not a JSON object or cut off (line {which})."
        )


def _merge_steps(rows: Iterator[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """One row per step, in order; what a later row of the same step says goes on top."""
    merged: dict[int, dict[str, Any]] = {}
    unnumbered = 0
    for row in rows:
        step = row.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and abs(step) < 2**53:
            merged.setdefault(step, {}).update(row)
        else:
            unnumbered += 1
    if unnumbered:
        notes.append(f"metrics.jsonl: {plural(unnumbered, 'row')} without a step number skipped.")
    return [merged[step] for step in sorted(merged)]


def _read_settings(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _read_text(path, notes)
    try:
        content = yaml.safe_load(text) if text else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} could not be read: {cut(error, 300)}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} holds no settings.")
        return {}
    try:
        return flatten(content)
    except RecursionError:
        notes.append(f"{path.name} could not be read: it contains itself.")
        return {}


def _read_text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror}.")
    return ""


def _read_json(path: Path, kind: type, notes: list[str]) -> Any:
    text = _read_text(path, notes)
    try:
        content = json.loads(text) if text else kind()
    except (ValueError, RecursionError):
        notes.append(f"{path.name} could not be read: it is not JSON, or cut off.")
        return kind()
    if not isinstance(content, kind):
        notes.append(f"{path.name} could not be read: it holds no JSON {'object' if kind is dict else 'list'}.")
        return kind()
    return content


def _event(row: Mapping[str, Any]) -> Event:
    step, count = number(row.get("step")), number(row.get("count", 1))
    return Event(
        step=None if step is None else int(step),
        kind=cut(row.get("kind", "event"), 100),
        message=cut(row.get("message", ""), 600),
        count=1 if count is None else int(count),
    )


def _check(row: Mapping[str, Any]) -> Check:
    value, limit = (("" if row.get(name) is None else format_short(row[name])) for name in ("value", "limit"))
    return Check(
        name=cut(row.get("name", ""), 100),
        ok=row.get("ok") is True,
        value=value,
        limit=limit,
        message=cut(row.get("message") or "", 600),
    )
