"""What a log holds before it is checked and scaled, whatever format it came in."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError

from upslope.errors import UsageError
from upslope.tasks.spaces import ActionSpec


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of a log beside its transitions.

    task            the registered id of the environment, where that is known; task_settings: its keywords
    actions         its action space; None where nothing says so
    references      (return of random actions, return of an expert), for normalized scores
    rewarded        False: the log has no rewards, and zeros stand for them
    notes           what was left out, in words
    """

    task: str | None = None
    task_settings: dict[str, Any] = field(default_factory=dict)
    actions: ActionSpec | None = None
    references: tuple[float, float] | None = None
    rewarded: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found(Origin):
    """Arrays by name, rows in the order of their steps, actions in the environment's units.

    arrays          observations, actions, rewards, terminals, timeouts, next_observations: those that there are
    """

    arrays: dict[str, np.ndarray]


def noise_note(std: Any) -> tuple[str, ...]:
    """Says that a log's observations have noise, and how to play with it; nothing where they have none."""
    if not isinstance(std, int | float) or not std > 0:
        return ()
    return (
        f"its observations have noise of standard deviation {std:g}: play with as much, --set rollout.observation_noise={std:g}",
    )


def normalized_score(returns: float, references: tuple[float, float]) -> float:
    """100 (return - random) / (expert - random): 0 is random actions, 100 the expert (D4RL; Minari's is a hundredth of it)."""
    low, high = references
    return 100.0 * (returns - low) / (high - low)


PUBLISHED = {"HalfCheetah": (-280.178953, 12135.0), "Hopper": (-20.272305, 3234.3), "Walker2d": (1.629008, 4592.3)}
"""D4RL's (random, expert) for the tasks of its version 2, by the name of the environment without its version."""


DAMAGED = (
    OSError, EOFError, MemoryError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
    zipfile.BadZipFile, zlib.error, SafetensorError,
)  # fmt: skip
"""What decoders raise on files that are damaged: h5py, zipfile, numpy and pyarrow each have their own."""


@contextmanager
def decoding(what: object) -> Iterator[None]:
    """Turns whatever a decoder raises on a damaged file into a UsageError that names `what` is read."""
    try:
        yield
    except UsageError:
        raise
    except DAMAGED as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        why = getattr(error, "strerror", None) or " ".join(text.split()) or type(error).__name__
        raise UsageError(f"cannot read the log {what}: {why}. Copy it again, or make it anew.") from None


def numbers(array: np.ndarray, what: str) -> np.ndarray:
    """`array`. Raises UsageError where it is a single value, or not of real numbers."""
    if array.ndim == 0 or array.dtype.kind not in "fiub":
        raise UsageError(f"{what} is no array of real numbers ({array.dtype}, shape {list(array.shape)}).")
    return array


def need_h5py() -> Any:
    """The module h5py. Raises UsageError saying how to install it."""
    try:
        import h5py
    except ImportError:
        raise UsageError(
            "HDF5 files need the package h5py, which is not installed. Run: pip install 'upslope[offline]'"
        ) from None
    return h5py
