"""Losses over pairs of completions of one prompt: whose score is higher, by how much, and what that costs."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Stats

Link = Literal["logistic", "square", "hinge"]
By = Literal["label", "reward"]
Which = Literal["all", "extremes", "neighbours"]
LARGEST_EXPONENT = 80.0  # exp of it is a finite float32


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


def pairs_of(batch: Batch, by: By, which: Which, reward_scale: float | None = None) -> Pairs:
    """The pairs of every group: all of rows that differ in `label` or `reward`, the best against the worst ("extremes"), or
    each row against the next one of the ranking ("neighbours").

    A label is the probability that its row is the preferred one: in a pair 1 and 0, or p and 1 - p; of more rows, two with p
    and q make a pair with certainty p / (p + q). Rewards order with certainty, or with that of a Bradley-Terry model,
    sigma(difference / reward_scale). Equal ones make a pair where it has a certainty, 1/2: labels of 1/2, and rewards with
    `reward_scale`. Rows without a trained token are in no pair. Of equal rows the one with the smaller `trajectory` stands
    first, where the batch has it.
    """
    worth = getattr(batch, by).to(batch.dtype)
    fit = batch.trained & batch.valid
    mates = (batch.group.unsqueeze(1) == batch.group) & fit.unsqueeze(1) & fit
    order = _order(batch)
    equal = worth.unsqueeze(1) == worth
    ahead = mates & ((worth.unsqueeze(1) > worth) | (equal & (order.unsqueeze(1) < order)))
    even = (worth == 0.5) if by == "label" else torch.full_like(fit, reward_scale is not None)
    chosen = ahead & (~equal | even)
    if which != "all":
        rank = ahead.sum(0)
        last = rank == mates.sum(1) - 1
        wanted = (rank == 0).unsqueeze(1) & last if which == "extremes" else rank.unsqueeze(1) + 1 == rank
        chosen = chosen & wanted
    winner, loser = chosen.nonzero(as_tuple=True)
    count = torch.zeros(len(batch), dtype=batch.dtype, device=worth.device)
    count = count.index_add(0, batch.group[winner], torch.ones_like(winner, dtype=batch.dtype))
    better, worse = worth[winner], worth[loser]
    if by == "label":
        certainty = better / (better + worse)
    else:
        certainty = torch.ones_like(better) if reward_scale is None else ((better - worse) / reward_scale).sigmoid()
    return Pairs(winner, loser, certainty, 1 / count[batch.group[winner]])


def _order(batch: Batch) -> Tensor:
    return batch.trajectory if "trajectory" in batch else torch.arange(len(batch), device=batch.logp.device)


def sequence_score(batch: Batch, *, reference: bool, normalized: bool) -> Tensor:
    """Sum over the tokens of logp, less that of ref_logp with `reference`, per token with `normalized`; [R]."""
    per_token = batch.logp - batch.ref_logp if reference else batch.logp
    total = (per_token * batch.mask).sum(1)
    return total / batch.length.clamp(min=1) if normalized else total


def divergence_score(log_ratio: Tensor, divergence: Literal["alpha", "js"], alpha: float) -> Tensor:
    """f'(u) of an f-divergence at u = exp(log_ratio), up to a constant: log_ratio itself for the reverse KL (alpha 0).

    alpha   (1 - u^-alpha) / alpha; 1 is the forward KL. The exponent is kept below 80, where the gradient ends
    js      log(2 u / (1 + u))
    """
    if divergence == "js":
        return F.logsigmoid(log_ratio) + math.log(2)
    if not alpha:
        return log_ratio
    return (1 - (-alpha * log_ratio).clamp(max=LARGEST_EXPONENT).exp()) / alpha


@dataclass(frozen=True)
class PreferenceLoss(Part):
    """One loss per pair on the margin z = beta (s_w - s_l) - margin, placed on the winner's row, [R].

    s: sum of logp - ref_logp over the completion; `reference` False leaves ref_logp out, `normalized` divides by the length.
    divergence, alpha   s becomes f'(exp(s)) of an f-divergence: alpha 0 is the reverse KL (s as it is), 1 the forward KL
    link      "logistic" log(1 + exp(-z)); "hinge" max(0, 1 - z); "square" (s_w - s_l - 1 / (2 beta))^2, without a margin
    smoothing e: (1 - e) loss(z) + e loss(-z): labels are right with probability 1 - e (cDPO)
    flip_rate e: [(1 - e) loss(z) - e loss(-z)] / (1 - 2 e): the loss of clean labels on average over flips (rDPO)
    A label p that is not 1 (a soft label) weighs loss(z) by p and loss(-z) by 1 - p. loss(-z) is that of the pair with its rows
    exchanged: with a margin, of -beta (s_w - s_l) - margin. `pairs` by "label", or by "reward" for completions that were
    sampled; `which` of them, and `reward_scale`: see `pairs_of`.
    """

    beta: float = 0.1
    link: Link = "logistic"
    reference: bool = True
    normalized: bool = False
    margin: float = 0.0
    smoothing: float = 0.0
    flip_rate: float = 0.0
    pairs: By = "label"
    which: Which = "all"
    reward_scale: float | None = None
    divergence: Literal["alpha", "js"] = "alpha"
    alpha: float = 0.0
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not self.beta > 0:
            raise UsageError(f"{name}(beta={self.beta:g}): it must be positive, e.g. 0.1.")
        for setting in ("smoothing", "flip_rate"):
            if not 0 <= getattr(self, setting) < 0.5:
                raise UsageError(f"{name}({setting}={getattr(self, setting):g}): it must be in [0, 0.5), e.g. 0.1.")
        if self.link == "square" and self.margin:
            raise UsageError(
                f"{name}(link='square', margin={self.margin:g}): the square loss has no margin. Leave it 0."
            )
        if self.reward_scale is not None and (self.pairs != "reward" or not self.reward_scale > 0):
            raise UsageError(
                f"{name}(pairs={self.pairs!r}, reward_scale={self.reward_scale:g}): it belongs to pairs='reward' and must be "
                "positive: the difference of rewards at which the better one is preferred with probability 0.73."
            )
        if (self.divergence != "alpha" or self.alpha) and (self.normalized or not self.reference):
            raise UsageError(
                f"{name}(divergence={self.divergence!r}, alpha={self.alpha:g}): a divergence is of whole completions from the "
                "reference, so it needs reference=True and normalized=False."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads ref_logp with `reference`."""
        return frozenset({self.pairs, "group"} | ({"ref_logp"} if self.reference else set()))

    def describe(self) -> str:
        inside = "logp - ref_logp" if self.reference else "logp"
        score = f"{'mean' if self.normalized else 'sum'} of {inside}"
        if self.divergence == "js":
            score = f"log(2 u / (1 + u)), u = exp({score})"
        elif self.alpha:
            score = f"(1 - u^-{self.alpha:g}) / {self.alpha:g}, u = exp({score})"
        less = f" - {self.margin:g}" if self.margin else ""
        z = f"z = {self.beta:g} (s_w - s_l){less}"
        loss = {
            "logistic": f"log(1 + exp(-z)), {z}",
            "hinge": f"max(0, 1 - z), {z}",
            "square": f"(s_w - s_l - 1 / (2 * {self.beta:g}))^2",
        }[self.link]
        extra = f", labels smoothed by {self.smoothing:g}" if self.smoothing else ""
        extra += f", corrected for {self.flip_rate:.0%} flipped labels" if self.flip_rate else ""
        if self.reward_scale is not None:
            extra += f", labels sigma((r_w - r_l) / {self.reward_scale:g})"
        return f"{loss}, s = {score}{extra}"

    def __call__(self, batch: Batch) -> Tensor:
        pairs, gap = self._gaps(batch)
        return pairs.on_winner(self.of_gap(gap, pairs.certainty), len(batch))

    def _gaps(self, batch: Batch) -> tuple[Pairs, Tensor]:
        """The pairs and their s_w - s_l, [P]."""
        pairs = pairs_of(batch, self.pairs, self.which, self.reward_scale)
        score = sequence_score(batch, reference=self.reference, normalized=self.normalized)
        score = divergence_score(score, self.divergence, self.alpha)
        return pairs, score[pairs.winner] - score[pairs.loser]

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
        pairs, gap = self._gaps(batch)
        rows = len(batch)
        logp = (batch.logp * batch.mask).sum(1)
        ranked = (logp[pairs.winner] >= logp[pairs.loser]).to(gap.dtype)
        found = {
            "pairs/accuracy": pairs.on_both((gap.sign() + 1) / 2, rows),
            "pairs/ranking_accuracy": pairs.on_both(ranked, rows),
            "pairs/margin": pairs.on_both(self.beta * gap, rows),
        }
        return found if self.pairs == "label" else {**found, "pairs/paired": pairs.on_both(torch.ones_like(gap), rows)}


@dataclass(frozen=True)
class Preferred(Part):
    """A `rows` part: the best row of each group, [R] bool; none where two are equally good and there is nothing better."""

    pairs: By = "label"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads the column of `pairs`."""
        return frozenset({self.pairs, "group"})

    def describe(self) -> str:
        return f"the row of each group with the highest {self.pairs}"

    def __call__(self, batch: Batch) -> Tensor:
        pairs = pairs_of(batch, self.pairs, "extremes")
        preferred = torch.zeros(len(batch), dtype=torch.bool, device=batch.logp.device)
        preferred[pairs.winner[pairs.certainty > 0.5]] = True
        return preferred
