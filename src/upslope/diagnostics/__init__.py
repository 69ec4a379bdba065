"""Diagnostics: what a policy has learned, and what its data let it learn."""

from upslope.diagnostics.calibration import brier, expected_calibration_error, overconfidence, pairwise_ranking
from upslope.diagnostics.ranking import (
    PairScores,
    RankingReport,
    by_difficulty,
    difficulty,
    idealized_accuracy,
    idealized_log_ratio,
    loss_to_rank,
    ranking_accuracy,
    ranking_floor,
    ranking_report,
)

__all__ = [
    "PairScores",
    "RankingReport",
    "brier",
    "by_difficulty",
    "difficulty",
    "expected_calibration_error",
    "idealized_accuracy",
    "idealized_log_ratio",
    "loss_to_rank",
    "overconfidence",
    "pairwise_ranking",
    "ranking_accuracy",
    "ranking_floor",
    "ranking_report",
]
