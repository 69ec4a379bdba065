"""Gymnasium's classic control for many copies at once is what its single environments are."""

import numpy as np
import pytest

from upslope.tasks.classic import CLASSIC
from upslope.tasks.environments import Copies
from upslope.tasks.opening import open_environments

COUNT, STEPS = 9, 520


def both(name, **options):
    batched = open_environments(name, COUNT, 3, **options)
    import gymnasium

    limit = gymnasium.spec(name).max_episode_steps
    single = Copies(lambda: gymnasium.make(name).unwrapped, COUNT, 3, name=name, limit=limit, **options)
    return batched, single


def actions_of(environments, generator, t):
    spec = environments.actions
    if spec.kind == "discrete":
        if t % 3:  # with the speed: the only way up
            return np.where(environments.observation[:, -1] < 0, 0, 2)
        return generator.integers(0, spec.values[0], COUNT)
    return generator.normal(0, 1.5, (COUNT, spec.size)).astype(np.float32)


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize("convention", ["clip", "scale"])
def test_step_for_step_the_single_environments(name, convention):
    """Observations, rewards and ends bit for bit, over episodes that end by themselves and by their time limit."""
    batched, single = both(name, convention=convention)
    assert type(batched) is CLASSIC[name]
    assert batched.observations == single.observations
    assert batched.actions == single.actions
    np.testing.assert_array_equal(batched.reset(), single.reset())
    generator, terminated, ended = np.random.default_rng(0), 0, 0
    for t in range(STEPS):
        action = actions_of(batched, generator, t)
        ours, theirs = batched.step(action), single.step(action)
        for column in ("observation", "terminated", "truncated", "next_observation"):
            np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column), err_msg=f"{column} at {t}")
        np.testing.assert_allclose(ours.reward, theirs.reward, rtol=3e-7, atol=0)
        assert [e.length for e in ours.episodes] == [e.length for e in theirs.episodes]
        terminated += int(ours.terminated.sum())
        ended += len(ours.episodes)
    assert ended > 0
    assert terminated > 0 or name == "Pendulum-v1"


@pytest.mark.parametrize("name", CLASSIC)
def test_restored_in_the_middle_of_an_episode(name):
    first, again = open_environments(name, COUNT, 5), open_environments(name, COUNT, 5)
    first.reset()
    generator = np.random.default_rng(1)
    drawn = [actions_of(first, generator, 0) for _ in range(260)]
    for action in drawn[:130]:
        first.step(action)
    assert again.restore(first.state()) == []
    for action in drawn[130:]:
        np.testing.assert_array_equal(first.step(action).observation, again.step(action).observation)


@pytest.mark.parametrize("name", CLASSIC)
def test_few_copies_and_changed_settings_are_gymnasiums_own(name):
    assert isinstance(open_environments(name, 2, 0), Copies)
    assert open_environments(name, COUNT, 0, settings={"max_episode_steps": 7}).limit == 7


def test_other_gravity_is_gymnasiums_own():
    assert isinstance(open_environments("Pendulum-v1", COUNT, 0, settings={"g": 9.81}), Copies)
