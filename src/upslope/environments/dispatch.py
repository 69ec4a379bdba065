"""A city on a grid whose vehicles are given orders: many agents of one kind that act in the same step."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from upslope.errors import UsageError

PAIR = ("pickup", "trip", "waited", "origin_x", "origin_y", "goal_x", "goal_y", "time", "near_goal", "nearer_vehicles")
VEHICLE = ("x", "y", "time", "free", "orders_near", "vehicles_near", "earned")
Observation = dict[str, np.ndarray]


class Dispatch(gymnasium.Env[Observation, np.ndarray]):
    """Every step gives waiting orders to free vehicles. Reward: what all vehicles earn by the orders that they take.

        earned by an order   fee + fare * cells of the trip - pickup_cost * cells to its origin, when it is taken

    vehicles     how many; each moves one cell a step, is busy until it has brought an order to its goal, and stays there
    size         cells on a side; distances are sums of both directions
    horizon      steps of an episode, at whose end it terminates
    rate         orders that appear in a step, on average (Poisson), most of them around a centre that moves as time passes
    shown        orders that can wait at once; further ones are lost
    patience     steps after which an order that nobody has taken is lost

    An observation has, for vehicle i and the order in place j,
        pairs    [vehicles, shown, 10]  distances and places over the size, times over patience and horizon; 0 where no order is
        open     [vehicles, shown]      1 where the vehicle is free and the order is there
        workers  [vehicles, 7]          where the vehicle is, whether it is free, what is near it
        earned   [vehicles]             by each vehicle in this episode
    An action has for every vehicle 0, or 1 + the place of an order. What cannot be is no order: one that is not there, or for
    a busy vehicle, or that a vehicle before it in the list has taken. `info` counts orders served and lost and the cells driven
    to origins. The layout is what `upslope.policies.assignment.PairPolicy` reads of any environment.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        vehicles: int = 30,
        size: int = 10,
        horizon: int = 60,
        rate: float = 4.0,
        shown: int = 30,
        patience: int = 6,
        fee: float = 1.0,
        fare: float = 0.1,
        pickup_cost: float = 0.2,
    ) -> None:
        least = {"vehicles": (vehicles, 1), "size": (size, 2), "horizon": (horizon, 1), "shown": (shown, 1)}
        for name, (value, bound) in {**least, "patience": (patience, 1), "rate": (rate, 0)}.items():
            if not value >= bound:
                raise UsageError(f"Dispatch: {name} is {value}; it must be at least {bound}.")
        self.vehicles, self.size, self.horizon, self.rate = vehicles, size, horizon, rate
        self.shown, self.patience = shown, patience
        self.fee, self.fare, self.pickup_cost = fee, fare, pickup_cost
        box = lambda *shape: spaces.Box(-np.inf, np.inf, shape, np.float32)  # noqa: E731
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                "pairs": box(vehicles, shown, len(PAIR)),
                "open": spaces.MultiBinary((vehicles, shown)),
                "workers": box(vehicles, len(VEHICLE)),
                "earned": box(vehicles),
            }
        )
        self.action_space = spaces.MultiDiscrete([shown + 1] * vehicles)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """All vehicles free, anywhere; the first orders are there."""
        super().reset(seed=seed)
        self.time = 0
        self.place = self.np_random.integers(self.size, size=(self.vehicles, 2))
        self.busy = np.zeros(self.vehicles, dtype=np.int64)  # steps until it is free
        self.earned = np.zeros(self.vehicles)
        self.origin = np.zeros((self.shown, 2), dtype=np.int64)
        self.goal = np.zeros((self.shown, 2), dtype=np.int64)
        self.waited = np.full(self.shown, -1)  # steps; -1: no order
        self.counts = {"served": 0, "lost": 0, "pickup": 0}
        self._appear()
        return self._see(), dict(self.counts)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Orders are taken, then a step of time passes: vehicles drive, orders are lost, new ones appear."""
        before = float(self.earned.sum())
        worker = np.flatnonzero((np.asarray(action) > 0) & (self.busy == 0))
        order = np.asarray(action)[worker] - 1
        there = self.waited[order] >= 0
        order, first = np.unique(order[there], return_index=True)
        worker = worker[there][first]
        pickup = np.abs(self.place[worker] - self.origin[order]).sum(1)
        trip = np.abs(self.origin[order] - self.goal[order]).sum(1)
        self.earned[worker] += self.fee + self.fare * trip - self.pickup_cost * pickup
        self.busy[worker] = pickup + trip
        self.place[worker] = self.goal[order]
        self.waited[order] = -1
        self.counts["served"] += len(order)
        self.counts["pickup"] += int(pickup.sum())
        self.time += 1
        self.busy = np.maximum(self.busy - 1, 0)
        self.waited[self.waited >= 0] += 1
        late = self.waited >= self.patience
        self.counts["lost"] += int(late.sum())
        self.waited[late] = -1
        self._appear()
        reward = float(self.earned.sum()) - before
        return self._see(), reward, self.time >= self.horizon, False, dict(self.counts)

    def _appear(self) -> None:
        """New orders, three quarters of them around a centre that goes once around the city in an episode."""
        count, draw = int(self.np_random.poisson(self.rate)), self.np_random
        middle, angle = (self.size - 1) / 2, 2 * np.pi * self.time / self.horizon
        centre = middle + self.size / 4 * np.array([np.cos(angle), np.sin(angle)])
        near = centre + draw.normal(size=(count, 2)) * self.size / 8
        anywhere, goal = draw.integers(self.size, size=(2, count, 2))
        origin = (
            np.where(draw.random((count, 1)) < 0.75, near.round(), anywhere).clip(0, self.size - 1).astype(np.int64)
        )
        same = (origin == goal).all(1)
        goal[same, 0] = (goal[same, 0] + 1) % self.size  # a trip is at least one cell
        free = np.flatnonzero(self.waited < 0)[:count]
        self.counts["lost"] += count - len(free)
        self.origin[free], self.goal[free], self.waited[free] = origin[: len(free)], goal[: len(free)], 0

    def distances(self) -> np.ndarray:
        """Cells from each vehicle to each order's origin, [vehicles, shown]."""
        found: np.ndarray = np.abs(self.place[:, None] - self.origin[None]).sum(2)
        return found

    def open(self) -> np.ndarray:
        """Which vehicle may take which order, [vehicles, shown] bool."""
        found: np.ndarray = (self.busy == 0)[:, None] & (self.waited >= 0)[None]
        return found

    def _see(self) -> Observation:
        open_, free, there = self.open(), self.busy == 0, self.waited >= 0
        pickup, size, time = self.distances(), self.size, self.time / self.horizon
        trip = np.abs(self.origin - self.goal).sum(1)
        near_goal = ((np.abs(self.goal[:, None] - self.origin[None]).sum(2) <= 2) & there).sum(1)
        nearer = np.where(free[:, None], pickup, 2 * size)
        rank = np.argsort(np.argsort(nearer, axis=0, kind="stable"), axis=0, kind="stable")
        pairs = np.empty((self.vehicles, self.shown, len(PAIR)), dtype=np.float32)
        pairs[..., 0], pairs[..., 9] = pickup / size, rank / self.vehicles
        of_order = (trip / size, self.waited / self.patience, *(self.origin / size).T, *(self.goal / size).T, time)
        for column, value in enumerate((*of_order, near_goal / self.shown), start=1):
            pairs[..., column] = value
        pairs[~open_] = 0.0
        workers = np.empty((self.vehicles, len(VEHICLE)), dtype=np.float32)
        around = np.abs(self.place[:, None] - self.place[None]).sum(2) <= 3
        columns = (*(self.place / size).T, time, free, ((pickup <= 3) & there).sum(1) / self.shown)
        others = (around & free).sum(1) / self.vehicles
        for column, value in enumerate((*columns, others, (self.earned - self.earned.mean()) / self.horizon)):
            workers[:, column] = value
        return {
            "pairs": pairs,
            "open": open_.astype(np.int8),
            "workers": workers,
            "earned": self.earned.astype(np.float32),
        }
