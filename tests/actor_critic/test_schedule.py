"""Learning rates that fall over a run: by planned actions where it plays, by updates on a log, as it is resumed."""

import shutil

import numpy as np
import pytest
import torch

from upslope import Trainer, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.flat import Flat
from upslope.actor_critic.temperature import Automatic

from .line import Line

SMALL = {"policy.hidden": [8], "critic.hidden": [8], "batch_size": 16, "rollout.steps": 20}
RUN = {"task": Line, "eval": {"episodes": 0}, "checkpoint_every": 1, "keep_checkpoints": 9, "threads": 1, "sinks": []}
FALLS = {"update.actor_schedule": "linear", "update.critic_schedule": "linear"}


@pytest.fixture
def rates(monkeypatch):
    """The rate of every Adam step of the critics from now on, over the one that is set."""
    found, step = [], Flat.step

    def spied(self, loss, *, lr=None, **options):
        if hasattr(self.network, "members"):
            found.append(lr / self.lr)
        return step(self, loss, lr=lr, **options)

    monkeypatch.setattr(Flat, "step", spied)
    return found


def test_linear_over_the_planned_actions(rates):
    with Trainer("sac", steps=3, self_checks=False, warmup=30, **RUN, **SMALL, **FALLS) as trainer:
        trainer.train()
    np.testing.assert_allclose(rates, 1 - np.arange(30, 60) / 60, atol=1e-12)  # uniform actions count, too


def test_several_updates_per_action_fall_one_by_one(rates):
    settings = {"per_step": 2, "actor_every": 2, "environments": 3, "update.critic_schedule": "cosine"}
    with Trainer("sac", steps=2, self_checks=False, warmup=0, **RUN, **SMALL, **settings) as trainer:
        trainer.train()
    np.testing.assert_allclose(rates, (1 + np.cos(np.pi * np.arange(80) / 80)) / 2, atol=1e-12)


def test_constant_by_default(rates):
    with Trainer("sac", steps=2, self_checks=False, warmup=10, **RUN, **SMALL) as trainer:
        trainer.train()
    assert set(rates) == {1.0}


def test_a_log_counts_updates_and_a_resumed_run_goes_on_where_it_was(tmp_path, rates):
    settings = {**SMALL, **FALLS, "value.hidden": [8]}
    with Trainer("sac", steps=2, out=tmp_path / "log", warmup=5, **RUN, **SMALL) as trainer:
        trainer.train()
    rates.clear()

    def run(out, **options):
        with Trainer("iql", steps=3, out=out, data=str(tmp_path / "log"), **RUN, **settings, **options) as trainer:
            return trainer.train().parts.learner

    whole = run(tmp_path / "whole", self_checks=False, offline_steps=2)  # V and the critics: the rate twice
    np.testing.assert_allclose(rates, (1 - np.arange(60) / 60).repeat(2), atol=1e-12)
    for name in ("step-000002", "step-000003"):
        shutil.rmtree(tmp_path / "whole/checkpoints" / name)
    rates.clear()
    again = run(tmp_path / "whole", self_checks=False, offline_steps=2, resume=True)
    assert rates[0] == pytest.approx(1 - 20 / 60)
    for name, flat in whole.flats.items():
        assert torch.equal(flat.values, again.flats[name].values), name


def test_each_network_has_the_rate_of_its_schedule():
    for which, moves in (("actor_schedule", {"critic", "value", "proposer"}), ("critic_schedule", {"policy"})):
        learner = learner_of(make("a2pr", **{f"update.{which}": "linear"}))
        before = {name: flat.values.clone() for name, flat in learner.flats.items()}
        for index in range(2):
            learner.update(transitions(learner.layout, index), progress=1.0)
        assert {name for name, flat in learner.flats.items() if not torch.equal(flat.values, before[name])} == moves


def test_the_temperature_falls_with_the_actor():
    part = Automatic(lr=0.5)
    half = Automatic(lr=0.25)(part.init(), 3.0, 1)
    assert part(part.init(), 3.0, 1, 0.5) == half
    learner = learner_of(make("sac", actor_schedule="linear"))
    learner.update(transitions(learner.layout), progress=1.0)
    assert learner.networks.alpha == 1.0


def test_describe_says_how_rates_fall():
    assert "actor_lr linear to 0" in make("sac", actor_schedule="linear").update.describe()
    assert "to 0" not in make("sac").update.describe()
