"""Four rooms: distances by breadth first, goals, slips, bad settings."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import upslope.environments  # noqa: F401 - registers
from upslope.environments.four_rooms import FourRooms
from upslope.errors import UsageError


def distances(environment):
    """Fewest moves from the start to every cell."""
    found, rim = {environment.start: 0}, [environment.start]
    while rim:
        cell = rim.pop(0)
        for following in environment._next[cell].tolist():
            if following not in found:
                found[following] = found[cell] + 1
                rim.append(following)
    return found


def test_gymnasium_accepts_it():
    check_env(gymnasium.make("upslope/FourRooms-v0", slip=0.2).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("size", [7, 11, 15])
def test_every_cell_and_goal_can_be_reached(size):
    environment = FourRooms(size=size, goals=8)
    found = distances(environment)
    assert len(found) == len(environment.cells) == environment.observation_space.n
    assert len(set(environment.goals)) == 8
    assert environment.start not in environment.goals


def test_the_nearest_goal_is_8_moves_away_and_the_farthest_16():
    environment = FourRooms()
    assert [distances(environment)[goal] for goal in environment.goals] == [8, 10, 16, 10]
    environment.reset(seed=0)
    steps = [environment.step(action) for action in [0] * 4 + [3] * 4]
    assert [step[1] for step in steps] == [0.0] * 7 + [1.0]
    assert [step[2] for step in steps] == [False] * 7 + [True]
    assert steps[-1][4] == {"goal": 0}
    environment.reset(seed=0)
    assert environment.step(1)[0] == environment.start  # into a wall


def test_slips_are_random_moves():
    environment = FourRooms(slip=1.0)
    cells = []
    for seed in range(400):
        environment.reset(seed=seed)
        cells.append(int(environment.step(0)[0]))
    counts = np.unique(cells, return_counts=True)[1]
    assert sorted(counts.tolist())[-1] == pytest.approx(200, abs=50)  # two of the four moves run into a wall


@pytest.mark.parametrize("settings", [{"size": 8}, {"size": 5}, {"goals": 0}, {"goals": 9}, {"slip": 1.5}])
def test_bad_settings_are_named(settings):
    with pytest.raises(UsageError, match=f"FourRooms: {next(iter(settings))}"):
        FourRooms(**settings)
