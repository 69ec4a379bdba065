"""The point maze: its dynamics and rewards beside a few lines of arithmetic, walls that hold, episodes that repeat."""

import math

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from upslope import UsageError
from upslope.environments.point_maze import MAZES, NEAR, PointMaze
from upslope.tasks.opening import open_environments

NAME = "upslope/PointMaze-v0"


def maze_at(place, goal, **settings):
    env = PointMaze(**settings)
    env.reset(seed=0)
    env.place, env.goal = list(place), list(goal)
    env._left = env.way()
    return env


@pytest.mark.parametrize("maze", MAZES)
@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_it(maze, reward):
    check_env(gymnasium.make(NAME, maze=maze, reward=reward, render_mode="rgb_array").unwrapped)


def test_a_push_in_the_open_is_the_formula():
    env = maze_at((2.0, 2.0), (3.5, 3.5), maze="open", reward="sparse", step_cost=0.0)
    place, speed, actions = np.array([2.0, 2.0]), np.zeros(2), np.array([[1.0, 0.5], [-0.25, 3.0], [0.0, 0.0]])
    for action in actions:
        observation, reward, ended, cut, _ = env.step(action)
        speed = 0.8 * speed + 0.5 * action.clip(-1, 1)
        place = place + 0.1 * speed
        np.testing.assert_allclose(observation, [*place, *speed, 3.5, 3.5], atol=1e-6)
        assert (reward, ended, cut) == (0.0, False, False)


def test_a_wall_stops_one_axis_and_leaves_the_other():
    env = maze_at((1.05, 1.5), (3.5, 3.5), maze="open")
    for _ in range(5):
        observation = env.step(np.array([-1.0, 1.0]))[0]
    assert observation[0] == pytest.approx(1.0, abs=1e-5)
    assert observation[2] == 0.0
    assert observation[3] == pytest.approx(0.5 * sum(0.8**k for k in range(5)), abs=1e-5)


@pytest.mark.parametrize("maze", MAZES)
def test_no_action_leads_into_a_wall_or_out_of_the_space(maze):
    env, draws = PointMaze(maze), np.random.default_rng(0)
    for episode in range(5):
        env.reset(seed=episode)
        action = draws.uniform(-1, 1, 2)
        for step in range(300):
            action = draws.choice([-1.0, 1.0], 2) if step % 7 == 0 else action
            observation, *_ = env.step(action)
            assert env.observation_space.contains(observation)
            assert MAZES[maze][int(observation[1])][int(observation[0])] != "#"


def test_the_way_goes_around_walls():
    env = maze_at((1.5, 3.5), (1.5, 1.5), maze="u")
    assert env.way() == pytest.approx(6.0)  # two cells right, two up, two left
    env.place = [2.75, 3.5]
    assert env.way() == pytest.approx(0.75 + 4.0)
    env.place = [2.5, 1.6]
    assert env.way() == pytest.approx(math.dist((2.5, 1.6), (1.5, 1.5)))


def test_dense_rewards_add_up_to_the_way_that_was_made():
    env = PointMaze(step_cost=0.02)
    env.reset(seed=3)
    before, total, steps = env.way(), 0.0, 0
    draws = np.random.default_rng(1)
    for _ in range(40):
        total += env.step(draws.uniform(-1, 1, 2))[1]
        steps += 1
    assert total == pytest.approx(before - env.way() - 0.02 * steps)


@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_the_goal_ends_an_episode_with_1(reward):
    env = maze_at((2.5, 1.5), (1.5, 1.5), reward=reward, step_cost=0.0)
    total, ended = 0.0, False
    while not ended:
        observation, earned, ended, cut, info = env.step(np.array([-1.0, 0.0]))
        total += earned
    assert math.dist(observation[:2], observation[4:]) < NEAR
    assert info == {"success": True}
    assert not cut
    made = 1.0 - env.way() if reward == "dense" else 0.0
    assert total == pytest.approx(1.0 + made)


def test_equal_seeds_are_equal_episodes_and_resumed_ones_go_on():
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 3, 2)).astype(np.float32)
    first = open_environments(NAME, 3, seed=5, convention="scale")
    assert first.limit == 150
    first.reset()
    for action in actions[:160]:
        first.step(action)
    second = open_environments(NAME, 3, seed=5, convention="scale")
    assert second.restore(first.state()) == []
    for action in actions[160:]:
        ours, theirs = first.step(action), second.step(action)
        for name in ("observation", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_starts_and_goals_are_where_they_are_marked():
    env = PointMaze(["####", "#S #", "# G#", "####"])
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        assert (int(observation[0]), int(observation[1]), int(observation[4]), int(observation[5])) == (1, 1, 2, 2)
    seen = {tuple(PointMaze("medium").reset(seed=seed)[0][4:].astype(int)) for seed in range(40)}
    assert len(seen) > 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"maze": "large"}, "no point maze 'large'.*open, u, medium"),
        ({"maze": ["####", "#  ", "####"]}, "rows of equal length"),
        ({"maze": ["# ##", "#  #", "####"]}, "walls"),
        ({"maze": ["#####", "# # #", "#####"]}, "no way leads to"),
        ({"maze": ["###", "# #", "###"]}, "another cell"),
        ({"reward": "shaped"}, "dense and sparse"),
    ],
)
def test_what_cannot_be_made_is_said(settings, said):
    with pytest.raises(UsageError, match=said):
        PointMaze(**settings)


def test_a_misspelt_maze_is_named_where_environments_are_opened():
    with pytest.raises(UsageError, match="no point maze 'large'"):
        open_environments(NAME, 1, seed=0, settings={"maze": "large"})


def test_the_image_has_walls_the_goal_and_the_point():
    env = maze_at((1.5, 3.5), (1.5, 1.5), render_mode="rgb_array")
    image = env.render()
    assert image.shape == (160, 160, 3)
    assert image[0, 0].tolist() == [60, 60, 60]
    assert image[48, 48].tolist() == [60, 170, 90]
    assert image[112, 48].tolist() == [40, 90, 200]
    assert PointMaze().render() is None
