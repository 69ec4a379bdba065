"""Prompts with a part hidden, and completions after another's prompt."""

import pytest
import torch

from upslope import UsageError
from upslope.parts.altered import blanked, mismatched
from upslope.rollout import Rollouts

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


def rollouts_of(prompts, of_row, length):
    rows, width = len(of_row), max(length)
    mask = torch.arange(width) < torch.tensor(length)[:, None]
    zeros = torch.zeros(rows, width)
    ids = torch.arange(rows * width).view(rows, width) * mask
    stop, text = ["stop"] * rows, [""] * rows
    return Rollouts(prompts, torch.tensor(of_row), ids, mask, torch.tensor(length), zeros, zeros, stop, text)


def prompts_of(rollouts):
    return [rollouts.prompts[index] for index in rollouts.prompt.tolist()]


def test_every_completion_after_the_next_prompt():
    rollouts = rollouts_of([[1], [2, 3], [4, 5, 6]], [0, 1, 2, 2], [1, 2, 2, 1])
    other = mismatched(rollouts, 16)
    assert prompts_of(other) == [[2, 3], [4, 5, 6], [1], [1]]
    assert torch.equal(other.tokens, rollouts.tokens)


def test_equal_prompts_are_passed_over_and_absent_ones_do_not_count():
    rollouts = rollouts_of([[9], [1], [1], [2]], [1, 2, 3], [1, 1, 1])
    assert prompts_of(mismatched(rollouts, 16)) == [[2], [2], [1]]


def test_the_end_of_a_prompt_that_is_too_long():
    rollouts = rollouts_of([[1, 2, 3, 4], [5]], [0, 1], [2, 6])
    assert prompts_of(mismatched(rollouts, 8)) == [[5], [3, 4]]


def test_one_prompt_has_no_other():
    with pytest.raises(UsageError, match="Set prompts_per_step"):
        mismatched(rollouts_of([[1], [1]], [0, 1], [1, 1]), 8)
