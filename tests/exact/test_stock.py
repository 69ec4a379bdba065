"""The least cost of small stores: against plain recursion, the newsvendor, and simulated policies, none of which is cheaper."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from upslope import UsageError
from upslope.environments.inventory import StoreDynamics
from upslope.exact.stock import average_cost, least_costs

SMALL = {"lost_sales": True, "demand": "poisson", "mean": 1.0, "max_order": 4.0}


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("fixed", [0.0, 3.0])
def test_plain_recursion(lead, fixed):
    h, p = 1.0, 4.0

    @cache
    def least(stock, periods):
        if periods == 0:
            return 0.0
        return min(after(stock, order, periods) for order in range(5))

    def after(stock, order, periods):
        total = fixed * (order > 0)
        for demand in range(25):
            had = stock + order if lead == 0 else stock
            left = max(had - demand, 0)
            cost = h * left + p * max(demand - had, 0)
            total += poisson.pmf(demand, 1.0) * (cost + least(left + (order if lead else 0), periods - 1))
        return total

    store = StoreDynamics(lead_time=lead, holding=h, penalty=p, fixed_cost=fixed, **SMALL)
    found = least_costs(store, 3, most=30)
    np.testing.assert_allclose(found[:4], [least(stock, 3) for stock in range(4)], rtol=1e-9)


def test_without_lead_time_it_is_the_newsvendor():
    store = StoreDynamics(lead_time=0, lost_sales=True, demand="poisson")
    demand = np.arange(100)
    chance = poisson.pmf(demand, 5.0)
    by_level = [(np.clip(y - demand, 0, None) + 9 * np.clip(demand - y, 0, None)) @ chance for y in range(30)]
    assert average_cost(store) == pytest.approx(min(by_level), abs=1e-8)


def test_no_simulated_policy_is_cheaper():
    store = StoreDynamics(lead_time=1, lost_sales=True, demand="poisson")
    noise = torch.from_numpy(store.noise(np.random.default_rng(0), 4000 * 60)).view(4000, 60, 1)
    least = average_cost(store)
    found = []
    for level in range(9, 20):
        state, total = torch.full((4000, 1), 8.0), 0.0
        for t in range(60):
            state, reward = store.step(state, (level - state).clamp(min=0), noise[:, t])
            total -= float(reward.mean()) if t >= 10 else 0.0
        found.append(total / 50)
    assert min(found) > 0.995 * least  # a base stock is not the best policy here, and near it
    assert min(found) < 1.06 * least


def test_other_stores_are_refused():
    with pytest.raises(UsageError, match="Poisson demand"):
        average_cost(StoreDynamics())
    with pytest.raises(UsageError, match="most=10"):
        least_costs(StoreDynamics(lead_time=0, lost_sales=True, demand="poisson"), 3, most=10)
    with pytest.raises(UsageError, match="after 2 iterations"):
        average_cost(StoreDynamics(lead_time=1, lost_sales=True, demand="poisson"), periods=2)
