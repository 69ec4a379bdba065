"""A2C: the advantage is the return of the steps played plus the value beyond, less the value; its loss and its parent."""

import numpy as np
import torch

from upslope import Batch, make
from upslope.testing import value_and_gradient


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_advantage_is_the_n_step_return_less_the_value():
    batch = Batch(
        logp=f64([[-1.0, -2.0, -3.0]]),
        token_reward=f64([[1.0, 2.0, 4.0]]),
        old_value=f64([[0.5, 0.25, 2.0]]),
        next_value=f64([[0.25, 2.0, 8.0]]),
        ended=torch.tensor([[False, False, False]]),
        reward=f64([7.0]),
        entropy=f64([[0.1, 0.2, 0.3]]),
    )
    recipe = make("a2c", gamma=0.5)
    prepared = recipe.prepare(batch)
    returns = [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8)), 2 + 0.5 * (4 + 0.5 * 8), 4 + 0.5 * 8]
    np.testing.assert_allclose(prepared.returns[0], returns)
    np.testing.assert_allclose(prepared.advantage[0], np.array(returns) - [0.5, 0.25, 2.0])
    loss, gradient = value_and_gradient(recipe, prepared)
    np.testing.assert_allclose(gradient, -prepared.advantage / 3)
    by_hand = (-prepared.advantage[0].numpy() * [-1.0, -2.0, -3.0] - 0.01 * np.array([0.1, 0.2, 0.3])).mean()
    np.testing.assert_allclose(float(loss), by_hand)


def test_an_episode_that_ended_passes_nothing_back():
    batch = Batch(
        logp=f64([[-1.0, -2.0]]),
        token_reward=f64([[1.0, 2.0]]),
        old_value=f64([[0.5, 0.25]]),
        next_value=f64([[0.0, 3.0]]),
        ended=torch.tensor([[True, False]]),
        reward=f64([3.0]),
        entropy=f64([[0.0, 0.0]]),
    )
    found = make("a2c").prepare(batch).returns[0]
    np.testing.assert_allclose(found, [1.0, 2 + 0.99 * 3])


def test_without_the_critics_terms_it_is_reinforce():
    """Whole episodes, V = 0, no entropy: the sum of both gradients over rows is the same up to the aggregate's factor."""
    generator = torch.Generator().manual_seed(0)
    logp, reward = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    zero = torch.zeros_like(logp)
    ended = torch.tensor([[False, False, False, True]] * 3)
    batch = Batch(logp=logp, token_reward=reward, reward=reward.sum(1), old_value=zero, next_value=zero, ended=ended)
    one, other = make("a2c", regularizer=None), make("reinforce", gamma=0.99)
    found = value_and_gradient(one, one.prepare(batch))[1]
    expected = value_and_gradient(other, other.prepare(batch))[1]
    torch.testing.assert_close(found, expected / 4)
