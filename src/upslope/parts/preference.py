"""Losses over pairs of completions of one prompt: whose score is higher, by how much, and what that costs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Stats

Link = Literal["logistic", "square", "hinge"]


@dataclass(frozen=True)
class Pairs:
    """P pairs of rows of one group.

    winner, loser   rows                                                       [P] int64
    certainty       probability that the winner is the better one              [P]
    share           1 / (number of pairs in the group): they share its weight  [P]
    """

    winner: Tensor
    loser: Tensor
    certainty: Tensor
    share: Tensor

    def on_winner(self, loss: Tensor, rows: int) -> Tensor:
        """Losses of pairs [P], a group's averaged, as a row column: each on its winner, [rows]."""
        return torch.zeros(rows, dtype=loss.dtype, device=loss.device).index_add(0, self.winner, loss * self.share)

    def on_both(self, value: Tensor, rows: int) -> Tensor:
        """For each row the mean of `value` [P] over the pairs that it is in, 0 where there is none, [rows]."""
        both, zeros = torch.cat([self.winner, self.loser]), torch.zeros(rows, dtype=value.dtype, device=value.device)
        count = zeros.index_add(0, both, torch.ones_like(value).repeat(2))
        return zeros.index_add(0, both, value.repeat(2)) / count.clamp(min=1)


def pairs_of(batch: Batch, by: Literal["label", "reward"], which: Literal["all", "extremes"]) -> Pairs:
    """The pairs of every group: rows whose `label` or `reward` differs, all of them or the best against the worst.

    A label is the probability that its row is the preferred one: in a pair 1 and 0, or p and 1 - p. Rewards order with
    certainty; equal ones make no pair, but for two labels of 1/2. Rows without a trained token are in no pair. With
    "extremes", of equally good (or bad) rows the one with the smallest `trajectory` is taken, where the batch has it.
    """
    worth = getattr(batch, by).to(batch.dtype)
    fit = batch.trained & batch.valid
    mates = (batch.group.unsqueeze(1) == batch.group) & fit.unsqueeze(1) & fit
    better = mates & (worth.unsqueeze(1) > worth)
    if by == "label":  # a pair of which either is as likely to be the better one
        order = _order(batch)
        better |= mates & (worth.unsqueeze(1) == 0.5) & (worth == 0.5) & (order.unsqueeze(1) < order)
    if which == "extremes":
        better = better & _extreme(batch, worth, mates).unsqueeze(1) & _extreme(batch, -worth, mates)
    winner, loser = better.nonzero(as_tuple=True)
    count = torch.zeros(len(batch), dtype=batch.dtype, device=worth.device)
    count = count.index_add(0, batch.group[winner], torch.ones_like(winner, dtype=batch.dtype))
    certainty = worth[winner] if by == "label" else torch.ones_like(worth[winner])
    return Pairs(winner, loser, certainty, 1 / count[batch.group[winner]])


def _extreme(batch: Batch, worth: Tensor, mates: Tensor) -> Tensor:
    """The row of each group with the highest worth, [R] bool."""
    order = _order(batch)
    best = torch.where(mates, worth, -torch.inf).amax(1)
    top = worth == best
    first = torch.where(mates & top, order, torch.iinfo(torch.int64).max).amin(1)
    return top & (order == first) & mates.diagonal()


def _order(batch: Batch) -> Tensor:
    return batch.trajectory if "trajectory" in batch else torch.arange(len(batch), device=batch.logp.device)


def sequence_score(batch: Batch, *, reference: bool, normalized: bool) -> Tensor:
    """Sum over the tokens of logp, less that of ref_logp with `reference`, per token with `normalized`; [R]."""
    per_token = batch.logp - batch.ref_logp if reference else batch.logp
    total = (per_token * batch.mask).sum(1)
    return total / batch.length.clamp(min=1) if normalized else total


@dataclass(frozen=True)
class PreferenceLoss(Part):
    """One loss per pair on the margin z = beta (s_w - s_l) - margin, placed on the winner's row, [R].

    s: sum of logp - ref_logp over the completion; `reference` False leaves ref_logp out, `normalized` divides by the length.
    link      "logistic" log(1 + exp(-z)); "hinge" max(0, 1 - z); "square" (s_w - s_l - 1 / (2 beta))^2
    smoothing e: (1 - e) loss(z) + e loss(-z): labels are right with probability 1 - e (cDPO)
    flip_rate e: [(1 - e) loss(z) - e loss(-z)] / (1 - 2 e): the loss of clean labels on average over flips (rDPO)
    A label p that is not 1 (a soft label) weighs loss(z) by p and loss(-z) by 1 - p. `pairs` by "label", or by "reward" for
    completions that were sampled; `which` of them.
    """

    beta: float = 0.1
    link: Link = "logistic"
    reference: bool = True
    normalized: bool = False
    margin: float = 0.0
    smoothing: float = 0.0
    flip_rate: float = 0.0
    pairs: Literal["label", "reward"] = "label"
    which: Literal["all", "extremes"] = "all"
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not self.beta > 0:
            raise UsageError(f"{name}(beta={self.beta:g}): it must be positive, e.g. 0.1.")
        for setting in ("smoothing", "flip_rate"):
            if not 0 <= getattr(self, setting) < 0.5:
                raise UsageError(f"{name}({setting}={getattr(self, setting):g}): it must be in [0, 0.5), e.g. 0.1.")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads ref_logp with `reference`."""
        return frozenset({self.pairs, "group"} | ({"ref_logp"} if self.reference else set()))

    def describe(self) -> str:
        inside = "logp - ref_logp" if self.reference else "logp"
        score = f"{'mean' if self.normalized else 'sum'} of {inside}"
        less = f" - {self.margin:g}" if self.margin else ""
        z = f"z = {self.beta:g} (s_w - s_l){less}"
        loss = {
            "logistic": f"log(1 + exp(-z)), {z}",
            "hinge": f"max(0, 1 - z), {z}",
            "square": f"(s_w - s_l - 1 / (2 * {self.beta:g}))^2",
        }[self.link]
        extra = f", labels smoothed by {self.smoothing:g}" if self.smoothing else ""
        extra += f", corrected for {self.flip_rate:.0%} flipped labels" if self.flip_rate else ""
        return f"{loss}, s = {score}{extra}"

    def __call__(self, batch: Batch) -> Tensor:
        pairs = pairs_of(batch, self.pairs, self.which)
        score = sequence_score(batch, reference=self.reference, normalized=self.normalized)
        return pairs.on_winner(self.of_gap(score[pairs.winner] - score[pairs.loser], pairs.certainty), len(batch))

    def of_gap(self, gap: Tensor, certainty: Tensor) -> Tensor:
        """The loss of s_w - s_l [P], with the labels' certainty [P]."""
        right = certainty * (1 - self.smoothing) + (1 - certainty) * self.smoothing
        forward, backward = self._link(gap), self._link(-gap)
        loss = right * forward + (1 - right) * backward
        if not self.flip_rate:
            return loss
        e = self.flip_rate
        mirrored = right * backward + (1 - right) * forward
        return ((1 - e) * loss - e * mirrored) / (1 - 2 * e)

    def _link(self, gap: Tensor) -> Tensor:
        if self.link == "square":
            return (gap - 1 / (2 * self.beta)) ** 2
        z = self.beta * gap - self.margin
        return F.softplus(-z) if self.link == "logistic" else (1 - z).clamp(min=0)

    def stats(self, batch: Batch) -> Stats:
        pairs = pairs_of(batch, self.pairs, self.which)
        score = self.beta * sequence_score(batch, reference=self.reference, normalized=self.normalized)
        gap = score[pairs.winner] - score[pairs.loser]
        return {
            "pairs/accuracy": pairs.on_both((gap > 0).to(gap.dtype), len(batch)),
            "pairs/margin": pairs.on_both(gap, len(batch)),
        }
