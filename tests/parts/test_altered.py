"""Prompts with a part hidden."""

import pytest
import torch

from upslope.parts.altered import blanked

IDS = list(range(1, 2001))


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_each_token_is_hidden_with_the_probability(probability):
    altered = blanked(IDS, 0, probability, torch.Generator().manual_seed(1))
    assert all(new in (0, old) for new, old in zip(altered, IDS, strict=True))
    assert altered.count(0) == pytest.approx(2000 * probability, abs=100)
    assert probability not in (0.0, 1.0) or altered.count(0) == 2000 * probability
    assert blanked([], 0, probability, torch.Generator()) == []


def test_the_generator_decides():
    draws = [blanked(IDS, 0, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
