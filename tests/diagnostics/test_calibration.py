"""Card: preference_distill_hybrid.md, caopd: diagnostics."""

import numpy as np
import pytest
import torch

from upslope.diagnostics.calibration import brier, expected_calibration_error, overconfidence, pairwise_ranking


def test_card_numbers():
    c, z = torch.ones(4), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert (brier(c, z), overconfidence(c, z), pairwise_ranking(c, z), expected_calibration_error(c, z)) == (
        0.5,
        0.5,
        0.0,
        0.5,
    )


def test_against_numpy():
    draw = np.random.default_rng(0)
    c, z = draw.random(200), (draw.random(200) < 0.4).astype(float)
    bins = np.minimum((c * 10).astype(int), 9)
    gaps = [abs(c[bins == b].mean() - z[bins == b].mean()) * (bins == b).mean() for b in range(10) if (bins == b).any()]
    ours = torch.tensor(c), torch.tensor(z)
    assert expected_calibration_error(*ours) == pytest.approx(sum(gaps))
    assert brier(*ours) == pytest.approx(((c - z) ** 2).mean())
    assert overconfidence(*ours) == pytest.approx(c.mean() - z.mean())
    assert pairwise_ranking(*ours) == pytest.approx(np.mean([a > b for a in c[z == 1] for b in c[z == 0]]))


def test_perfect_confidences():
    z = torch.tensor([1.0, 0.0, 1.0])
    assert (brier(z, z), expected_calibration_error(z, z), pairwise_ranking(z, z)) == (0.0, 0.0, 1.0)
    assert np.isnan(pairwise_ranking(torch.ones(2), torch.ones(2)))
