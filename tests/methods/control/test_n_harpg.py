"""N-HARPG, card npg-igt-harpg: its schedules and steps. Hessian products and losses: tests/control/test_momentum.py."""

import numpy as np
import torch

from upslope import Trainer, make

SMALL = {"eval": {"episodes": 0}, "threads": 1, "rollout.environments": 2, "rollout.episodes": 2}


def test_only_the_momentum_is_not_n_pg_igts():
    assert make("n_harpg").replace(optimizer=make("n_pg_igt").optimizer) == make("n_pg_igt")


def test_schedules_of_the_card():
    found = make("n_harpg").optimizer
    for t in (0, 1, 7, 500):
        np.testing.assert_allclose(found.eta_at(t), 2 / (t + 2))
        np.testing.assert_allclose(found.lr_at(t), 0.1 * 2 / (t + 2))
    assert found.normalized


def test_steps_are_along_the_momentum_and_have_the_schedules_length():
    with Trainer("n_harpg", task="CartPole-v1", steps=4, **SMALL) as trainer:
        learner = trainer.parts.updater.learner
        before = learner.flat.clone()
        for t in range(4):
            trainer.parts.train_step(t + 1)
            moved, before = learner.flat - before, learner.flat.clone()
            expected = 0.1 * 2 / (t + 2) * learner.d / learner.d.norm()
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


def test_hessian_episodes_are_counted_and_played_from_the_second_step_on():
    with Trainer("n_harpg", task="CartPole-v1", steps=3, **SMALL) as trainer:
        trainer.train()
    assert [row["episodes"] for row in trainer.rows[1:]] == [2, 6, 10]
