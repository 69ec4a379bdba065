"""Card: rlvr_core.md, aggregate-modes: the numbers, the denominators, and what a fully masked row must not do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch, UsageError
from upslope.parts.aggregate import (
    ConstantSum,
    LocalTokenMean,
    RowMean,
    SequenceMean,
    SequenceSum,
    TokenMean,
    TokenSum,
)

CARD = Batch(logp=torch.tensor([[1.0, 1, 1, 1], [2, 0, 0, 0]]), mask=torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]))


def total(part, batch):
    return float((batch.logp * part(batch)).sum())


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (TokenMean(), 1.2),
        (SequenceMean(), 1.5),
        (SequenceSum(), 3.0),
        (ConstantSum(8), 0.375),
        (ConstantSum(None), 0.75),
        (TokenSum(0.5), 3.0),
        (LocalTokenMean(1), 1.5),
        (LocalTokenMean(2), 1.2),
    ],
    ids=str,
)
def test_card_numbers(part, expected):
    assert total(part, CARD) == pytest.approx(expected)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(any))
def test_equals_numpy_and_a_masked_row_counts_in_no_denominator(lengths):
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    batch = Batch(logp=torch.arange(1.0, 1 + mask.numel(), dtype=torch.float64).view(mask.shape), mask=mask)
    rows = [row[keep] for row, keep in zip(batch.logp.numpy(), mask.numpy(), strict=True) if keep.any()]
    assert total(TokenMean(), batch) == pytest.approx(np.concatenate(rows).mean())
    assert total(SequenceMean(), batch) == pytest.approx(np.mean([row.mean() for row in rows]))
    assert total(SequenceSum(), batch) == pytest.approx(np.mean([row.sum() for row in rows]))
    assert total(ConstantSum(7), batch) == pytest.approx(np.mean([row.sum() / 7 for row in rows]))
    assert float(RowMean()(batch).sum()) == pytest.approx(1)
    assert float((RowMean(by_length=True)(batch)).sum()) == pytest.approx(np.mean([len(row) for row in rows]))


def test_equal_lengths_agree_up_to_the_length():
    batch = Batch(logp=torch.randn(3, 5))
    assert total(TokenMean(), batch) == pytest.approx(total(SequenceMean(), batch), abs=1e-6)
    assert total(SequenceSum(), batch) == pytest.approx(5 * total(SequenceMean(), batch), abs=1e-6)


def test_a_mean_over_the_tokens_that_a_weight_keeps():
    weight = torch.tensor([[0.0, 2, 0, 1], [0, 1, 1, 1]])
    kept, every = TokenMean(denominator="kept")(CARD.replace(weight=weight)), TokenMean()(CARD.replace(weight=weight))
    assert kept.tolist() == [[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(every, TokenMean()(CARD))
    torch.testing.assert_close(TokenMean(denominator="kept")(CARD), TokenMean()(CARD))
    assert not TokenMean(denominator="kept")(CARD.replace(weight=torch.zeros(2, 4))).any()


def test_runs_that_do_not_divide_the_batch():
    with pytest.raises(UsageError, match=r"LocalTokenMean\(rows=3\) does not divide a batch of 2 rows"):
        LocalTokenMean(3)(CARD)


def test_half_precision_log_probs_have_exact_denominators():
    batch = Batch(logp=torch.zeros(1, 1000, dtype=torch.bfloat16))
    assert TokenMean()(batch).dtype == torch.float32
    assert batch.length.tolist() == [1000.0]
