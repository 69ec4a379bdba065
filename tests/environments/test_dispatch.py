"""The dispatching city: what orders earn, who is busy, what is lost, and what an action may not be."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import upslope.environments  # noqa: F401 - registers
from upslope.environments.dispatch import Dispatch
from upslope.errors import UsageError


def city(**settings):
    environment = Dispatch(**{"vehicles": 3, "shown": 4, "rate": 0.0, **settings})
    environment.reset(seed=0)
    environment.place[:] = [(0, 0), (5, 5), (9, 9)]
    for place, (origin, goal) in enumerate([((0, 2), (4, 2)), ((5, 5), (5, 6))]):
        environment.origin[place], environment.goal[place], environment.waited[place] = origin, goal, 0
    return environment


def test_gymnasium_accepts_it():
    check_env(gymnasium.make("upslope/Dispatch-v0").unwrapped, skip_render_check=True)


def test_what_an_order_earns_and_how_long_it_takes():
    environment = city(fee=1.0, fare=0.1, pickup_cost=0.2)
    seen, reward, terminated, truncated, info = environment.step(np.array([1, 2, 0]))
    np.testing.assert_allclose(seen["earned"], [1 + 0.1 * 4 - 0.2 * 2, 1 + 0.1 - 0.0, 0.0], rtol=1e-6)
    assert reward == pytest.approx(2.1)
    assert info == {"served": 2, "lost": 0, "pickup": 2}
    assert environment.busy.tolist() == [5, 0, 0]  # 2 to the origin and 4 to the goal, of which one step is over
    assert environment.place.tolist() == [[4, 2], [5, 6], [9, 9]]
    assert (terminated, truncated) == (False, False)
    for _ in range(4):
        seen = environment.step(np.zeros(3, dtype=int))[0]
    assert not seen["workers"][0, 3]
    assert environment.step(np.zeros(3, dtype=int))[0]["workers"][0, 3]


def test_what_cannot_be_is_no_order():
    environment = city()
    environment.busy[1] = 3
    _, reward, _, _, info = environment.step(np.array([4, 2, 1]))  # nobody's order, a busy vehicle, an order
    assert info["served"] == 1
    assert reward == pytest.approx(1 + 0.4 - 0.2 * (9 + 7))
    environment = city()
    _, _, _, _, info = environment.step(np.array([0, 1, 1]))  # the first in the list gets it
    assert (info["served"], info["pickup"]) == (1, 5 + 3)


def test_orders_are_lost_after_their_patience():
    environment = city(patience=3)
    lost = [environment.step(np.zeros(3, dtype=int))[4]["lost"] for _ in range(4)]
    assert lost == [0, 0, 2, 2]


def test_pairs_are_what_the_formula_says():
    environment = city()
    seen = environment._see()
    assert seen["open"].tolist() == [[1, 1, 0, 0]] * 3
    np.testing.assert_allclose(seen["pairs"][0, 0, :3], [0.2, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(seen["pairs"][:, 1, 9] * 3, [2, 0, 1])  # 10, 0 and 8 cells away
    assert not seen["pairs"][:, 2:].any()


def test_the_same_seed_is_the_same_day_and_orders_come_at_their_rate():
    days = []
    for _ in range(2):
        environment = Dispatch(rate=4.0, horizon=500)
        environment.reset(seed=3)
        days.append([environment.step(np.zeros(30, dtype=int)) for _ in range(500)])
    assert all(np.array_equal(a[0]["pairs"], b[0]["pairs"]) for a, b in zip(*days, strict=True))
    assert days[0][-1][2]
    waiting = int((environment.waited >= 0).sum())
    assert environment.counts["lost"] + waiting == pytest.approx(4 * 501, rel=0.1)


@pytest.mark.parametrize("settings", [{"vehicles": 0}, {"size": 1}, {"horizon": 0}, {"rate": -1}, {"patience": 0}])
def test_bad_settings_are_named(settings):
    with pytest.raises(UsageError, match=f"Dispatch: {next(iter(settings))}"):
        Dispatch(**settings)
