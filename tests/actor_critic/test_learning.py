"""Do they learn? Minutes; run by `make test-learning`."""

import pytest

from upslope import Trainer

SMALL = {
    "policy.hidden": [64, 64],
    "critic.hidden": [64, 64],
    "batch_size": 128,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "rollout.warmup": 500,
}


@pytest.mark.learning
@pytest.mark.parametrize("method", ["sac", "td3"])
def test_pendulum_is_swung_up(method):
    """A random policy has -1200, and -150 is about the best that there is."""
    with Trainer(method, task="Pendulum-v1", steps=10, eval={"every": 0}, threads=1, sinks=[], **SMALL) as trainer:
        rows = trainer.train().rows
    assert rows[0]["eval/return"] < -900
    assert rows[-1]["eval/return"] > -250


@pytest.mark.learning
def test_a_log_of_mixed_quality_is_improved_upon(tmp_path):
    """What SAC stored while it learned: cloning all of it is worse than learning from it."""
    played = tmp_path / "played"
    with Trainer("sac", task="Pendulum-v1", steps=8, out=played, threads=1, sinks=[], **SMALL) as trainer:
        trainer.train()
    found = {}
    for method in ("bc", "td3_bc"):
        settings = {name: value for name, value in SMALL.items() if method != "bc" or not name.startswith("critic.")}
        settings |= {"rollout.warmup": 0, "seed": 1, "eval": {"every": 0}}
        with Trainer(
            method, data=str(played), task="Pendulum-v1", steps=10, threads=1, sinks=[], **settings
        ) as trainer:
            found[method] = trainer.train().rows[-1]["eval/return"]
    assert found["td3_bc"] > found["bc"] + 50
