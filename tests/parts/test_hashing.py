"""Numbers that belong to an element: uniform, reproducible, and different for different integers."""

import numpy as np
import torch

from upslope.parts.hashing import uniform_of


def test_uniform_and_independent():
    rows = torch.arange(200).unsqueeze(1)
    numbers, others = uniform_of(rows, torch.arange(300), 7), uniform_of(rows, torch.arange(300), 8)
    assert numbers.shape == (200, 300)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert abs(counts - 3000).max() < 5 * np.sqrt(3000)
    assert abs(np.corrcoef(numbers[:, :-1].flatten(), numbers[:, 1:].flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers.flatten(), others.flatten())[0, 1]) < 0.02
    assert len(numbers.unique()) == numbers.numel()


def test_depends_on_the_integers_alone():
    rows = torch.tensor([5, 2, 9])
    torch.testing.assert_close(uniform_of(rows, 3), uniform_of(rows.flip(0), 3).flip(0))
    assert uniform_of(torch.tensor([-1]), 3) != uniform_of(torch.tensor([1]), 3)
    assert uniform_of(torch.tensor([1]), 3) != uniform_of(torch.tensor([3]), 1)
