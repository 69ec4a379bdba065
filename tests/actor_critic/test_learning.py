"""Do they learn? Minutes; run by `make test-learning`."""

import gymnasium
import numpy as np
import pytest
import torch

from upslope import Trainer, make

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


def mixture(policy, episodes=200, every=20):
    """A log of Pendulum: one episode in `every` by the policy, the others by chance; the columns of a .npz."""
    environment, chance = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
    found = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")}
    for episode in range(episodes):
        generator = torch.Generator().manual_seed(episode)
        observation, ended = environment.reset(seed=1000 + episode)[0], False
        while not ended:
            if episode % every == 7:
                action = 2 * policy.act(observation[None], generator=generator)[0][0]
            else:
                action = chance.uniform(-2, 2, 1).astype(np.float32)
            following, reward, terminated, ended, _ = environment.step(action)
            for name, value in zip(found, (observation, action, reward, terminated, ended, following), strict=True):
                found[name].append(value)
            observation = following
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


@pytest.mark.learning
def test_a_few_good_episodes_among_random_ones(tmp_path):
    """5 % of a skilled policy, 95 % random: cloning and td3_bc stay near random; drawing the good ones more often does not."""
    shared = {"threads": 1, "sinks": [], "eval": {"every": 0}, "task": "Pendulum-v1"}
    with Trainer("sac", steps=10, **shared, **SMALL) as trainer:
        trainer.train()
        assert trainer.rows[-1]["eval/return"] > -250
        np.savez(tmp_path / "log.npz", **mixture(trainer.parts.policy))
    found = {}
    for method in ("bc", "percent_bc", "td3_bc", "harness_tw", "prdc"):
        recipe = make(method)
        settings = {name: value for name, value in SMALL.items() if recipe.critic or not name.startswith("critic.")}
        settings |= {"rollout.warmup": 0}
        with Trainer(method, data=str(tmp_path / "log.npz"), steps=6, **shared, **settings) as trainer:
            found[method] = trainer.train().rows[-1]["eval/return"]
    assert found["percent_bc"] > found["bc"] + 200
    assert found["harness_tw"] > found["td3_bc"] + 500
    assert found["prdc"] > found["td3_bc"] + 300
