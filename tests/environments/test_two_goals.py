"""TwoGoals: Gymnasium's own checks, its formula, and both goals alike."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import upslope.environments  # noqa: F401
from upslope import UsageError
from upslope.environments.two_goals import TwoGoals


@pytest.mark.filterwarnings("error")
def test_passes_gymnasiums_checks():
    check_env(gymnasium.make("upslope/TwoGoals-v0").unwrapped, skip_render_check=True)


def test_a_step_is_its_formula():
    env = TwoGoals(spread=0.0, angle=0.0)
    seen, info = env.reset(seed=0)
    assert seen.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert info == {"goal": -1}
    env.step(np.array([1.0, -0.5]))
    seen, reward, ended, cut, info = env.step(np.array([3.0, 0.0]))  # cut to 1
    np.testing.assert_allclose(seen, [0.25, -0.075, 0.15, -0.025], atol=1e-7)
    assert reward == pytest.approx(-0.1 * np.hypot(0.75, 0.075) - 0.01)
    assert (ended, cut, info) == (False, False, {"goal": -1})


@pytest.mark.parametrize("goal", [0, 1])
def test_both_goals_end_the_episode_and_are_as_good(goal):
    total = {}
    for which in (goal, 1 - goal):
        env = TwoGoals(spread=0.0)
        env.reset(seed=0)
        rewards, ended = [], False
        while not ended:
            _, reward, ended, _, info = env.step(env.goals[which])
            rewards.append(reward)
        assert info["goal"] == which
        total[which] = sum(rewards)
        assert len(rewards) < 10
    assert total[0] == pytest.approx(total[1])
    assert total[0] > 0


def test_starts_are_spread_and_repeat_themselves():
    env = TwoGoals(spread=0.1)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    assert starts[:, :2].std() == pytest.approx(0.1, rel=0.1)
    assert not starts[:, 2:].any()
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])


def test_settings_out_of_range():
    with pytest.raises(UsageError, match="radius 1"):
        TwoGoals(radius=1.0)
