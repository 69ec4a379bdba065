"""Settings that would end in nonsense or a crash are refused by name when a recipe is made."""

import numpy as np
import pytest

from upslope import Trainer, UsageError, make

REFUSED = [
    ("sac", "targets.every", 0),
    ("sac", "targets.rate", 1.5),
    ("sac", "critic.members", 0),
    ("sac", "critic.hidden", ()),
    ("sac", "critic.hidden", (64, 0)),
    ("sac", "regression.factor", 0.0),
    ("sac", "temperature.lr", -1.0),
    ("sac", "temperature.target", float("nan")),
    ("sac", "temperature.initial", float("inf")),
    ("sac@constant", "temperature.alpha", -0.1),
    ("sac", "update.actor_lr", float("inf")),
    ("iql", "offline_steps", -1),
    ("iql", "reward.scale", float("nan")),
    ("iql", "weight.beta", -1.0),
    ("td3_bc", "behavior.alpha", -1.0),
    ("rebrac", "behavior.coefficient", float("nan")),
    ("prdc", "behavior.alpha", -1.0),
    ("prdc", "behavior.beta", float("inf")),
    ("a2pr", "behavior.mask", -1.0),
    ("a2pr", "behavior.alpha", -1.0),
    ("a2pr", "proposer.weight", -1.0),
    ("cql", "penalty.samples", 0),
    ("cql", "penalty.coefficient", -1.0),
    ("cal_ql", "penalty.temperature", 0.0),
    ("cal_ql", "penalty.lowest", float("inf")),
    ("edac", "penalty.eta", -1.0),
    ("pmoe", "actor.router", -1.0),
]


@pytest.mark.parametrize(("method", "setting", "value"), REFUSED, ids=lambda value: str(value))
def test_refused(method, setting, value):
    with pytest.raises(UsageError, match=setting.rpartition(".")[2]):
        make(method, **{setting: value})


def test_no_more_critics_are_asked_than_there_are():
    with pytest.raises(UsageError, match=r"'redq' asks 3 of 2 critics \(ensemble.of, critic.members\)"):
        make("redq", **{"ensemble.of": 3, "critic.members": 2})
    assert make("redq", **{"ensemble.of": 2, "critic.members": 2}).ensemble.of == 2


def test_limits_are_allowed():
    make("td3_bc", alpha=0.0)
    make("edac", eta=0.0)
    make("cql", coefficient=0.0)
    make("iql", beta=0.0, largest=float("inf"), offline_steps=0)
    make("prdc", **{"behavior.beta": 0.0})
    make("sac", rate=1.0, every=1)


def test_the_stage_reward_can_be_left_out_by_name(tmp_path):
    rows = np.zeros((8, 1), np.float32)
    arrays = {"observations": rows, "next_observations": rows, "actions": rows, "rewards": rows, "terminals": rows}
    np.savez(tmp_path / "log.npz", **arrays)
    settings = {"data": str(tmp_path / "log.npz"), "steps": 1, "sinks": [], "threads": 1}
    with Trainer("iql", reward=None, **settings) as trainer:
        assert trainer.parts.recipe.reward is None
    with Trainer("iql", **settings) as trainer:
        assert trainer.parts.recipe.reward == make("iql").reward
