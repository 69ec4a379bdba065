"""Rows are split into waves that fit a budget, each row exactly once."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from upslope.engines.waves import MOST_ROWS, Budget, waves

from .models import build


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), max_size=8),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(100, 2000)),
    st.booleans(),
    st.booleans(),
)
def test_every_row_once_within_the_budget(groups, rows, memory, shared, equal_lengths):
    lengths, counts = [length for length, _ in groups], [count for _, count in groups]
    prompt = [index for index, count in enumerate(counts) for _ in range(count)]
    budget = Budget(rows, memory, bytes_per_token=3, bytes_per_row=7)
    found = list(waves(lengths, counts, 10, budget, shared=shared, equal_lengths=equal_lengths))
    assert sorted(row for wave in found for row in wave) == list(range(sum(counts)))
    for wave in found:
        prompts = {prompt[row] for row in wave}
        assert 0 < len(wave) <= rows
        assert not equal_lengths or len({lengths[p] for p in prompts}) == 1
        stored = [lengths[p] for p in prompts] if shared else [lengths[prompt[row]] for row in wave]
        cost = 3 * (sum(stored) + 10 * len(wave)) + 7 * len(wave)
        assert memory is None or cost <= memory or len(prompts) == 1


def test_rows_of_a_prompt_stay_together():
    found = list(waves([4, 4, 4], [3, 3, 3], 10, Budget(7, None, 1, 1), shared=True, equal_lengths=False))
    assert found == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]


def test_budget_from_a_model():
    config = build("Qwen3").config
    budget = Budget.of(config, torch.float32, torch.device("cpu"), None)
    assert budget.bytes_per_token == 2 * 2 * 2 * 8 * 4, "keys and values, layers, heads, head size, bytes"
    assert (budget.rows, budget.bytes) == (MOST_ROWS, 2**30)
    assert Budget.of(config, torch.bfloat16, torch.device("cpu"), 5).rows == 5


@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Mamba"])
def test_budget_of_other_configurations(architecture):
    config = getattr(transformers, f"{architecture}Config")()
    found = Budget.of(config, torch.float32, torch.device("cpu"), None)
    assert found.bytes_per_token == 2 * config.num_hidden_layers * config.hidden_size * 4
