"""Card: preference_distill_hybrid.md, oorl-gepo."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.methods.hybrid.oorl_gepo import GroupEquivalence
from upslope.parts.aggregate import GroupSum
from upslope.testing import batch_of, finite_differences, value_and_gradient


def gepo(**settings):
    """The term alone, with weight 1."""
    part = GroupEquivalence(coefficient=1.0, **settings)
    return make("oorl_gepo").replace(reward=None, advantage=None, surrogate=part, aggregate=GroupSum(), terms=())


def test_card_numbers():
    """s = 0.5, 1.1 of the correct, -0.4, -0.2, 0 of the wrong: 0.644397 and a variance of 0.09."""
    s = torch.tensor([0.5, 1.1, -0.4, -0.2, 0.0]).double().unsqueeze(1)
    batch = Batch(logp=s - 3, ref_logp=torch.full_like(s, -3.0), reward=[1.0, 1, 0, 0, 0], group=[0] * 5)
    assert float(gepo(spread=0.0)(batch)[0]) == pytest.approx(0.644397, abs=5e-7)
    loss, stats = gepo()(batch)
    assert float(loss) == pytest.approx(0.644397 + 0.09, abs=5e-7)
    assert float(stats["gepo/spread"]) == pytest.approx(0.3)


def test_value_and_gradient_against_numpy():
    batch = batch_of([[1, 0, 1, 0], [0, 1, 1], [1, 1], [0, 0]], seed=2)
    ref, mask, reward, group = (getattr(batch, name).numpy() for name in ("ref_logp", "mask", "reward", "group"))

    def loss_at(logp):
        s, total = ((logp - ref) * mask).sum(1), 0.0
        for g in range(2):
            right, wrong = (s[(group == g) & (reward == r)] for r in (1, 0))
            total += np.logaddexp(0, -0.3 * (right.mean() - wrong.mean())) + 2 * right.var()
        return total / 4

    recipe = gepo(beta=0.3, spread=2.0)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


def test_one_correct_and_one_wrong_completion_are_dpo():
    pairs = batch_of([[1, 0], [0, 1]], seed=3)
    one, expected = (value_and_gradient(recipe, recipe.prepare(pairs)) for recipe in (gepo(), make("dpo")))
    torch.testing.assert_close(one, expected)


def test_it_is_reinforce_pp_and_the_term():
    batch = batch_of([[1, 0, 1, 0], [0, 1, 1]], seed=4)
    whole, main = (value_and_gradient(r, r.prepare(batch)) for r in (make("oorl_gepo"), make("reinforce_pp")))
    term = value_and_gradient(gepo(), gepo().prepare(batch))
    for both, one, other in zip(whole, main, term, strict=True):
        torch.testing.assert_close(both, one + 0.01 * other)
    without = make("oorl_gepo", coefficient=0.0)
    torch.testing.assert_close(value_and_gradient(without, without.prepare(batch)), main)


def test_descent_makes_equivalent_completions_equal_where_pairs_alone_do_not():
    """Two equivalent answers of which the policy has raised one: the spread's gradient lowers it and raises the other."""
    s = torch.tensor([2.0, 0.0, -3.0]).double().unsqueeze(1)
    batch = Batch(logp=s - 5, ref_logp=torch.full_like(s, -5.0), reward=[1.0, 1, 0], group=[0] * 3)
    pulls = {
        spread: value_and_gradient(gepo(spread=spread), gepo(spread=spread).prepare(batch))[1] for spread in (0, 1)
    }
    assert pulls[0][0] == pulls[0][1] < 0
    assert pulls[1][0] > 0 > pulls[1][1]


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"beta=0"):
        GroupEquivalence(beta=0.0)
