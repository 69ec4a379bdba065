"""Does a policy rank pairs as the raters do? Ranking accuracy, its ceiling, and what it takes to rank a pair right.

P pairs, w the completion that more raters prefer, l the other one; log-probs are summed over a completion's tokens.

    ranking accuracy     share of pairs with logp_w >= logp_l; length-normalized: with means over tokens
    idealized log-ratio  ref_w - ref_l + log(a / (1 - a)) / beta, of the policy that is best for DPO's or RLHF's objective
                         where the share a of the raters prefers w; idealized accuracy: how often it is above 0
    alignment gap        idealized accuracy - ranking accuracy
    difficulty c         ref_l - ref_w: DPO ranks the pair right where its loss is below -log sigmoid(beta c)

Source: Chen et al. 2024 (arXiv:2405.19534). The floor that a mean loss guarantees (`ranking_floor`) follows from the last line.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.errors import UsageError


def ranking_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of pairs with chosen >= rejected, both [P]: log-probs, summed or per token."""
    return float((chosen >= rejected).double().mean())


def difficulty(ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """c [P]: by how much the reference holds the rejected completion for more likely, in nats."""
    return ref_rejected - ref_chosen


def loss_to_rank(difficulty: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta c) [P]: the policy ranks a pair right exactly where its DPO loss is no higher."""
    return F.softplus(-beta * difficulty)


def idealized_log_ratio(difficulty: Tensor, share: Tensor, beta: float) -> Tensor:
    """log policy(w) / policy(l) [P] of the perfectly optimized policy, `share` [P] of the raters preferring w."""
    return torch.logit(share.double()) / beta - difficulty


def idealized_accuracy(difficulty: Tensor, share: Tensor, beta: float) -> float:
    """Ranking accuracy of the perfectly optimized policy: 1 where raters are unanimous, less where they are not."""
    return float((idealized_log_ratio(difficulty, share, beta) > 0).double().mean())


def ranking_floor(loss: float, difficulty: Tensor, beta: float) -> float:
    """The least ranking accuracy that a mean DPO loss over these pairs leaves possible.

    A pair that is ranked wrong costs more than `loss_to_rank`, so at most k pairs are, the k cheapest of which add up to no
    more than all the loss there is. `loss` is the mean of -log sigmoid(beta gap), as of unanimous labels.
    """
    cheapest = loss_to_rank(difficulty.double(), beta).sort().values.cumsum(0)
    return 1 - float((cheapest <= loss * len(difficulty) * (1 + 1e-9)).double().mean())


@dataclass(frozen=True)
class PairScores:
    """Log-probs of P pairs under a policy and its reference, summed over tokens: one column each, all [P].

    share    of the raters that prefer chosen, in (1/2, 1]; default: all
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    share: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {tuple(column.shape) for column in vars(self).values() if column is not None}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1 or not len(self.chosen):
            raise UsageError(
                f"PairScores: all columns must be [P] with P >= 1, one entry per pair, but have shapes {sorted(sizes)}."
            )
        shares = self.shares
        if not ((shares > 0.5) & (shares <= 1)).all():
            raise UsageError(
                f"PairScores: a share is {float(shares.min()):g}; it must be above 1/2 and at most 1. Exchange chosen and "
                "rejected where fewer raters prefer chosen, and leave ties out."
            )

    @property
    def shares(self) -> Tensor:
        """Share of the raters that prefer chosen, [P]."""
        return torch.ones_like(self.chosen) if self.share is None else self.share

    @property
    def difficulty(self) -> Tensor:
        """c [P]."""
        return difficulty(self.ref_chosen, self.ref_rejected)

    @property
    def gap(self) -> Tensor:
        """Difference of the log-ratios to the reference, chosen less rejected, [P]: Delta of the DPO loss."""
        return self.chosen - self.rejected + self.difficulty

    def select(self, rows: Tensor) -> "PairScores":
        """The pairs `rows` [p] int64, or a bool mask [P]."""
        columns: dict[str, Any] = {name: None if c is None else c[rows] for name, c in vars(self).items()}
        return PairScores(**columns)


@dataclass(frozen=True)
class RankingReport:
    """How well a policy ranks P pairs, and how well it could.

    accuracy               share ranked right, by summed log-probs; `normalized` by log-probs per token
    reference              the reference's own accuracy; `reference_normalized` per token
    implicit               share of pairs whose chosen completion has gained more on the reference than the rejected one:
                           what training logs as pairs/accuracy
    idealized              accuracy of the policy that is best for the objective; `alignment_gap` = idealized - accuracy
    loss                   mean DPO loss; `floor` the least accuracy that it leaves possible (`ranking_floor`)
    loss_to_rank           mean loss below which pairs are ranked right
    difficulty             lowest and highest c of the pairs
    """

    pairs: int
    beta: float
    accuracy: float
    normalized: float
    reference: float
    reference_normalized: float
    implicit: float
    idealized: float
    alignment_gap: float
    loss: float
    floor: float
    loss_to_rank: float
    difficulty: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ranking_report(scores: PairScores, beta: float) -> RankingReport:
    """All of it for the given pairs. Raises UsageError where beta is not positive."""
    if not beta > 0:
        raise UsageError(f"ranking_report(beta={beta:g}): it must be positive, as in training, e.g. 0.1.")
    c = scores.difficulty
    share, forward, backward = scores.shares, F.softplus(-beta * scores.gap), F.softplus(beta * scores.gap)
    loss = float((share * forward + (1 - share) * backward).double().mean())
    accuracy = ranking_accuracy(scores.chosen, scores.rejected)
    ideal = idealized_accuracy(c, share, beta)
    per_token = 1 / scores.chosen_length.clamp(min=1), 1 / scores.rejected_length.clamp(min=1)
    return RankingReport(
        pairs=len(c),
        beta=beta,
        accuracy=accuracy,
        normalized=ranking_accuracy(scores.chosen * per_token[0], scores.rejected * per_token[1]),
        reference=ranking_accuracy(scores.ref_chosen, scores.ref_rejected),
        reference_normalized=ranking_accuracy(scores.ref_chosen * per_token[0], scores.ref_rejected * per_token[1]),
        implicit=float(((scores.gap.sign() + 1) / 2).double().mean()),
        idealized=ideal,
        alignment_gap=ideal - accuracy,
        loss=loss,
        floor=ranking_floor(float(forward.double().mean()), c, beta),
        loss_to_rank=float(loss_to_rank(c.double(), beta).mean()),
        difficulty=(float(c.min()), float(c.max())),
    )


def by_difficulty(scores: PairScores, beta: float, bins: int = 6) -> list[RankingReport]:
    """Reports on pairs of similar difficulty, easiest first: as equal numbers as can be, pairs that the reference ranks right
    apart from those that it does not.
    """
    if bins < 2:
        raise UsageError(
            f"by_difficulty(bins={bins}): at least 2, for the pairs that the reference ranks right and wrong."
        )
    c = scores.difficulty
    right, wrong = ((c <= 0).nonzero().squeeze(1), (c > 0).nonzero().squeeze(1))
    share = min(max(round(bins * len(right) / len(c)), 1), bins - 1)
    chosen: list[Tensor] = []
    for rows, parts in ((right, share), (wrong, bins - share)):
        if len(rows):
            chosen += rows[c[rows].argsort(stable=True)].tensor_split(min(parts, len(rows)))
    return [ranking_report(scores.select(rows), beta) for rows in chosen]


COLUMNS = ("difficulty", "pairs", "reference", "ranked right", "per token", "gained", "loss", "needs loss below")


def ranking_table(whole: RankingReport, parts: Sequence[RankingReport]) -> list[str]:
    """A table by difficulty, one line per part and one for all pairs."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for part in (*parts, whole):
        name = "all" if part is whole else f"{part.difficulty[0]:+.2f} to {part.difficulty[1]:+.2f}"
        shares = (part.reference, part.accuracy, part.normalized, part.implicit)
        rows.append(
            (
                name,
                str(part.pairs),
                *(f"{share:.1%}" for share in shares),
                f"{part.loss:.4f}",
                f"{part.loss_to_rank:.4f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
