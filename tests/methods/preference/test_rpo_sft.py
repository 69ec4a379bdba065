"""Card: preference_distill_hybrid.md, rpo-sft."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def test_card_numbers(card):
    assert float(make("dpo")(card)[0]) == pytest.approx(0.620957, abs=5e-7)
    assert float(make("rpo_sft", beta=0.1, coefficient=0.005 * 0.1)(card)[0]) == pytest.approx(0.622957, abs=5e-7)
    assert float(make("rpo_sft@average", beta=0.1)(card)[0]) == pytest.approx(0.820957, abs=5e-7)


def test_defaults():
    assert (make("rpo_sft").surrogate.beta, make("rpo_sft").terms[0].surrogate.coefficient) == (0.01, 5e-5)
    assert (make("rpo_sft@average").surrogate.beta, make("rpo_sft@average").terms[0].surrogate.coefficient) == (
        0.5,
        0.2,
    )


@pytest.mark.parametrize("name", ["rpo_sft", "rpo_sft@average", "rpo_sft@trl"])
def test_value_and_gradient_against_numpy(name):
    batch = batch_of([[1, 0], [0, 1], [0.2, 0.8]], seed=9)
    label, ref, mask = batch.label.numpy(), batch.ref_logp.numpy(), batch.mask.numpy()
    best = np.array([0, 3, 5])

    def loss_at(logp):
        score = 0.5 * ((logp - ref) * mask).sum(1)
        gap, p = score[best] - score[[1, 2, 4]], label[best]
        dpo = np.mean(p * np.log1p(np.exp(-gap)) + (1 - p) * np.log1p(np.exp(gap)))
        nll = -(logp * mask)[best]
        count = mask[best].sum(1)
        per = {
            "rpo_sft": nll.sum(1).mean(),
            "rpo_sft@average": (nll.sum(1) / count).mean(),
            "rpo_sft@trl": nll.sum() / count.sum(),
        }
        return dpo + 0.3 * per[name]

    recipe = make(name, beta=0.5, coefficient=0.3)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


def test_without_the_term_it_is_dpo_and_so_is_rdpo_without_flips(card):
    dpo = make("dpo")(card)[0]
    assert torch.equal(make("rpo_sft", beta=0.1, coefficient=0.0)(card)[0], dpo)
    assert torch.equal(make("rdpo", flip_rate=0.0)(card)[0], dpo)
