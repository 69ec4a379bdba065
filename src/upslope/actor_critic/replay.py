"""Stored transitions: one preallocated array of rows, drawn from uniformly, saved piece by piece beside the checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from upslope.errors import UsageError
from upslope.runs.files import DISK_ERRORS, RunError, human_bytes, reason, sync

STEP = ("observation", "action", "reward", "terminated", "truncated", "next_observation")
"""Columns of every transition."""
EXTRAS = ("next_action", "return_to_go", "lambda_return", "advantage")
"""Columns that a log may have beyond those: [B, A], and [B] the others. The last two are a recipe's `relabel`'s."""
AHEAD = frozenset({"next_action", "return_to_go"})
"""Those of them that only the rest of an episode tells."""


@dataclass(frozen=True)
class Layout:
    """Where the columns of a transition stand in its row: those of STEP, then extras."""

    observation: int
    action: int
    extras: tuple[str, ...] = ()

    def columns(self) -> dict[str, tuple[int, int]]:
        """Name -> (first, last + 1)."""
        widths = {
            "observation": self.observation,
            "action": self.action,
            "reward": 1,
            "terminated": 1,
            "truncated": 1,
            "next_observation": self.observation,
        }
        widths |= {name: self.action if name == "next_action" else 1 for name in self.extras}
        found, place = {}, 0
        for name, width in widths.items():
            found[name] = (place, place + width)
            place += width
        return found

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return max(last for _, last in self.columns().values())


class Replay:
    """The last `capacity` transitions, as rows of float32; the oldest are overwritten.

    A row holds a whole transition, so a batch is one gather. `added` counts all that ever came in; row i of them stands at
    i mod capacity. The array is not touched before it is written to, so the machine gives memory as the buffer fills.
    """

    def __init__(self, capacity: int, layout: Layout) -> None:
        if capacity < 1:
            raise UsageError(f"data.capacity is {capacity}; the buffer must hold at least 1 transition.")
        self.capacity, self.layout = capacity, layout
        try:
            self.rows = torch.empty(capacity, layout.width, dtype=torch.float32)
        except RuntimeError:
            need = human_bytes(4.0 * capacity * layout.width)
            raise UsageError(
                f"a buffer of {capacity:,} transitions of {layout.width} numbers needs {need}, which this machine does not "
                "give. Lower data.capacity."
            ) from None
        self.added = 0
        self.saved = 0
        self._columns = layout.columns()
        self._slots = [slice(*self._columns[name]) for name in STEP]
        self._array = self.rows.numpy()

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, rows: Tensor) -> None:
        """Adds rows [N, width]; of more than `capacity` only the last are kept."""
        count = len(rows)
        kept = min(count, self.capacity)
        place = (self.added + count - kept) % self.capacity
        head = min(kept, self.capacity - place)
        rows = rows[count - kept :]
        self.rows[place : place + head] = rows[:head]
        if head < kept:
            self.rows[: kept - head] = rows[head:]
        self.added += count

    def add_step(self, *columns: np.ndarray) -> None:
        """Adds what one step of N copies gave: the columns STEP, in that order, as arrays [N] or [N, size]."""
        count = len(columns[2])
        place = self.added % self.capacity
        whole = place + count <= self.capacity
        rows = self._array[place : place + count] if whole else np.empty((count, self.layout.width), np.float32)
        for slot, column in zip(self._slots, columns, strict=True):
            rows[:, slot] = column.reshape(count, -1)
        if whole:
            self.added += count
        else:
            self.add(torch.from_numpy(rows))

    def row(self, columns: Mapping[str, Any]) -> Tensor:
        """Rows [N, width] of columns by name, such as arrays of a step."""
        rows = torch.empty(len(columns["reward"]), self.layout.width)
        for name, (first, last) in self._columns.items():
            rows[:, first:last] = torch.as_tensor(columns[name]).reshape(len(rows), last - first)
        return rows

    def draw(self, count: int, generator: torch.Generator, shares: Tensor | None = None) -> Tensor:
        """`count` rows [count, width] with replacement: uniformly, or of row i with chance shares[i] - shares[i - 1]."""
        if shares is None:
            chosen = torch.randint(0, len(self), (count,), generator=generator)
        else:
            points = torch.rand(count, generator=generator, dtype=torch.float64)
            chosen = torch.searchsorted(shares, points, right=True).clamp_(max=len(shares) - 1)
        return self.rows.index_select(0, chosen)

    def column(self, name: str) -> Tensor:
        """A column of everything stored, [n, width of the column], a view; in the order of the array."""
        first, last = self._columns[name]
        return self.rows[: len(self), first:last]

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the rows that came since the last call as one file, durably; returns what `load` needs, for the checkpoint.

        Files are never written to again, so that every older checkpoint stays whole. Raises RunError where the disk refuses.
        """
        first = max(self.saved, self.added - self.capacity)
        if self.added > first:
            chosen = torch.arange(first, self.added) % self.capacity
            _write(folder, f"rows-{first:012d}-{self.added:012d}.safetensors", {"rows": self.rows[chosen]})
        self.saved = self.added
        return {"added": self.added}

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Reads back what was there when `save` returned `state`; what was written later is removed.

        Raises UsageError where a file is missing or damaged.
        """
        added = int(state["added"])
        for file in pieces(folder):
            first, last = piece_of(file)
            if first >= added:
                file.unlink()
        wanted = max(0, added - self.capacity)
        place = wanted
        for file in sorted(pieces(folder), key=piece_of):
            first, last = piece_of(file)
            if last <= place or first > place:
                continue
            found = read_piece(file, last - first, self.layout.width)
            self.rows[torch.arange(place, last) % self.capacity] = found[place - first :]
            place = last
        if place != added:
            raise UsageError(
                f"the stored transitions {place} to {added} are missing in {folder}: the run cannot go on as it was. Put the "
                "files back, or start the run anew."
            )
        self.added = self.saved = added

    def forget(self, folder: Path, oldest: int) -> None:
        """Removes files that no checkpoint reads any more: all whose rows came before the window of the one that had `oldest`
        rows added."""
        for file in pieces(folder):
            if piece_of(file)[1] <= oldest - self.capacity:
                file.unlink()


def pieces(folder: Path) -> list[Path]:
    """The files of rows in a folder."""
    return sorted(folder.glob("rows-*.safetensors"))


def piece_of(file: Path) -> tuple[int, int]:
    """(first, last + 1): which rows a file holds."""
    _, first, last = file.stem.split("-")
    return int(first), int(last)


def read_piece(file: Path, count: int, width: int) -> Tensor:
    """The rows of a file [count, width]. Raises UsageError where it is damaged or of another layout."""
    try:
        rows = load_file(file)["rows"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UsageError(f"the stored transitions in {file} are damaged: {error}. Start the run anew.") from None
    if rows.shape != (count, width):
        raise UsageError(f"{file} holds rows {list(rows.shape)}, not [{count}, {width}]: it is of another environment.")
    return rows


def _write(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        sync(temporary)
        temporary.rename(folder / name)
        sync(folder)
    except DISK_ERRORS as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write stored transitions to {folder}: {reason(error, folder)}. The checkpoints before are whole."
        ) from error
