"""The least cost of a store with one slot of stock and Poisson demand, by dynamic programming over whole units.

With lead_time 0 an order serves the period's demand, with 1 the next one's. Costs are piecewise linear between whole units, so
whole orders are as good as any.
"""

import math

import numpy as np

from upslope.environments.inventory import StoreDynamics
from upslope.errors import UsageError


def least_costs(store: StoreDynamics, periods: int, most: int = 80) -> np.ndarray:
    """The least expected cost of `periods` periods from each stock 0 .. most, [most + 1].

    Stock above `most`, which no good policy reaches, counts as `most`. Raises UsageError for other stores.
    """
    value = np.zeros(most + 1)
    step = _Period(store, most)
    for _ in range(periods):
        value = step.best(value)
    return value


def average_cost(store: StoreDynamics, most: int = 80, periods: int = 2000) -> float:
    """The least long-run cost per period: relative value iteration until it is known to 1e-9.

    Raises UsageError where it is not within `periods` iterations.
    """
    value = np.zeros(most + 1)
    step = _Period(store, most)
    for _ in range(periods):
        following = step.best(value)
        change = following - value
        if np.ptp(change) < 1e-9:
            return float(change.mean())
        value = following - following[0]
    raise UsageError(f"the least average cost is not known to 1e-9 after {periods} iterations. Allow more periods.")


class _Period:
    """One period of the recursion; tables over what is had before demand, 0 .. most."""

    def __init__(self, store: StoreDynamics, most: int) -> None:
        if store.demand != "poisson" or store.lead_time > 1 or not store.lost_sales:
            raise UsageError("the least cost is known for Poisson demand, lost sales and a lead time of 0 or 1.")
        if most < store.max_order:
            raise UsageError(f"most={most} must be at least max_order={store.max_order:g}.")
        demand = np.arange(most + 200)
        chance = np.exp(demand * math.log(store.mean) - store.mean - np.array([math.lgamma(d + 1) for d in demand]))
        left = np.clip(np.arange(most + 1)[:, None] - demand, 0, None)
        short = np.clip(demand - np.arange(most + 1)[:, None], 0, None)
        self.cost = (store.holding * left + store.penalty * short) @ chance
        self.reach = np.zeros((most + 1, most + 1))  # from what is had to what is left
        np.add.at(self.reach, (np.arange(most + 1)[:, None], left), chance)
        unit = int(store.lot) if store.lot else 1
        self.orders = np.arange(0, int(store.max_order) + 1, unit)
        self.after = np.minimum(np.arange(most + 1)[:, None] + self.orders, most)
        self.fixed = store.fixed_cost * (self.orders > 0)
        self.first = store.lead_time == 0

    def best(self, value: np.ndarray) -> np.ndarray:
        if self.first:  # order, then demand
            return np.asarray(((self.cost + self.reach @ value)[self.after] + self.fixed).min(1))
        onward = self.reach @ value[self.after]  # the order is placed before demand is seen, and comes after it
        return np.asarray(self.cost + (onward + self.fixed).min(1))
