from itertools import combinations_with_replacement, product

import pytest
import torch

from upslope.exact.counting import log_multiplicity, multisets, multisets_count

SIZES = [(1, 1), (1, 3), (4, 1), (3, 2), (5, 3), (2, 6)]


@pytest.mark.parametrize(("items", "size"), SIZES)
def test_every_multiset_once(items, size):
    found = [tuple(chosen) for chosen in multisets(items, size).tolist()]
    assert found == list(combinations_with_replacement(range(items), size))
    assert len(found) == multisets_count(items, size)


@pytest.mark.parametrize(("items", "size"), SIZES)
def test_multiplicity_counts_the_orders(items, size):
    chosen = multisets(items, size)
    orders = [tuple(sorted(order)) for order in product(range(items), repeat=size)]
    expected = torch.tensor([orders.count(tuple(row)) for row in chosen.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_multiplicity(chosen).exp(), expected)
