"""Card: rlvr_core.md, reinforce. Row order, padding, micro-batches, failed rewards: tests/methods/test_contract.py."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch, UsageError, make
from upslope.testing import batch_of, value_and_gradient

REWARDS = [[1.0, 0.0, 3.0], [-2.0, 0.5]]
LENGTHS = [2, 4, 1, 3, 3]
FLAT = np.array([1.0, 0.0, 3.0, -2.0, 0.5])
BANDIT, WORTH = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64), np.array([1.0, 0.0, -2.0])


def advantage(**settings):
    return make("reinforce", **settings).prepare(batch_of(REWARDS, lengths=LENGTHS)).advantage.numpy()


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", FLAT),
        ("batch_mean", FLAT - FLAT.mean()),
        ("leave_one_out", FLAT - (FLAT.sum() - FLAT) / 4),
        ("moving_average", FLAT),
    ],
)
def test_value_and_gradient(baseline, expected):
    recipe = make("reinforce", baseline=baseline)
    batch = recipe.prepare(batch_of(REWARDS, lengths=LENGTHS))
    loss, gradient = value_and_gradient(recipe, batch)
    assert float(loss) == pytest.approx(-np.mean(expected * batch.logp.sum(1).numpy()))
    np.testing.assert_allclose(gradient, -expected[:, None] * batch.mask.numpy() / 5)


def test_discounted_token_rewards():
    reward = np.array([[1.0, 0, 2, 0], [0, 0, 0, 3]])
    batch = Batch(logp=torch.zeros(2, 4), token_reward=torch.tensor(reward))
    expected = [[sum(0.5 ** (s - t) * row[s] for s in range(t, 4)) for t in range(4)] for row in reward]
    found = make("reinforce", gamma=0.5).prepare(batch).advantage
    np.testing.assert_allclose(found, expected)
    found = make("reinforce", gamma=0.5, baseline="batch_mean").prepare(batch).advantage
    np.testing.assert_allclose(found, expected - np.mean([expected[0][0], expected[1][0]]))


@given(st.floats(-5, 5), st.sampled_from(["batch_mean", "leave_one_out"]))
def test_a_constant_in_the_reward_changes_nothing_under_a_baseline(constant, baseline):
    recipe, batch = make("reinforce", baseline=baseline), batch_of(REWARDS)
    moved = recipe.prepare(batch.replace(reward=batch.reward + constant)).advantage
    torch.testing.assert_close(moved, recipe.prepare(batch).advantage)


def test_moving_average_is_that_of_the_steps_before():
    recipe, batch = make("reinforce", baseline="moving_average", decay=0.5), batch_of(REWARDS, lengths=LENGTHS)
    state, past = recipe.init(), []
    for mean in (1.0, 3.0, -1.0):
        rewards = torch.tensor(FLAT - FLAT.mean() + mean)
        prepared, state = recipe.prepare(batch.replace(reward=rewards), state)
        weights = [0.5**age for age in range(len(past), 0, -1)]
        baseline = np.average(past, weights=weights) if past else 0.0
        np.testing.assert_allclose(prepared.advantage[:, 0], rewards - baseline)
        past.append(mean)
    assert set(state) == {"advantage"}


def test_only_the_moving_average_is_stateful():
    assert make("reinforce").init() == {}
    assert make("reinforce", baseline="moving_average").init() == {"advantage": {"total": 0.0, "weight": 0.0}}


def test_a_decay_of_one_never_learns_and_is_refused():
    with pytest.raises(UsageError, match=r"ReturnBaseline\(decay=1\)"):
        make("reinforce", decay=1.0)


def bandit_gradient(recipe, size):
    """Expected gradient of the recipe over all batches of `size` arms, one token each, with respect to the logits."""
    total = torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=size):
        logits = BANDIT.clone().requires_grad_()
        logp = logits.log_softmax(0)[list(arms)]
        loss, _ = recipe(Batch(logp=logp.unsqueeze(1), reward=WORTH[list(arms)]))
        total += logp.detach().sum().exp() * torch.autograd.grad(loss, logits)[0]
    return total.numpy()


@pytest.mark.parametrize(
    ("baseline", "size", "factor"),
    [("none", 1, 1), ("none", 2, 1), ("leave_one_out", 3, 1), ("batch_mean", 3, 2 / 3), ("moving_average", 2, 1)],
)
def test_unbiased_but_for_the_batch_mean(baseline, size, factor):
    probability = BANDIT.softmax(0).numpy()
    true = probability * (WORTH - probability @ WORTH)
    np.testing.assert_allclose(bandit_gradient(make("reinforce", baseline=baseline), size), -factor * true, atol=1e-12)


def test_a_lone_row_has_nothing_to_leave_out():
    assert not make("reinforce", baseline="leave_one_out").prepare(batch_of([[3.0]])).advantage.any()
