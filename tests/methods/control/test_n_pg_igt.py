"""N-PG-IGT, card npg-igt-harpg: schedules, and whose episodes it learns from. Losses, transport: tests/control/test_momentum.py."""

import numpy as np
import pytest
import torch

from upslope import Trainer, make

SMALL = {"eval": {"episodes": 0}, "threads": 1, "rollout.environments": 2, "rollout.episodes": 2}


def test_schedules_of_the_card():
    found = make("n_pg_igt").optimizer
    for t in (0, 1, 7, 500):
        np.testing.assert_allclose(found.eta_at(t), (2 / (t + 2)) ** 0.8)
        np.testing.assert_allclose(found.lr_at(t), 0.1 * 2 / (t + 2))
    assert found.normalized


def test_who_plays_is_ahead_and_who_is_kept_is_not(tmp_path):
    """The episodes' log-probs are those of the look-ahead parameters, and the policy is put back before it learns."""
    with Trainer("n_pg_igt", task="CartPole-v1", steps=3, **SMALL) as trainer:
        trainer.train()
        updater, policy = trainer.parts.updater, trainer.parts.policy
        kept, ahead = updater.learner.flat.clone(), updater.learner.place()
        assert not torch.equal(kept, ahead)
        found = updater.play(trainer.parts.player, (0, 4))
        assert torch.equal(updater.learner.flat, kept)
        with updater.learner.at(ahead), torch.no_grad():
            logp = policy.distribution(found.played.observation).log_prob(found.played.action)
        torch.testing.assert_close(found.batch.logp, torch.where(found.batch.mask, logp, 0.0))


def test_steps_have_the_schedules_length():
    with Trainer("n_pg_igt", task="CartPole-v1", steps=4, **SMALL) as trainer:
        learner = trainer.parts.updater.learner
        before = learner.flat.clone()
        for t in range(4):
            trainer.parts.train_step(t + 1)
            moved, before = learner.flat - before, learner.flat.clone()
            assert float(moved.norm()) == pytest.approx(0.1 * 2 / (t + 2), rel=1e-4)
