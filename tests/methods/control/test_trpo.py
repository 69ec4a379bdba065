"""NPG and TRPO, card npg-trpo: their losses in value and gradient, and whole runs. The step: tests/control/test_natural.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer, make
from upslope.testing import check_resume, value_and_gradient

SMALL = {"eval": {"episodes": 0}, "threads": 1, "rollout.environments": 2, "rollout.steps": 32, "critic_epochs": 3}


def test_losses_in_value_and_gradient():
    """Both have the gradient of A pi / pi_old at the old policy; trpo's value is the ratio's, npg's that of A logp."""
    generator = torch.Generator().manual_seed(0)
    logp, advantage, shift = (torch.randn(6, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    for name, old, value, slope in (
        ("trpo", logp - shift, -advantage * shift.exp(), -advantage * shift.exp() / 6),
        ("npg", logp - shift, -advantage * logp, -advantage / 6),
        ("trpo", logp, -advantage, -advantage / 6),
    ):
        recipe = make(name)
        batch = recipe.denominators(Batch(logp=logp, old_logp=old, advantage=advantage))
        loss, gradient = value_and_gradient(recipe, batch)
        np.testing.assert_allclose(float(loss), float(value.mean()))
        np.testing.assert_allclose(gradient, slope)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.parts.policy.state_dict().items()}


@pytest.mark.parametrize(("method", "task"), [("trpo", "CartPole-v1"), ("npg", "Pendulum-v1")])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, task, tmp_path):
    check_resume(method, tmp_path, killed=3, task=task, steps=4, checkpoint_every=2, **SMALL)


def test_the_critic_has_epochs_of_its_own():
    with Trainer("trpo", task="CartPole-v1", steps=2, critic_minibatches=2, **SMALL) as trainer:
        trainer.train()
    assert trainer.parts.updater.critic_learner.taken == 2 * 3 * 2
    row = trainer.rows[-1]
    assert 0 <= row["step/kl"] <= 0.01
    assert "lr" not in row


@pytest.mark.learning
def test_trpo_balances_the_pole_within_its_trust_region():
    """The last 100 training episodes within 240 thousand actions; no step's KL is above the bound."""
    with Trainer("trpo", task="CartPole-v1", steps=60, threads=1, eval={"episodes": 0}) as trainer:
        trainer.train()
    assert max(row["return"] for row in trainer.rows if "return" in row) >= 475
    assert all(row["step/kl"] <= 0.01 for row in trainer.rows if "step/kl" in row)
    assert np.mean([row["step/taken"] for row in trainer.rows if "step/taken" in row]) > 0.9
