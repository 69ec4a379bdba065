"""HARPG, card npg-igt-harpg: its schedules and steps. Hessian products and losses: tests/control/test_momentum.py."""

import numpy as np
import torch

from upslope import Trainer, make

SMALL = {"eval": {"episodes": 0}, "threads": 1, "rollout.environments": 2, "rollout.episodes": 2}


def test_only_the_momentum_is_not_n_pg_igts():
    assert make("harpg").replace(optimizer=make("n_pg_igt").optimizer) == make("n_pg_igt")


def test_schedules_of_the_card():
    found = make("harpg").optimizer
    for t in (0, 1, 7, 500):
        np.testing.assert_allclose(found.eta_at(t), 2 / (t + 2))
        np.testing.assert_allclose(found.lr_at(t), 0.001 * (2 / (t + 2)) ** 0.5)
    assert not found.normalized


def test_steps_are_along_the_momentum_as_long_as_it():
    with Trainer("harpg", task="CartPole-v1", steps=4, **SMALL) as trainer:
        learner = trainer.parts.updater.learner
        before = learner.flat.clone()
        for t in range(4):
            trainer.parts.train_step(t + 1)
            moved, before = learner.flat - before, learner.flat.clone()
            torch.testing.assert_close(moved, 0.001 * (2 / (t + 2)) ** 0.5 * learner.d, rtol=1e-3, atol=1e-6)
