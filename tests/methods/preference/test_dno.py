"""Card: preference_distill_hybrid.md, dno."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.batch import SOURCES
from upslope.methods.preference.dno import WinRate
from upslope.parts.preference import PreferenceLoss
from upslope.testing import batch_of, finite_differences, value_and_gradient

TEACHER = SOURCES.index("teacher")


def test_with_all_pairs_it_is_dpo_whose_reference_is_the_last_iterate(card):
    last = card.ref_logp.clone()
    sampled = card.replace(old_logp=last, ref_logp=None, source=[0, 0])
    one, expected = make("dno")(sampled)[0], make("dpo")(card)[0]
    torch.testing.assert_close(one, expected)
    assert float(one) == pytest.approx(0.620957, abs=5e-7)
    assert make("dno").needs == {"reward", "group", "old_logp", "source"}, "no frozen model is opened"


def test_pairs_are_far_apart_and_farther_for_a_teachers_completion():
    """Rewards 1, 0.9, 0.7 of the policy and 0.9 of the teacher: of 1 against 0.9 the gap is too small, 0.7 is not good."""
    batch = batch_of([[1.0, 0.9, 0.7, 0.9, 0.5]], seed=3).replace(source=[0, 0, 0, TEACHER, 0])
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    old, mask = batch.old_logp.numpy(), batch.mask.numpy()
    pairs = [(0, 2), (0, 4), (1, 2), (1, 4), (3, 4)]

    def loss_at(logp):
        s = 0.1 * ((logp - old) * mask).sum(1)
        return np.mean([np.logaddexp(0, s[loser] - s[winner]) for winner, loser in pairs])

    recipe = make("dno")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-9)


def test_before_it_moves_every_pair_costs_log_two():
    loss, stats = make("dno")(batch_of([[1, 0], [0.2, 1]]))
    assert float(loss) == pytest.approx(np.log(2))
    assert float(stats["pairs/margin"]) == 0


def test_win_rates():
    batch = batch_of([[0.9, 0.1, 0.1, 0.5], [3.0, 2.0], [1.0]])
    np.testing.assert_allclose(WinRate()(batch), [1, 1 / 6, 1 / 6, 2 / 3, 1, 0, 0], atol=1e-7)


def test_card_numbers_of_soft_labels(card):
    """Win rates 0.7 and 0.4: p = 0.574443; eta 1/2 and a margin z of 0.65 cost 0.696668."""
    recipe = make("dno@conceptual", reward=None, beta=0.5)
    last = card.logp - torch.tensor([[1.3 / 4], [0.0]]).double() * card.mask
    rated = card.replace(reward=torch.tensor([0.7, 0.4]).double(), old_logp=last)
    assert float(recipe(rated)[0]) == pytest.approx(0.696668, abs=5e-7)


def test_a_pair_with_soft_labels_ends_at_the_difference_of_win_rates(card):
    recipe = make("dno@conceptual", beta=0.5)
    last = card.logp - torch.tensor([[1.0 / 0.5 / 4], [0.0]]).double() * card.mask  # win rates 1 and 0: z = 1
    prepared = recipe.prepare(card.replace(old_logp=last))
    np.testing.assert_allclose(value_and_gradient(recipe, prepared)[1], 0, atol=1e-8)


def test_prompts_without_a_pair_add_nothing():
    recipe = make("dno")
    batch = batch_of([[0.5, 0.5], [0.5, 0.0]])
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == 0
    assert not gradient.any()
    assert make("dno", surrogate=PreferenceLoss(pairs="reward"))(batch)[0] > 0
