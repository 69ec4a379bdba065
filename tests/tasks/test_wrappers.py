"""What is played in here, for others: Gymnasium's checker, Stable-Baselines3's, and the same transitions as inside."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import upslope
import upslope.environments
from upslope import Trainer, UsageError
from upslope.tasks.opening import open_environments
from upslope.tasks.wrappers import open_wrapped

OURS = sorted(name for name in gymnasium.registry if name.startswith("upslope/"))


class Nested(gymnasium.Env):
    """A dict of everything that is read, and actions of several kinds."""

    observation_space = spaces.Dict(
        {
            "b": spaces.Box(-1, 1, (2, 2), np.float32),
            "a": spaces.Discrete(3, start=5),
            "c": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2))),
        }
    )
    action_space = spaces.MultiDiscrete([3, 4], start=[1, 0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 6))
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action))
        self.left -= 1
        return self._seen(), float(action[0]), self.left == 0, False, {}

    def _seen(self):
        drawn = self.np_random
        return {
            "b": drawn.uniform(-1, 1, (2, 2)).astype(np.float32),
            "a": 5 + int(drawn.integers(3)),
            "c": (np.array([drawn.integers(2), drawn.integers(3)]), np.array([1, 0], dtype=np.int8)),
        }


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the checkers' advice, such as bounds that are infinite
        yield


@pytest.mark.parametrize("convention", ["clip", "scale"])
@pytest.mark.parametrize("what", ["CartPole-v1", "Pendulum-v1", Nested, *OURS])
def test_the_checkers_of_gymnasium_and_sb3_accept_it(what, convention):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    env = upslope.as_gymnasium(what, convention=convention)
    check_env(env)
    sb3.check_env(env)
    env.close()


def test_a_seed_gives_the_episode_and_without_one_the_next_begins():
    env = upslope.as_gymnasium("CartPole-v1", settings={"max_episode_steps": 3})

    def starts(seed):
        found = [env.reset(seed=seed)[0]]
        for _ in range(3):
            for _ in range(3):
                _, _, terminated, truncated, info = env.step(0)
            assert (terminated, truncated, info["episode"]) == (False, True, {"r": 3.0, "l": 3})
            found.append(env.reset()[0])
        return found

    first, again, other = starts(4), starts(4), starts(5)
    np.testing.assert_array_equal(first, again)
    assert len({one.tobytes() for one in (*first, *other)}) == 8


def test_a_step_after_the_end_is_refused():
    env = upslope.as_gymnasium("CartPole-v1", settings={"max_episode_steps": 1})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_vector_view_is_what_is_played_inside():
    """Observations, rewards and ends of the same seed, `final_obs` where an episode ended, and scaled actions."""
    inside = open_environments("Pendulum-v1", 3, 7, settings={"max_episode_steps": 5}, convention="scale")
    outside = upslope.as_vector_env("Pendulum-v1", 3, settings={"max_episode_steps": 5}, convention="scale", seed=7)
    assert outside.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert outside.single_action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    np.testing.assert_array_equal(inside.reset(), outside.reset()[0])
    generator = np.random.default_rng(0)
    for _ in range(12):
        action = generator.uniform(-1, 1, (3, 1)).astype(np.float32)
        step = inside.step(action)
        seen, reward, terminated, truncated, info = outside.step(action)
        np.testing.assert_array_equal(seen, step.observation)
        np.testing.assert_array_equal(reward, step.reward)
        assert (terminated.tolist(), truncated.tolist()) == (step.terminated.tolist(), step.truncated.tolist())
        assert ("final_obs" in info) == bool(step.episodes)
        if step.episodes:
            np.testing.assert_array_equal(np.stack(info["final_obs"]), step.next_observation)
            assert info["_final_obs"].all()
            np.testing.assert_allclose(info["episode"]["r"], [episode.total for episode in step.episodes])
    outside.reset(seed=[3, 4, 5])
    assert outside.single_observation_space.shape == (3,)


def cartpole_after(observation, action):
    env = CartPoleEnv()
    env.reset(seed=0)
    env.state = np.array(observation, dtype=np.float64)
    seen, reward, terminated, _, _ = env.step(int(action))
    return seen, reward, terminated


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([*AutoresetMode, None]), st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 3))
def test_transitions_are_the_environment_s_own_in_every_autoreset_mode(mode, seed, limit, count):
    """Played as a vector of our environments in each mode (None: as our own vector environment), every valid step is CartPole's."""
    own = {"settings": {"max_episode_steps": limit}}
    if mode is None:
        vector = upslope.as_vector_env("CartPole-v1", count, seed=seed, **own)
    else:
        makers = [lambda: upslope.as_gymnasium("CartPole-v1", **own)] * count
        vector = SyncVectorEnv(makers, autoreset_mode=mode)
    environments = open_environments(vector, count, seed)
    observation, generator = environments.reset(), np.random.default_rng(seed)
    length, played = np.zeros(count, dtype=int), 0
    for _ in range(40):
        action = generator.integers(2, size=count)
        step = environments.step(action)
        valid = np.ones(count, dtype=bool) if step.valid is None else step.valid
        length += valid
        for row in valid.nonzero()[0]:
            seen, reward, terminated = cartpole_after(observation[row], action[row])
            np.testing.assert_allclose(step.next_observation[row], seen, atol=1e-5)
            assert (step.reward[row], step.terminated[row]) == (reward, terminated)
            assert step.truncated[row] == (not terminated and length[row] == limit)
            played += 1
        assert [(e.copy, e.length, e.total) for e in step.episodes] == [
            (row, length[row], length[row]) for row in (step.terminated | step.truncated).nonzero()[0]
        ]
        length[step.terminated | step.truncated] = 0
        observation = step.observation
    assert played >= 40 * count / 2
    environments.close()


def test_a_vector_environment_that_spends_steps_on_resets_is_refused():
    class Spends(gymnasium.vector.VectorEnv):
        num_envs, metadata = 1, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        single_observation_space = observation_space = spaces.Box(-1, 1, (1,), np.float32)
        single_action_space, action_space = spaces.Discrete(2), spaces.MultiDiscrete([2])

        def reset(self, *, seed=None, options=None):
            return np.zeros((1, 1), np.float32), {}

        def step(self, actions):
            return np.zeros((1, 1), np.float32), np.ones(1), np.ones(1, bool), np.zeros(1, bool), {}

    envs = upslope.as_vector_env(Spends())
    envs.reset()
    envs.step(np.zeros(1, dtype=int))
    with pytest.raises(UsageError, match="SAME_STEP"):
        envs.step(np.zeros(1, dtype=int))


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A run whose observations are normalised, rewards scaled, observations noisy and episodes short."""
    out = tmp_path_factory.mktemp("runs") / "run"
    quick = {"rollout.steps": 64, "rollout.environments": 2, "update.minibatches": 2, "update.epochs": 1}
    own = {"task_settings": {"max_episode_steps": 20}, "eval": {"episodes": 0}, "sinks": []}
    with Trainer("ppo@continuous", task="Pendulum-v1", steps=2, out=out, **own, **quick) as trainer:
        trainer.train()
        spread = float(trainer.parts.states["reward"]["moments"]["squares"][0])
        count = trainer.parts.states["reward"]["moments"]["count"]
    return out, np.sqrt(spread / count)


def test_like_a_run_is_as_its_policy_saw_it(pendulum):
    run, spread = pendulum
    policy = upslope.load(run)
    raw, seen = (
        open_wrapped("Pendulum-v1", 2, seed=3, settings={"max_episode_steps": 20}),
        open_wrapped(like=run, count=2, seed=3),
    )
    assert (seen.environments.name, seen.environments.limit) == ("Pendulum-v1", 20)
    first, scaled = raw.reset(), seen.reset()
    np.testing.assert_allclose(scaled, policy.normalized(torch.from_numpy(first)).numpy(), atol=1e-6)
    assert (np.abs(scaled - first) > 1e-3).any()
    action = np.array([[0.5], [-3.0]], dtype=np.float32)
    step, other = raw.step(action), seen.step(action)
    np.testing.assert_allclose(
        other.next_observation, policy.normalized(torch.from_numpy(step.next_observation)).numpy(), atol=1e-6
    )
    np.testing.assert_allclose(other.reward, np.clip(step.reward / spread, -10, 10), rtol=1e-4)
    np.testing.assert_array_equal(open_wrapped(like=run).observed.high, np.full(3, 10.0))


def test_like_takes_the_noise_and_the_settings_of_the_run(tmp_path):
    quick = {"rollout.steps": 8, "update.minibatches": 1, "update.epochs": 1, "rollout.observation_noise": 0.5}
    own = {"task_settings": {"max_episode_steps": 9}, "eval": {"episodes": 0}, "sinks": []}
    with Trainer("ppo", task="CartPole-v1", steps=1, out=tmp_path / "run", **own, **quick) as trainer:
        trainer.train()
    env, plain = upslope.as_gymnasium(like=tmp_path / "run"), upslope.as_gymnasium("CartPole-v1")
    noisy, clean = env.reset(seed=1)[0], plain.reset(seed=1)[0]
    assert 0.05 < np.abs(noisy - clean).max() < 3
    np.testing.assert_array_equal(env.reset(seed=1)[0], noisy)  # the noise is of the seed, too
    still = upslope.as_gymnasium(like=tmp_path / "run", observation_noise=0.0)  # what is given counts
    np.testing.assert_array_equal(still.reset(seed=1)[0], clean)
    for steps in range(1, 10):
        _, _, terminated, truncated, _ = env.step(steps % 2)
        if terminated or truncated:
            break
    assert (steps, truncated) == (9, True)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda run: upslope.as_gymnasium(), "which environment"),
        (lambda run: upslope.as_gymnasium("CartPole-v1", count=2), "as_vector_env"),
        (lambda run: upslope.as_gymnasium(upslope.as_vector_env("CartPole-v1", 2)), "has 2 copies"),
        (lambda run: upslope.as_gymnasium("CartPole-v1", observation_noise=-1.0), "noise"),
        (lambda run: upslope.as_gymnasium("CartPole-v1", convention="scaled"), "must be 'clip' or 'scale'"),
        (lambda run: upslope.as_gymnasium("CartPole-v1", like=run), "numbers"),
        (lambda run: upslope.as_gymnasium(like=run.parent), "there is no policy"),
        (lambda run: upslope.as_gymnasium("NoSuch-v1"), "NoSuch-v1"),
        (lambda run: upslope.load(run.parent), "there is no policy"),
    ],
)
def test_wrong_use_is_told(pendulum, call, says):
    with pytest.raises(UsageError, match=says):
        call(pendulum[0])
