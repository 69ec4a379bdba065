"""How token or sequence losses become one number: each part returns what the losses are multiplied by before the sum.

The multipliers are made once per (mini-)batch, so a loss split into micro-batches adds up to the whole.
`of_mask`: the multipliers depend on the mask alone, so that mini-batches with the same mask may share them.
Sources: verl `agg_loss`, TRL `loss_type`; the formulas are those of the methods' papers.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part


@dataclass(frozen=True)
class TokenMean(Part):
    """Sum over trained tokens / number of trained tokens of the batch (DAPO, CISPO). [R, T]

    `denominator="kept"`: the mean over the tokens whose `weight` is not 0, so that a weight which selects tokens acts as a mask,
    on penalties too. With "all", what it leaves out still counts.
    """

    denominator: Literal["all", "kept"] = "all"

    @property
    def of_mask(self) -> bool:
        """Whether nothing but the mask is read."""
        return self.denominator == "all"

    def describe(self) -> str:
        return "mean over the batch's tokens" + ("" if self.denominator == "all" else " with w != 0")

    def __call__(self, batch: Batch) -> Tensor:
        counted = batch.mask if self.denominator == "all" else batch.mask & (batch.weight != 0)
        return counted.to(batch.dtype) / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class SequenceMean(Part):
    """Mean over a sequence's trained tokens, then over sequences that have any (GRPO). [R, T]"""

    formula: ClassVar[str] = "mean over sequences of the mean over tokens"
    of_mask: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask / batch.length.clamp(min=1).unsqueeze(1) / batch.trained.sum()


@dataclass(frozen=True)
class SequenceSum(Part):
    """Sum over a sequence's trained tokens, mean over sequences that have any (REINFORCE, RLOO, LUSPO). [R, T]"""

    formula: ClassVar[str] = "mean over sequences of the sum over tokens"
    of_mask: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask.to(batch.dtype) / batch.trained.sum()


@dataclass(frozen=True)
class ConstantSum(Part):
    """Sum over tokens / (number of sequences * `length`), a constant length (Dr. GRPO). [R, T]

    `length` None takes the batch's width T: verl's default, which then depends on padding.
    """

    length: int | None = 1024
    formula: ClassVar[str] = "mean over sequences of (sum over tokens / {length})"

    def __call__(self, batch: Batch) -> Tensor:
        width = batch.logp.shape[1] if self.length is None else self.length
        return batch.mask.to(batch.dtype) / (batch.trained.sum() * width)


@dataclass(frozen=True)
class TokenSum(Part):
    """Sum over all trained tokens times `scale`. [R, T]"""

    scale: float = 1.0
    formula: ClassVar[str] = "{scale} * sum over the batch's tokens"

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask * self.scale


@dataclass(frozen=True)
class LocalTokenMean(Part):
    """Token mean within each run of `rows` consecutive rows, then the mean over the runs. [R, T]

    What a token mean becomes when each device or micro-batch divides by its own tokens (TRL's loss_type="bnpo").
    Raises UsageError where the runs do not divide the batch.
    """

    rows: int = 8
    formula: ClassVar[str] = "mean over runs of {rows} rows of the mean over tokens"

    def __call__(self, batch: Batch) -> Tensor:
        if len(batch) % self.rows:
            raise UsageError(
                f"LocalTokenMean(rows={self.rows}) does not divide a batch of {len(batch)} rows. Set rows to a divisor."
            )
        tokens = batch.mask.view(-1, self.rows * batch.mask.shape[1]).sum(1)
        share = 1.0 / tokens.clamp(min=1).to(batch.dtype) / len(tokens)
        return batch.mask * share.repeat_interleave(self.rows).unsqueeze(1)


@dataclass(frozen=True)
class RowMean(Part):
    """Mean over sequences that have a trained token, for a surrogate that gives one loss per sequence. [R]

    `by_length` multiplies each sequence's loss by its number of trained tokens (LUSPO).
    """

    by_length: bool = False
    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    def describe(self) -> str:
        return "mean over sequences of length times" if self.by_length else "mean over sequences"

    def __call__(self, batch: Batch) -> Tensor:
        share = batch.trained.to(batch.dtype) / batch.trained.sum()
        return share * batch.length if self.by_length else share


@dataclass(frozen=True)
class GroupSum(Part):
    """Sum over a group's sequences, then the mean over the groups that have a trained token. [R]"""

    formula: ClassVar[str] = "mean over groups of the sum over sequences"
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({"group"})

    def __call__(self, batch: Batch) -> Tensor:
        return batch.trained.to(batch.dtype) / len(batch.group[batch.trained].unique())
