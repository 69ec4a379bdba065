"""Card: preference_distill_hybrid.md, differential-information."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.methods.preference.differential_information import information_entropy
from upslope.testing import batch_of, value_and_gradient

REFERENCE, REWARD = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])


def drawn(policy, ref, counts):
    """Rows that hold every arm `counts` times."""
    arms = torch.arange(3).repeat_interleave(torch.tensor(counts))
    logp, ref_logp = (torch.tensor(x).log()[arms, None] for x in (policy, ref))
    return Batch(logp=logp, ref_logp=ref_logp, reward=torch.zeros(len(arms)), group=torch.zeros(len(arms)).long())


def entropy(q):
    return -(q * np.log(q)).sum()


def test_card_numbers():
    """The optimum for rewards 0, 1, 2 at beta 1, and the entropy 0.832396 of softmax(R), from samples in proportion."""
    best = REFERENCE * np.exp(REWARD)
    best /= best.sum()
    np.testing.assert_allclose(best, [0.179, 0.291944, 0.529056], atol=1e-6)
    q = best / REFERENCE / (best / REFERENCE).sum()
    np.testing.assert_allclose(q, np.exp(REWARD) / np.exp(REWARD).sum())
    assert entropy(q) == pytest.approx(0.832396, abs=5e-7)
    found, _ = information_entropy(drawn(best, REFERENCE, np.round(1000 * best).astype(int)))
    np.testing.assert_allclose(found, 0.832396, atol=1e-3)


@pytest.mark.parametrize("ref", [[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
def test_samples_in_proportion_give_the_entropy(ref):
    policy = np.array([0.5, 0.3, 0.2])
    found, effective = information_entropy(drawn(policy, np.array(ref), [5, 3, 2]))
    q = policy / np.array(ref)
    assert float(found[0]) == pytest.approx(entropy(q / q.sum()))
    weight = np.repeat(1 / np.array(ref), [5, 3, 2])
    assert float(effective[0]) == pytest.approx(weight.sum() ** 2 / (weight**2).sum())


def test_it_is_online_dpo_and_logs_what_it_measures():
    batch = batch_of([[1, 0], [0, 1, 1]], seed=2)
    measured, dpo = make("differential_information"), make("dpo", pairs="reward")
    one, expected = (value_and_gradient(recipe, recipe.prepare(batch)) for recipe in (measured, dpo))
    torch.testing.assert_close(one, expected)
    found, effective = information_entropy(batch)
    _, stats = measured(batch)
    assert float(stats["did/entropy"]) == pytest.approx(float(found.mean()))
    assert float(stats["did/effective"]) == pytest.approx(float(effective.mean()))
    np.testing.assert_allclose(found[:2], found[0])


def test_rows_that_are_left_out_are_in_no_estimate():
    batch = batch_of([[1, 0, 1]], seed=2)
    mask = batch.mask.clone()
    mask[1] = False
    found, effective = information_entropy(batch.replace(mask=mask))
    kept = information_entropy(batch.select(torch.tensor([0, 2])))
    torch.testing.assert_close(found[[0, 2]], kept[0])
    torch.testing.assert_close(effective[[0, 2]], kept[1])
    assert found[1] == effective[1] == 0
