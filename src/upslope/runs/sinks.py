"""Where the numbers of a run go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

import importlib.util
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from upslope.errors import UsageError

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Receives the numbers of each step; may raise anything, which `Sinks` turns into one warning."""

    def log(self, step: int, row: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """An event file under `tensorboard/`. Each row is flushed, so a killed run loses none."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str, purge_step: int | None) -> None:
        # The two building blocks of TensorBoard's own writer: its thread buffers rows, and its imports load
        # TensorFlow where that is installed.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time_ns() // 1_000_000_000:010d}.{platform.node()}.{os.getpid()}"
        path = folder / "tensorboard" / f"{name}.{purge_step or 0}"
        path.parent.mkdir(exist_ok=True)
        self._records = RecordWriter(open(path, "ab"))  # noqa: SIM115 - closed with the sink
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:  # tells readers to forget what an interrupted run wrote from this step on
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def log(self, step: int, row: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class WeightsAndBiases:
    """One W&B run per run folder; resuming goes on with it. Project and entity: WANDB_PROJECT, WANDB_ENTITY."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str, purge_step: int | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "upslope"),
            name=folder.name,
            id=run_id,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """One trackio run per run folder; resuming goes on with it. Project: TRACKIO_PROJECT."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str, purge_step: int | None) -> None:
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "upslope"),
            name=f"{folder.name}-{run_id}",
            config=dict(config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Path, Mapping[str, Any], str, int | None], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def check_sinks(names: Sequence[str]) -> None:
    """Raises UsageError for a name that is no sink, or whose package is not installed."""
    for name in names:
        if name not in SINKS:
            raise UsageError(f"there is no sink {name!r} for metrics. There are: {', '.join(SINKS)}.")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a mere folder of that name, such as W&B's own logs
            raise UsageError(f"the sink {name!r} needs a package that is not installed: pip install {name}")


class Sinks:
    """Several sinks as one. A sink that fails (network, disk) is named in a warning and left out from then on."""

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], run_id: str, purge_step: int | None = None
    ) -> None:
        """Open the sinks `names`. A resumed run gives the first step it will log as `purge_step`.

        `run_id` tells services which of their runs this is. Raises UsageError as `check_sinks` does.
        """
        check_sinks(names)
        self._open: dict[str, Sink] = {}
        for name in names:
            try:
                self._open[name] = SINKS[name](folder, config, run_id, purge_step)
            except Exception as error:
                self._warn(name, "cannot be opened", error)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Hand on the finite or non-finite numbers of `row`; other values are for metrics.jsonl alone."""
        numbers = {name: number for name, value in row.items() if (number := _number(value)) is not None}
        for name, sink in list(self._open.items()):
            try:
                sink.log(step, numbers)
            except Exception as error:
                del self._open[name]
                self._warn(name, f"failed at step {step}", error)

    def close(self) -> None:
        """Close each; a second call does nothing."""
        while self._open:
            name, sink = self._open.popitem()
            try:
                sink.close()
            except Exception as error:
                self._warn(name, "failed while closing", error)

    def _warn(self, name: str, what: str, error: Exception) -> None:
        logger.warning(
            "the sink %r %s and is left out from here on: %s: %s. metrics.jsonl has every row.",
            name, what, type(error).__name__, error,
        )  # fmt: skip


def _number(value: Any) -> float | None:
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:
        return math.inf
