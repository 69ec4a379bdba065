"""Batch: the columns that a step gains on its way, with their shapes checked at the door.

R rows (one sampled completion each), T positions (response tokens, ragged through `mask`), G groups.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.columns import COLUMNS, SOURCES, Column
from upslope.errors import UsageError

__all__ = ["COLUMNS", "SOURCES", "Batch", "Column"]
DTYPES = {"bool": torch.bool, "int": torch.int64}
GOVERNING = {"logp", "mask", "valid"}  # columns by which the others are checked and masked
UNMASKED = {"token_reward", "log_distribution"}  # a reward may fall on a tool's token; -inf is a fair log-prob


class Batch:
    """Named columns over the same rows; immutable, `replace` makes the next one.

        Batch(logp=..., old_logp=..., mask=..., reward=..., group=...)   # [R,T] [R,T] [R,T] [R] [R]

    Only `logp` is required; any further column may be given by name, known (`upslope.batch.COLUMNS`) or your own, as
    long as its first axis is R. Float token columns are set to 0 where `mask` is False, `group` is renumbered 0..G-1.
    Raises UsageError for shapes that disagree, a mask without a trained token, NaN or infinite entries.
    """

    _columns: dict[str, Tensor]
    _reader: object | None
    _complete: bool

    def __init__(self, **columns: Any) -> None:
        if columns.get("logp") is None:
            raise UsageError("a Batch needs the column 'logp' [R, T]: the log-prob of each token under the policy.")
        given = {name: _as_tensor(name, value) for name, value in columns.items() if value is not None}
        logp = given["logp"]
        if logp.ndim != 2:
            raise UsageError(f"column 'logp' has shape {list(logp.shape)}; it must be [R, T], rows by token positions.")
        mask = given.get("mask")
        given["mask"] = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
        _check_shapes({name: given[name] for name in ("logp", "mask")}, logp)
        if not given["mask"].any():
            raise UsageError(
                "column 'mask' has no trained token in any row: nothing to learn from. Mark response tokens True."
            )
        object.__setattr__(self, "_columns", _checked(given, given["mask"], given.get("valid"), logp))
        object.__setattr__(self, "_reader", None)
        object.__setattr__(self, "_complete", False)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        column = self._columns.get(name)
        if column is not None:
            return column
        if name == "weight":
            return torch.ones_like(self.logp)
        if name == "valid":
            return torch.ones(len(self), dtype=torch.bool, device=self.logp.device)
        if name == "progress":
            return self.logp.new_zeros(len(self), dtype=self.dtype)
        if name == "step":
            return torch.ones(len(self), dtype=torch.int64, device=self.logp.device)
        raise UsageError(self._absent(name))

    def __setattr__(self, name: str, value: object) -> None:
        raise UsageError(f"a Batch does not change: write batch = batch.replace({name}=...).")

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self.logp)

    def __repr__(self) -> str:
        return "Batch(" + ", ".join(f"{name} {list(column.shape)}" for name, column in self._columns.items()) + ")"

    def replace(self, **columns: Any) -> "Batch":
        """A Batch with these columns new or changed; None removes one. Checked as at construction."""
        if GOVERNING & columns.keys() and not self._only_logp(columns):
            return self._with_reader(Batch(**{**self._columns, **columns}))
        fresh = {name: _as_tensor(name, value) for name, value in columns.items() if value is not None}
        kept = {name: column for name, column in self._columns.items() if name not in columns}
        made = _checked(fresh, self.mask, self._columns.get("valid"), self.logp, self._complete)
        return self._unchecked({**kept, **made}, self._complete)

    def select(self, rows: Tensor | slice) -> "Batch":
        """The rows [r] int64 (or a bool mask [R], or a slice) of every column. They were checked as part of the whole."""
        columns = {name: column[rows] for name, column in self._columns.items()}
        if self._complete and len(columns["mask"]) and "group" not in columns:
            return self._unchecked(columns, complete=True)
        if not columns["mask"].any():
            return Batch(**columns)  # which says what is wrong
        if "group" in columns:
            columns["group"] = torch.unique(columns["group"], return_inverse=True)[1]
        return self._unchecked(columns)

    def narrow(self, width: int) -> "Batch":
        """Every token column cut to its first `width` positions. Raises UsageError where that cuts off trained tokens."""
        full = self.logp.shape[1]
        if width < full and self.mask[:, width:].any():
            raise UsageError(
                f"narrow({width}) would cut off trained tokens: the longest row needs more than {width} positions."
            )
        columns = {
            name: column[:, :width] if column.shape[1:2] == (full,) else column
            for name, column in self._columns.items()
        }
        return self._with_reader(Batch(**columns))

    def only(self, names: frozenset[str]) -> "Batch":
        """Just the columns named, and logp and mask."""
        kept = names | {"logp", "mask"}
        return self._with_reader(Batch(**{name: column for name, column in self._columns.items() if name in kept}))

    def transitions(self) -> "Batch":
        """Every trained token as a row of its own, [M, 1], row after row; columns of rows are repeated."""
        rows, width = self.mask.shape
        kept = None if bool(self.mask.all()) else self.mask.flatten()
        columns = {}
        for name, column in self._columns.items():
            token = column.shape[:2] == (rows, width) and COLUMNS.get(name, Column("R", "", "")).shape != "R"
            flat = column.reshape(rows * width, 1, *column.shape[2:]) if token else column.repeat_interleave(width, 0)
            columns[name] = flat if kept is None else flat[kept]
        return self._unchecked(columns, complete=True)

    @property
    def complete(self) -> bool:
        """Whether it is known that every position is trained on: so in the batches that `transitions` makes, and their parts."""
        return self._complete

    def extended(self, columns: Mapping[str, Tensor]) -> "Batch":
        """`replace` without its checks, for columns that are made of checked ones: right in shape, finite, 0 where masked."""
        return self._unchecked({**self._columns, **columns}, self._complete and "mask" not in columns)

    def _unchecked(self, columns: dict[str, Tensor], complete: bool = False) -> "Batch":
        twin = object.__new__(Batch)
        twin.__dict__.update(_columns=columns, _reader=self._reader, _complete=complete)
        return twin

    def _only_logp(self, columns: Mapping[str, Any]) -> bool:
        """Whether logp is new and alike, and neither mask nor valid is: then the other columns are as they were checked."""
        logp = columns.get("logp")
        return not {"mask", "valid"} & columns.keys() and isinstance(logp, Tensor) and logp.shape == self.logp.shape

    def read_by(self, part: object | None) -> "Batch":
        """The same batch, which names `part` in the error for an absent column."""
        twin = object.__new__(Batch)
        twin.__dict__.update(_columns=self._columns, _reader=part, _complete=self._complete)
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of lengths, counts and denominators: that of logp, but at least float32."""
        return torch.promote_types(self.logp.dtype, torch.float32)

    @property
    def length(self) -> Tensor:
        """Trained tokens of each row, [R] float."""
        return self.mask.sum(1).to(self.dtype)

    @property
    def trained(self) -> Tensor:
        """Rows with at least one trained token, [R] bool."""
        return self.mask.any(1)

    def masked_mean(self, column: Tensor) -> Tensor:
        """Mean of a token column [R, T] over all trained tokens of the batch, scalar."""
        return torch.where(self.mask, column, 0.0).sum() / self.mask.sum()

    def masked_std(self, column: Tensor, eps: float = 0.0) -> Tensor:
        """sqrt(variance + eps) over all trained tokens, with n - 1 (0 variance for one token), scalar."""
        centered = torch.where(self.mask, column - self.masked_mean(column), 0.0)
        return ((centered**2).sum() / (self.mask.sum() - 1).clamp(min=1) + eps).sqrt()

    def per_row(self, name: str) -> Tensor:
        """A token column that is the same on all trained tokens of a row, as [R]; 0 for a row without trained tokens.

        Raises UsageError naming the first row in which it differs.
        """
        column = getattr(self, name)
        high = torch.where(self.mask, column, -torch.inf).amax(1)
        differs = torch.where(self.mask, column, torch.inf).amin(1) < high
        if differs.any():
            row = int(differs.nonzero()[0])
            who = type(self._reader).__name__ if self._reader is not None else "This surrogate"
            raise UsageError(
                f"{who} gives one loss per sequence, but '{name}' differs within row {row}{self._prompt_of(row)}. Use a surrogate "
                f"per token (ClippedRatio), or make '{name}' the same for the whole row."
            )
        return torch.where(self.trained, high, 0.0)

    def group_mean(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [G] of a row column [R] over the valid rows of each group, and how many those are, [G]."""
        group = self.group
        groups = int(group.max()) + 1
        valid = self.valid.to(column.dtype)
        count = torch.zeros(groups, dtype=column.dtype, device=column.device).index_add_(0, group, valid)
        total = torch.zeros_like(count).index_add_(0, group, torch.where(self.valid, column, 0))
        return total / count.clamp(min=1), count

    def reward_within(self, low: float, high: float, *, part: object) -> Tensor:
        """The rewards [R] of the valid rows, checked to lie in [low, high].

        Raises UsageError naming the part, the first row outside and what to do.
        """
        outside = ((self.reward < low) | (self.reward > high)) & self.valid
        if outside.any():
            row = int(outside.nonzero()[0])
            adjustable = ", or train with reward_range=(<lowest>, <highest>)" if hasattr(part, "reward_range") else ""
            raise UsageError(
                f"{type(part).__name__} needs rewards in [{low:g}, {high:g}], but row {row}{self._prompt_of(row)} has reward "
                f"{float(self.reward[row]):g}; {int(outside.sum())} of {len(self)} rows are outside. Rescale in the task's "
                f"verifier{adjustable}."
            )
        return self.reward

    def _prompt_of(self, row: int) -> str:
        for key in ("prompt", "group"):
            if key in self._columns:
                return f" (prompt {int(self._columns[key][row])})"
        return ""

    def _with_reader(self, other: "Batch") -> "Batch":
        return other.read_by(self._reader) if self._reader is not None else other

    def _absent(self, name: str) -> str:
        who = type(self._reader).__name__ if self._reader is not None else "this"
        column = COLUMNS.get(name)
        meaning = f" ({column.meaning})" if column else ""
        shape = {"R": "[R]", "RT": "[R, T]", "RT*": "[R, T, ...]"}[column.shape] if column else "[R] or [R, T]"
        remedy = f", {column.remedy}" if column and column.remedy else ""
        return (
            f"{who} reads the column '{name}'{meaning}, which this batch does not have; it has: "
            f"{', '.join(sorted(self._columns))}. Pass Batch({name}=...) with shape {shape}{remedy}."
        )


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"column '{name}' is not a rectangular array of numbers: {error}. Pad rows and use mask."
        ) from None
    kind = COLUMNS[name].kind if name in COLUMNS else None
    if kind == "float" and not tensor.is_floating_point():
        return tensor.to(torch.get_default_dtype())
    if kind in DTYPES:
        return tensor.to(DTYPES[kind])
    return tensor


def _checked(
    given: dict[str, Tensor], mask: Tensor, valid: Tensor | None, logp: Tensor, complete: bool = False
) -> dict[str, Tensor]:
    """The columns `given` in their final form: shapes and numbers checked, masked, groups renumbered."""
    advantage = given.get("advantage")
    if advantage is not None and advantage.shape == logp.shape[:1]:
        given["advantage"] = advantage.unsqueeze(1).expand_as(logp)
    _check_shapes(given, logp)
    _check_finite(given, mask, valid)
    if "group" in given:
        given["group"] = torch.unique(given["group"], return_inverse=True)[1]
    if complete and "reward" not in given:
        return given
    with torch.enable_grad():  # `prepare` runs without gradient, but must hand on logp with its own
        return {name: _masked(name, column, mask) for name, column in given.items()}


def _check_shapes(given: Mapping[str, Tensor], logp: Tensor) -> None:
    rows, width = logp.shape
    for name, tensor in given.items():
        known = COLUMNS[name].shape if name in COLUMNS else "R"
        wanted = {"R": (rows,), "RT": (rows, width), "RT*": (rows, width)}[known]
        exact = name in COLUMNS and known != "RT*"
        fits = tensor.shape == wanted if exact else tensor.shape[: len(wanted)] == wanted
        if not fits:
            letters = "[R]" if known == "R" else "[R, T]"
            raise UsageError(
                f"column '{name}' has shape {list(tensor.shape)}, but logp is {[rows, width]}: '{name}' must be {letters} = "
                f"{list(wanted)}. One row per completion, one position per response token, short rows padded."
            )


def _check_finite(given: Mapping[str, Tensor], mask: Tensor, valid: Tensor | None) -> None:
    for name, tensor in given.items():
        if not tensor.is_floating_point():
            continue
        finite = tensor.isfinite()
        if name == "log_distribution" or bool(finite.all()):
            continue
        matters = mask if tensor.ndim >= 2 and tensor.shape[:2] == mask.shape else None
        if valid is not None:
            matters = valid.view(-1, *[1] * (tensor.ndim - 1)) if matters is None else matters & valid.unsqueeze(1)
        if matters is not None:
            finite = finite | ~matters.view(*matters.shape, *[1] * (tensor.ndim - matters.ndim))
        if not finite.all():
            place = (~finite).nonzero()[0].tolist()
            where = f"row {place[0]}" + (f", position {place[1]}" if len(place) > 1 else "")
            value = float(tensor[tuple(place)])
            raise UsageError(
                f"column '{name}' is {value} at {where}; {int((~finite).sum())} entries are not finite. Mask those tokens, set "
                f"valid=False for a failed reward, or look for the overflow where '{name}' is made."
            )


def _masked(name: str, column: Tensor, mask: Tensor) -> Tensor:
    """Float columns are 0 where nothing is trained: a NaN at a padded position must not reach a gradient."""
    if not column.is_floating_point():
        return column
    if column.shape[:2] == mask.shape and name not in UNMASKED:
        keep = mask.view(*mask.shape, *[1] * (column.ndim - 2))
        return torch.where(keep, column, 0.0)
    if name == "reward":
        return torch.where(column.isfinite(), column, 0.0)
    return column
