"""Environments: episodes, time limits, seeds, restoring, every autoreset mode, and environments that misbehave."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.runs.state import pack, unpack
from upslope.tasks.batched import BatchedCartPole, Vectorized
from upslope.tasks.environments import Copies, EnvironmentFailure
from upslope.tasks.opening import open_environments


class Walk(gymnasium.Env):
    """Counts its steps; ends by its own draw, or by a limit, or never. Its observation says (seed, step, last action)."""

    def __init__(self, ends=0.2, limit=None, fail=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Discrete(3)
        self.ends, self.limit, self.fail = ends, limit, fail

    def _see(self, action):
        return np.array([self.mark, self.t, action], dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.mark, self.t = float(self.np_random.integers(1000)), 0
        return self._see(-1), {}

    def step(self, action):
        self.t += 1
        if self.fail and self.t == 3:
            if self.fail == "raise":
                raise RuntimeError("motor stuck")
            if self.fail == "nan":
                return np.array([0.0, np.nan, 0.0]), 0.0, False, False, {}
            if self.fail == "shape":
                return np.zeros(1), 0.0, False, False, {}
            if self.fail == "reward":
                return self._see(action), float("inf"), False, False, {}
        ended = bool(self.np_random.random() < self.ends)
        return self._see(action), self.t + 0.5 * action, ended, self.limit is not None and self.t >= self.limit, {}


class Lockstep(VectorEnv):
    """Walk, many at once, in the mode asked for, without `reset_mask` unless the mode needs it."""

    def __init__(self, count, mode, ends, limit):
        self.num_envs, self.copies, self.mode = count, [Walk(ends, limit) for _ in range(count)], mode
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = Walk().observation_space, Walk().action_space
        self.action_space = spaces.MultiDiscrete([3] * count)
        self.over = [False] * count

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        assert mask.all() or self.mode is AutoresetMode.DISABLED
        seen = [
            copy.reset(seed=None if seed is None else s)[0] if m else copy._see(9)
            for copy, m, s in zip(self.copies, mask, seed or [None] * self.num_envs, strict=True)
        ]
        return np.stack(seen), {}

    def step(self, actions):
        rows, finals = [], [None] * self.num_envs
        for i, copy in enumerate(self.copies):
            if self.mode is AutoresetMode.NEXT_STEP and self.over[i]:
                rows.append((copy.reset()[0], 0.0, False, False))
            else:
                rows.append(copy.step(actions[i])[:4])
                if self.mode is AutoresetMode.SAME_STEP and (rows[-1][2] or rows[-1][3]):
                    finals[i] = rows[-1][0]
                    rows[-1] = (copy.reset()[0], *rows[-1][1:])
            self.over[i] = rows[-1][2] or rows[-1][3]
        seen, reward, terminated, truncated = (np.array(column) for column in zip(*rows, strict=True))
        return seen, reward, terminated, truncated, {"final_obs": finals}


def made(kind, count, ends, limit, seed=0):
    if kind == "copies":
        return Copies(lambda: Walk(ends), count, seed, limit=limit)
    if kind.startswith("sync"):
        inner = SyncVectorEnv([lambda: Walk(ends, limit)] * count, autoreset_mode=AutoresetMode(kind[4:]))
        return Vectorized(inner, seed)
    return Vectorized(Lockstep(count, AutoresetMode(kind), ends, limit), seed)


KINDS = ["copies", *(prefix + mode.value for prefix in ("", "sync") for mode in AutoresetMode)]


@pytest.mark.parametrize("kind", KINDS)
@given(
    count=st.integers(1, 4),
    ends=st.sampled_from([0.0, 0.3, 1.0]),
    limit=st.sampled_from([None, 1, 2, 5]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_every_autoreset_mode_gives_whole_episodes(kind, count, ends, limit, seed):
    """The observation names its episode and its step, so every transition can be checked against what must follow."""
    environments = made(kind, count, ends, limit, seed)
    observation = environments.reset()
    assert (observation[:, 1] == 0).all()
    draw = np.random.default_rng(seed)
    steps, total, found = np.zeros(count, int), np.zeros(count), []
    for _ in range(25):
        action = draw.integers(3, size=count)
        step = environments.step(action)
        for i in range(count):
            if step.valid is not None and not step.valid[i]:
                assert not step.terminated[i]
                assert not step.truncated[i]
                assert step.reward[i] == 0
                assert step.observation[i, 1] == 0
                assert steps[i] == 0
                continue
            steps[i] += 1
            assert step.next_observation[i, 0] == observation[i, 0]
            assert step.next_observation[i, 1] == observation[i, 1] + 1 == steps[i]
            assert step.next_observation[i, 2] == action[i]
            assert step.reward[i] == steps[i] + 0.5 * action[i]
            assert not (step.terminated[i] and step.truncated[i])
            assert step.truncated[i] == (steps[i] == limit and not step.terminated[i])
            total[i] += step.reward[i]
            if step.terminated[i] or step.truncated[i]:
                found.append((i, total[i], steps[i]))
                steps[i], total[i] = 0, 0.0
                if kind != "NextStep":
                    assert step.observation[i, 1] == 0
            else:
                assert (step.observation[i] == step.next_observation[i]).all()
        ended = [(e.copy, e.total, e.length) for e in step.episodes]
        assert ended == found[len(found) - len(ended) :]
        assert len(ended) == int((step.terminated | step.truncated).sum())
        observation = step.observation
    assert found or ends == 0


ACTIONS = [np.random.default_rng(step).integers(2, size=9) for step in range(300)]


def played(environments, actions):
    return [environments.step(action) for action in actions]


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.episodes == b.episodes
        for x, y in zip(a[:5], b[:5], strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("cut", [0, 1, 37, 150])
def test_restored_environments_go_on_bit_for_bit(cut):
    for count, what in ((9, "CartPole-v1"), (3, "CartPole-v1"), (9, lambda: Walk(0.05))):
        environments = open_environments(what, count, 7)
        environments.reset()
        actions = [action[:count] for action in ACTIONS]
        played(environments, actions[:cut])
        state = unpack(*pack(environments.state()))
        expected = played(environments, actions[cut:])
        again = open_environments(what, count, 7)
        assert again.restore(state) == []
        same(played(again, actions[cut:]), expected)


def test_the_batched_cart_pole_is_the_single_one():
    batched, single = open_environments("CartPole-v1", 9, 3), Copies(lambda: gymnasium.make("CartPole-v1"), 9, 3)
    assert isinstance(batched, BatchedCartPole)
    np.testing.assert_array_equal(batched.reset(), single.reset())
    for a, b in zip(played(batched, ACTIONS), played(single, ACTIONS), strict=True):
        assert a.episodes == b.episodes
        np.testing.assert_allclose(a.observation, b.observation, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a.next_observation, b.next_observation, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a.terminated, b.terminated)


def test_time_limits_truncate_and_registered_ones_are_kept():
    environments = open_environments("CartPole-v1", 8, 0, settings={"max_episode_steps": 5})
    environments.reset()
    steps = played(environments, [action[:8] for action in ACTIONS[:5]])
    assert steps[-1].truncated.all()
    assert not steps[-1].terminated.any()
    assert [episode.length for episode in steps[-1].episodes] == [5] * 8
    pendulum = open_environments("Pendulum-v1", 2, 0)
    assert pendulum.limit == 200
    pendulum.reset()
    assert all(s.truncated.all() == (t == 199) for t, s in enumerate(played(pendulum, [np.zeros((2, 1))] * 200)))


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("raise", "copy 0, episode 0, step 2 .*step failed: RuntimeError: motor stuck"),
        ("nan", r"copy 0, episode 0, step 3 .*observation\[1\] is nan"),
        ("shape", r"copy 0, episode 0, step 2 .*has shape \(1,\), and its space says \(3,\)"),
        ("reward", "copy 0, episode 0, step 3 .*the reward is inf"),
    ],
)
def test_bad_environments_are_named(fail, message):
    environments = open_environments(lambda: Walk(0.0, fail=fail), 2, 0)
    environments.reset()
    with pytest.raises(EnvironmentFailure, match=message):
        played(environments, [np.zeros(2, int)] * 5)
    environments.skip()
    environments.reset()
    assert environments.number.tolist() == [1, 1]


def test_an_episode_that_never_ends_is_named():
    environments = open_environments(lambda: Walk(0.0), 2, 0)
    environments.longest = 50
    environments.reset()
    with pytest.raises(EnvironmentFailure, match=r"step 50 .*has not ended.*max_episode_steps"):
        played(environments, [np.zeros(2, int)] * 60)


def test_an_environment_that_does_not_repeat_itself_is_noticed():
    class Careless(Walk):
        def reset(self, *, seed=None, options=None):
            self.mark, self.t = float(np.random.random()), 0
            return self._see(-1), {}

        def step(self, action):
            self.t += 1
            return self._see(action), 0.0, False, False, {}

    environments = open_environments(Careless, 2, 0)
    environments.reset()
    played(environments, [np.zeros(2, int)] * 3)
    again = open_environments(Careless, 2, 0)
    assert len(again.restore(environments.state())) == 2
    assert again.number.tolist() == [1, 1]
    assert again.step(np.zeros(2, int)).observation[0, 1] == 1


class Rich(gymnasium.Env):
    def __init__(self):
        inner = spaces.Tuple((spaces.Discrete(3, start=2), spaces.MultiBinary(2)))
        self.observation_space = spaces.Dict(
            {"z": inner, "a": spaces.Box(-1, 1, (2, 2)), "m": spaces.MultiDiscrete([2, 3])}
        )
        self.action_space = spaces.MultiDiscrete([2, 4], start=[1, 0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"m": np.array([1, 2]), "a": np.arange(4.0).reshape(2, 2), "z": (4, np.array([0, 1]))}, {}

    def step(self, action):
        self.seen = action
        return {**self.reset()[0]}, 0.0, False, False, {}


def test_dict_observations_are_flat_and_named():
    environments = open_environments(Rich, 1, 0)
    observation = environments.reset()
    np.testing.assert_array_equal(observation, [[0, 1, 2, 3, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]])
    assert environments.observations.names[:5] == ["a[0]", "a[1]", "a[2]", "a[3]", "m[0]"]
    assert environments.observations.names[-1] == "z/1[1]"
    assert type(environments.observations).from_dict(environments.observations.to_dict()) == environments.observations
    assert type(environments.actions).from_dict(environments.actions.to_dict()) == environments.actions
    environments.step(np.array([[1, 3]]))
    assert environments.copies[0].seen.tolist() == [2, 3]


def test_actions_are_clipped_or_scaled_onto_the_box():
    class Echo(Walk):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)

        def step(self, action):
            assert self.action_space.contains(action)
            return np.array([*action, 0.0]), 0.0, False, False, {}

    clip, scale = open_environments(Echo, 1, 0), open_environments(Echo, 1, 0, convention="scale")
    clip.reset(), scale.reset()
    assert clip.step(np.array([[3.0, 0.25]])).observation[0, :2].tolist() == [2.0, 0.25]
    assert scale.step(np.array([[-0.5, 1.0]])).observation[0, :2].tolist() == [-1.0, 1.0]
    with pytest.raises(UsageError, match=r"actions of shape \[1\] were given; it takes \[1, 2\]"):
        clip.step(np.zeros(1))


def test_environments_by_name():
    assert open_environments(f"{__file__}:Walk", 1, 0).name == "Walk"
    assert open_environments("gymnasium.envs.classic_control:PendulumEnv", 2, 0, settings={"g": 9.0}).copies[1].g == 9.0
    instance = open_environments(Walk(0.5), 3, 0)
    assert len({id(copy) for copy in instance.copies}) == 3
    for what, message in (
        ("CartPol-v1", "Did you mean CartPole-v1"),
        ("nowhere:Thing", "nowhere cannot be imported"),
        (f"{__file__}:Wall", "has no class or function 'Wall'"),
        (3, "must have reset, step, observation_space and action_space, and 3 has no reset"),
    ):
        with pytest.raises(UsageError, match=message):
            open_environments(what, 1, 0)
    with pytest.raises(UsageError, match="cannot be made with gravitas=3"):
        open_environments("Pendulum-v1", 1, 0, settings={"gravitas": 3})
