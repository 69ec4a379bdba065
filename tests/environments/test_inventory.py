"""The inventory environments: the card's store step, its base-stock optimum, Gymnasium's checker, one copy against many."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import upslope.environments  # noqa: F401 - registers them
from upslope import UsageError
from upslope.environments.inventory import (
    StoreDynamics,
    WarehouseDynamics,
    proportional,
    sigmoid_share,
    softmax_share,
    store_step,
)
from upslope.tasks.opening import open_environments
from upslope.tasks.simulated import Simulated

OURS = ["upslope/Inventory-v0", "upslope/LotSizing-v0", "upslope/Warehouse-v0", "upslope/FrozenLake-v0"]


@pytest.mark.parametrize("name", OURS)
def test_gymnasiums_checker_passes(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a box is unbounded, or not [-1, 1]
        check_env(gymnasium.make(name).unwrapped)


def plain_store(stock, order, demand, lead, lost, h, p):
    """A period by hand, as the card has it, in plain Python."""
    stock = [*stock, order] if lead else [stock[0] + order]
    post = stock[0] - demand
    cost = p * max(-post, 0) + h * max(post, 0)
    carry = max(post, 0) if lost else post
    rest = stock[1:]
    return ([carry + rest[0], *rest[1:]] if lead else [carry]), cost


@given(
    st.integers(0, 4),
    st.booleans(),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 15)), min_size=1, max_size=8),
)
def test_store_step_by_hand(lead, lost, periods):
    ours, theirs = torch.full((1, max(lead, 1)), 3.0, dtype=torch.float64), [3.0] * max(lead, 1)
    for order, demand in periods:
        one = (torch.tensor([value], dtype=torch.float64) for value in (order, demand))
        ours, cost = store_step(ours, *one, holding=1.5, penalty=9.0, lost_sales=lost, lead_time=lead)
        theirs, expected = plain_store(theirs, order, demand, lead, lost, 1.5, 9.0)
        np.testing.assert_allclose(ours[0], theirs, atol=1e-9)
        np.testing.assert_allclose(cost, expected, atol=1e-9)


CASES = [
    ("upslope/Inventory-v0", {}),
    ("upslope/Inventory-v0", {"demand": "gamma", "lost_sales": True, "max_episode_steps": 7}),
    ("upslope/Inventory-v0", {"demand": "poisson", "lead_time": 1, "max_episode_steps": 150}),
    ("upslope/LotSizing-v0", {}),
    ("upslope/Warehouse-v0", {"spread": 0.4}),
    ("upslope/Warehouse-v0", {"allocation": "softmax", "warehouse_lead_time": 0}),
    ("upslope/Warehouse-v0", {"allocation": "sigmoid"}),
]


def actions_for(environments, generator):
    if environments.actions.kind == "discrete":
        return generator.integers(0, 21, environments.count)
    return (10 * generator.random((environments.count, environments.actions.size))).astype(np.float32)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_many_copies_are_the_single_environments(name, settings):
    many = open_environments(name, 3, 5, settings=settings)
    assert isinstance(many, Simulated)
    own = {key: value for key, value in settings.items() if key != "max_episode_steps"}
    singles = [gymnasium.make(name, **own).unwrapped for _ in range(3)]
    seen = many.reset()
    expected = [single.reset(seed=many.seed_of(row))[0] for row, single in enumerate(singles)]
    generator = np.random.default_rng(0)
    for _ in range(200):
        np.testing.assert_array_equal(seen, np.stack(expected))
        action = actions_for(many, generator)
        step = many.step(action)
        found = [single.step(action[row]) for row, single in enumerate(singles)]
        np.testing.assert_array_equal(step.next_observation, np.stack([one[0] for one in found]))
        np.testing.assert_array_equal(step.reward, np.float32([one[1] for one in found]))
        expected = [one[0] for one in found]
        for episode in step.episodes:
            expected[episode.copy] = singles[episode.copy].reset(seed=many.seed_of(episode.copy))[0]
        seen = step.observation


def test_restored_from_states_and_seeds():
    for limit in (7, 400):
        settings = {"max_episode_steps": limit}
        one, generator = open_environments("upslope/Inventory-v0", 3, 5, settings=settings), np.random.default_rng(0)
        one.reset()
        for _ in range(200):
            one.step(actions_for(one, generator))
        other = open_environments("upslope/Inventory-v0", 3, 5, settings=settings)
        assert other.restore(one.state()) == []
        for _ in range(70):
            action = actions_for(one, generator)
            ours, theirs = one.step(action), other.step(action)
            np.testing.assert_array_equal(ours.observation, theirs.observation)
            np.testing.assert_array_equal(ours.reward, theirs.reward)


def test_traces_are_the_noise_of_the_next_episodes():
    many = open_environments("upslope/Inventory-v0", 4, 1)
    start, noise = many.traces(20)
    assert (tuple(start.shape), tuple(noise.shape)) == ((4, 4), (4, 20, 1))
    many.rewind()
    state = torch.from_numpy(many.reset())
    torch.testing.assert_close(state, start, rtol=0, atol=0)
    order = torch.full((4, 1), 5.0)
    for t in range(20):
        state, reward = many.dynamics.step(state, order, noise[:, t])
        step = many.step(order.numpy())
        np.testing.assert_array_equal(step.next_observation, state)
        np.testing.assert_array_equal(step.reward, reward)
    assert not torch.equal(many.traces(20)[1], noise)


def base_stock_cost(dynamics, levels, traces=4000, steps=230, skip=30):
    """Mean cost per period and copy of ordering up to each level, on the same demand, [levels]."""
    generator = np.random.default_rng(0)
    noise = torch.from_numpy(np.stack([dynamics.noise(generator, steps) for _ in range(traces)])).double()
    found = []
    for level in levels:
        state, total = torch.full((traces, max(dynamics.lead_time, 1)), dynamics.mean, dtype=torch.float64), 0.0
        for t in range(steps):
            order = (level - state.sum(-1, keepdim=True)).clamp(min=0)
            state, reward = dynamics.step(state, order, noise[:, t])
            total -= float(reward.mean()) if t >= skip else 0.0
        found.append(total / (steps - skip))
    return found


def test_base_stock_optimum_of_the_card():
    """S* = 29.5850 with cost 6.27882; simulation: S = 28.6 -> 6.531, 29.59 -> 6.283, 30.6 -> 6.502."""
    lead, h, p, mean, std = 4, 1.0, 9.0, 5.0, 1.6
    z, spread = norm.ppf(p / (p + h)), std * (lead + 1) ** 0.5
    best, cost = (lead + 1) * mean + spread * z, (h + p) * spread * norm.pdf(z)
    assert best == pytest.approx(29.5850, abs=5e-5)
    assert cost == pytest.approx(6.27882, abs=5e-6)
    low, at, high = base_stock_cost(StoreDynamics(), [28.6, best, 30.6])
    assert [low, at, high] == pytest.approx([6.531, 6.283, 6.502], abs=0.03)
    assert at == pytest.approx(cost, rel=0.005)


def test_post_decision_and_demand_give_the_step():
    """The reward and the next state are functions of the post-decision state and of the demand alone, but for a fixed cost."""
    store = StoreDynamics(lead_time=0, lost_sales=True, lot=1.0, fixed_cost=10.0)
    seen, action = torch.tensor([[2.0], [0.0]]), torch.tensor([3, 0])
    assert store.post_decision(seen, action).tolist() == [[5.0], [0.0]]
    following, reward = store.step(seen, action, torch.tensor([[4.0], [1.0]]))
    assert following.tolist() == [[1.0], [0.0]]
    assert reward.tolist() == [-(10.0 + 1.0), -9.0]
    queue = StoreDynamics(lead_time=2)
    assert queue.post_decision(torch.tensor([[2.0, 4.0]]), torch.tensor([[3.0]])).tolist() == [[2.0, 4.0, 3.0]]
    lake = gymnasium.make("upslope/FrozenLake-v0").unwrapped
    cells = np.eye(16, dtype=np.float32)
    meant = lake.post_decision(cells[[0, 0, 0, 0, 6, 15, 5]], np.array([0, 1, 2, 3, 2, 0, 2]))
    assert meant.argmax(1).tolist() == [0, 4, 1, 0, 7, 15, 5]  # 5 is a hole, 15 the goal


def test_frozen_lake_without_slipping_goes_where_it_means_to():
    lake = gymnasium.make("upslope/FrozenLake-v0", is_slippery=False).unwrapped
    for cell in range(16):
        for action in range(4):
            ((_, reached, _, _),) = lake.P[cell][action]
            assert lake.post_decision(np.eye(16)[[cell]], np.array([action])).argmax() == reached


def test_no_more_leaves_the_warehouse_than_it_has():
    wanted, stock = torch.tensor([[4.0, 2.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([3.0, 5.0, 2.0])
    assert proportional(wanted, stock).tolist() == [[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    np.testing.assert_allclose(softmax_share(torch.zeros(1, 2), torch.tensor([3.0])), [[1.0, 1.0]], rtol=1e-6)
    for allocation in ("proportional", "softmax", "sigmoid"):
        warehouse = WarehouseDynamics(allocation=allocation)
        generator = np.random.default_rng(0)
        state = torch.from_numpy(np.stack([warehouse.start(generator) for _ in range(50)]))
        bought = sold = torch.zeros(50)
        first = state.sum(-1)
        for noise in torch.from_numpy(warehouse.noise(generator, 40)):
            action = torch.from_numpy(generator.random((50, 4)).astype(np.float32)) * 12
            before = state[:, 3::2]  # on hand in the stores
            sold = sold + torch.minimum(before, noise).sum(-1)
            bought = bought + action[:, 0]
            state, _ = warehouse.step(state, action, noise.expand(50, -1))
            assert (state >= -1e-4).all()
        torch.testing.assert_close(
            state.sum(-1), first + bought - sold, rtol=1e-4, atol=1e-2
        )  # nothing is lost or made


def test_demands_have_the_mean_std_and_correlation_asked_for():
    draws = WarehouseDynamics(spread=0.3, correlation=0.5, std=0.8).noise(np.random.default_rng(0), 200_000)
    np.testing.assert_allclose(draws.mean(0), [3.5, 5.0, 6.5], rtol=5e-3)
    np.testing.assert_allclose(draws.std(0), [0.56, 0.8, 1.04], rtol=1e-2)
    np.testing.assert_allclose(np.corrcoef(draws.T)[0, 1:], [0.5, 0.5], atol=1e-2)
    for kind, std in (("normal", 1.0), ("gamma", 1.0), ("poisson", 5**0.5)):
        draws = StoreDynamics(demand=kind, std=1.0).noise(np.random.default_rng(0), 200_000)
        assert draws.mean() == pytest.approx(5.0, rel=5e-3)
        assert draws.std() == pytest.approx(std, rel=1e-2)
        assert (draws >= 0).all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Inventory", {"leadtime": 3}, "no setting leadtime.*lead_time"),
        ("Inventory", {"mean": -1}, "mean is -1"),
        ("Inventory", {"lead_time": 1.5}, "lead_time is 1.5.*whole number"),
        ("Inventory", {"lost_sales": "yes"}, "lost_sales is 'yes'"),
        ("Inventory", {"demand": "beta"}, "demand is 'beta'.*normal, poisson, gamma"),
        ("Inventory", {"lot": 50.0}, "less than one lot"),
        ("Warehouse", {"stores": 0}, "stores is 0"),
        ("Warehouse", {"correlation": 2.0}, "correlation=2"),
    ],
)
def test_settings_out_of_range_are_named(name, settings, message):
    with pytest.raises(UsageError, match=message):
        open_environments(f"upslope/{name}-v0", 1, 0, settings=settings)


def test_a_state_may_be_given():
    store = gymnasium.make("upslope/Inventory-v0").unwrapped
    with pytest.raises(UsageError, match="before reset"):
        store.step(np.zeros(1, dtype=np.float32))
    assert store.reset(seed=0, options={"state": [1, 2, 3, 4]})[0].tolist() == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="4 finite numbers"):
        store.reset(seed=0, options={"state": [1, 2]})


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=4), st.floats(0, 50))
def test_the_sigmoid_head_times_the_stock_upstream(logits, stock):
    """Card: sigmoid x upstream stock. One store gets sigmoid(x) of it; several, scaled down where they ask for more than all."""
    x = torch.tensor(logits, dtype=torch.float64)
    got = sigmoid_share(torch.nn.functional.softplus(x), torch.tensor(stock, dtype=torch.float64)).numpy()
    share = 1 / (1 + np.exp(-np.array(logits)))
    np.testing.assert_allclose(got, share * stock / max(1.0, share.sum()), rtol=1e-6, atol=1e-9)
