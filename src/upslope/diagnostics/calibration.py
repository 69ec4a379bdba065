"""How far stated confidences are from how often they are right: diagnostics of confidences c and outcomes z, both [n] in [0, 1]."""

import torch
from torch import Tensor


def brier(confidence: Tensor, correct: Tensor) -> float:
    """Mean of (c - z)^2 (Brier 1950): 0 is perfect, 0.25 what a constant 0.5 gets."""
    return float(((confidence - correct.to(confidence.dtype)) ** 2).mean())


def overconfidence(confidence: Tensor, correct: Tensor) -> float:
    """Mean of c minus the share that is right."""
    return float(confidence.mean() - correct.to(confidence.dtype).mean())


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """Mean over equally wide bins of |mean c - share right|, each by its share of the answers (Guo et al. 2017, eq. 3)."""
    place = (confidence * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=confidence.dtype).index_add(0, place, confidence - correct.to(confidence.dtype))
    return float(gap.abs().sum() / len(confidence))


def pairwise_ranking(confidence: Tensor, correct: Tensor) -> float:
    """Chance that a right answer has a strictly higher confidence than a wrong one: ties count for nothing, unlike in AUROC.

    NaN where there are no right or no wrong answers.
    """
    right, wrong = confidence[correct > 0.5], confidence[correct <= 0.5]
    return float((right.unsqueeze(1) > wrong.unsqueeze(0)).float().mean())
