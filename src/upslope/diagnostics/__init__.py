"""Diagnostics: what a policy has learned, and what its data let it learn.

    ranking          ranking accuracy of pairs, its ceiling and its floor        (`upslope diagnose ranking`; pairs scores a model)
    calibration      stated confidences against how often they are right
    coverage         how well data covers what a policy does
    online_offline   one loss on fresh, stored, and stored pairs in their order, exactly
    bandit           own samples and negative gradients, where the reward is far from the reference
    modes            which KL an update lowers; modes that a policy has of a target
    information      what moves a reference to a policy, and the pairs that teach just that
    compounding      errors over a chain of steps, with and without correction
    logged           TQ and SACo: what a log of transitions is worth             (`upslope diagnose data`)
    off_policy       IPS, WIS, per-decision, doubly robust, their effective sample size; FQE over finitely many states
    fitted           FQE with a network                                          (`upslope diagnose data --policy`)
    sampling_error   how far actions that were drawn are from the policy's own
    smoothing        what a policy on noisy observations earns under any attack  (`upslope certify`)

All but the first and the last five are of policies that can be enumerated, or of numbers that are given.
"""

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
