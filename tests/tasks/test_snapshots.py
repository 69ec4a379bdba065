"""Environments go on from a state that an episode was in, as often as wanted."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from upslope.errors import UsageError
from upslope.tasks.environments import EnvironmentFailure
from upslope.tasks.opening import open_environments


def walk(environments, actions):
    steps = [environments.step(action) for action in actions]
    return [step.observation for step in steps], [step.reward for step in steps], steps


@pytest.mark.parametrize(("task", "count"), [("CartPole-v1", 3), ("CartPole-v1", 8), ("upslope/FourRooms-v0", 3)])
def test_a_copy_that_is_put_into_a_state_goes_on_as_the_episode_does(task, count):
    environments = open_environments(task, count, seed=5)
    environments.reset()
    draw = np.random.default_rng(0)
    before, after = (draw.integers(environments.actions.values[0], size=(n, count)) for n in (14, 5))
    walk(environments, before)
    places = [environments.snapshot(2), environments.snapshot(0), environments.snapshot(2), environments.snapshot(2)]
    spare = environments.spare(4)
    assert type(spare) is type(environments)
    first = spare.put(places, seeds=[1, 2, 3, 4])
    np.testing.assert_array_equal(first, environments.observation[[2, 0, 2, 2]])
    assert spare.length.tolist() == environments.length[[2, 0, 2, 2]].tolist()
    np.testing.assert_allclose(spare.total, environments.total[[2, 0, 2, 2]])
    seen, earned, _ = walk(environments, after)
    again, once_more, _ = walk(spare, after[:, [2, 0, 2, 2]])
    for a, b in zip(seen, again, strict=True):
        np.testing.assert_array_equal(a[[2, 0, 2, 2]][0], b[0])
        np.testing.assert_array_equal(b[0], b[2])
    assert [r[2] for r in earned] == [r[0] for r in once_more]
    spare.put(places[::-1], seeds=[1, 2, 3, 4])  # and again
    np.testing.assert_array_equal(spare.observation[2], places[1].observation)


def test_a_time_limit_counts_the_steps_before_the_state():
    environments = open_environments("upslope/FourRooms-v0", 1, seed=0, settings={"max_episode_steps": 10})
    environments.reset()
    still = np.zeros(1, dtype=np.int64)  # up, into a wall in the end
    walk(environments, [still] * 7)
    spare = environments.spare(2)
    spare.put([environments.snapshot(0)] * 2, seeds=[0, 1])
    _, _, steps = walk(spare, [np.zeros(2, dtype=np.int64)] * 3)
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2]


def test_what_is_drawn_after_the_state_differs_by_seed():
    environments = open_environments("upslope/FourRooms-v0", 1, seed=0, settings={"slip": 1.0})
    environments.reset()
    walk(environments, [np.zeros(1, dtype=np.int64)] * 3)
    spare = environments.spare(3)
    spare.put([environments.snapshot(0)] * 3, seeds=[7, 8, 7])
    seen = np.stack(walk(spare, [np.zeros(3, dtype=np.int64)] * 20)[0]).argmax(-1)
    assert (seen[:, 0] == seen[:, 2]).all()
    assert (seen[:, 0] != seen[:, 1]).any()


class Restless(gymnasium.Env):
    """Draws from a generator that no seed reaches."""

    observation_space, action_space = spaces.Box(-9, 9, (1,), np.float32), spaces.Discrete(2)
    draw = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw.normal(size=1).astype(np.float32), {}

    def step(self, action):
        return self.draw.normal(size=1).astype(np.float32), 0.0, False, False, {}


def test_what_cannot_be_put_back_says_so():
    environments = open_environments(Restless, 1, seed=0)
    environments.reset()
    spare = environments.spare(1)
    with pytest.raises(EnvironmentFailure, match=r"does not repeat an episode .* self.np_random"):
        spare.put([environments.snapshot(0)], seeds=[0])
    with pytest.raises(UsageError, match="1 states were given for 2 copies"):
        environments.spare(2).put([environments.snapshot(0)], seeds=[0])
    vector = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    with pytest.raises(UsageError, match="cannot be reset to a state"):
        open_environments(vector, 2, seed=0).spare(2)
