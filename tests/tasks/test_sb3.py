"""Ours as a VecEnv of Stable-Baselines3's, theirs as one of ours, and our policies where they take theirs."""

import sys

import gymnasium
import numpy as np
import pytest

import upslope
from upslope import Trainer, UsageError
from upslope.tasks.opening import open_environments

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

QUICK = {"eval": {"episodes": 0}, "rollout.steps": 32, "update.minibatches": 1, "update.epochs": 1}


def test_vec_env_is_what_is_played_inside():
    inside = open_environments("CartPole-v1", 2, 5, settings={"max_episode_steps": 6})
    vector = upslope.as_sb3("CartPole-v1", count=2, seed=5, settings={"max_episode_steps": 6})
    np.testing.assert_array_equal(inside.reset(), vector.reset())
    cut = 0
    for number in range(30):
        action = np.array([number % 2, number // 3 % 2])
        step = inside.step(action)
        seen, reward, done, infos = vector.step(action)
        np.testing.assert_array_equal(seen, step.observation)
        np.testing.assert_array_equal(reward, step.reward)
        np.testing.assert_array_equal(done, step.terminated | step.truncated)
        assert [info["TimeLimit.truncated"] for info in infos] == step.truncated.tolist()
        for episode in step.episodes:
            info = infos[episode.copy]
            np.testing.assert_array_equal(info["terminal_observation"], step.next_observation[episode.copy])
            assert (info["episode"]["r"], info["episode"]["l"]) == (episode.total, episode.length)
        cut += int(step.truncated.sum())
    assert cut > 0
    vector.close()


def test_a_seed_given_their_way_starts_the_same_episodes():
    vector = upslope.as_sb3("CartPole-v1", count=2)
    vector.seed(3)
    first = vector.reset()
    other = vector.reset()
    vector.seed(3)
    np.testing.assert_array_equal(vector.reset(), first)
    assert (first != other).any()
    assert vector.env_is_wrapped(Monitor) == [True, True]
    assert vector.get_attr("limit") == [500, 500]


@pytest.mark.parametrize(
    ("algorithm", "what"), [("PPO", "CartPole-v1"), ("PPO", "Pendulum-v1"), ("SAC", "Pendulum-v1")]
)
def test_their_algorithms_train_on_it(algorithm, what):
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 1} if algorithm == "PPO" else {"learning_starts": 16}
    vector = upslope.as_sb3(what, count=2, convention="scale", settings={"max_episode_steps": 20})
    model = getattr(sb3, algorithm)("MlpPolicy", vector, device="cpu", policy_kwargs={"net_arch": [8]}, **settings)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(128)
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))
    assert len(model.ep_info_buffer) >= 4


def test_their_vec_env_is_played_in():
    """Its time limits are no ends, and what an action led to is the episode's last observation."""
    vector = DummyVecEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=7)] * 3)
    environments = open_environments(vector, 3, 0)
    environments.reset()
    truncated = 0
    for number in range(40):
        step = environments.step(np.full(3, number % 2))
        assert not (step.terminated & step.truncated).any()
        if step.episodes:
            assert (step.observation != step.next_observation).any()
            assert all(episode.length <= 7 for episode in step.episodes)
        truncated += int(step.truncated.sum())
    assert truncated > 0


def test_our_trainer_takes_their_vec_env():
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 2))
    with Trainer("ppo@continuous", task=vector, steps=2, **QUICK) as trainer:
        trainer.train()
        assert trainer.rows[-1]["env_steps"] == 128


def test_their_evaluation_takes_our_policy():
    """`predict` is theirs: (action, state) of a batch, with state, episode_start and deterministic."""
    with Trainer("ppo", task="CartPole-v1", steps=1, **QUICK) as trainer:
        trainer.train()
        policy = trainer.parts.policy
    vector = DummyVecEnv([lambda: Monitor(gymnasium.make("CartPole-v1"))] * 2)
    returns, lengths = evaluate_policy(policy, vector, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 4
    assert returns == lengths  # CartPole pays 1 a step


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UsageError, match="pip install stable-baselines3"):
        upslope.as_sb3("CartPole-v1")
