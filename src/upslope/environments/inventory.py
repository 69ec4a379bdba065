"""Stock under uncertain demand: one store, a warehouse with stores, lot sizing. Rewards are minus costs.

A period of a store with stock I_1 on hand, I_2 .. I_L on the way, and the order a:

    post    I_1 - D                                                    (lead_time=0: I_1 + a - D)
    cost    penalty max(-post, 0) + holding max(post, 0) + fixed_cost [a > 0]
    next    I_1' = carry + I_2, the others move up, the last is a;     carry = post, with lost sales max(post, 0)

The order is placed before the period's demand is seen, and serves the demand of lead_time periods later.
Source: Alvo, Russo, Kanoria 2023 (arXiv:2306.11246), section 3 and the authors' environment.py, from which the numbers of
`upslope/Inventory-v0` are: demand N(5, 1.6) cut at 0, lead time 4, holding 1, penalty 9, at first each of the L slots
uniform between 0 and the mean demand.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from upslope.environments.dynamics import Dynamics, Simulation
from upslope.errors import UsageError

Kind = Literal["normal", "poisson", "gamma"]
Allocation = Literal["proportional", "softmax", "sigmoid"]


def store_step(
    stock: Tensor, order: Tensor, demand: Tensor, *, holding: float, penalty: float, lost_sales: bool, lead_time: int
) -> tuple[Tensor, Tensor]:
    """The next stock [..., max(L, 1)] and the cost [...] of a period, as above; order and demand [...]."""
    post = stock[..., 0] - demand if lead_time else stock[..., 0] + order - demand
    left = post.clamp(min=0)
    cost = penalty * (left - post) + holding * left
    carry = left if lost_sales else post
    if not lead_time:
        return carry.unsqueeze(-1), cost
    coming = torch.cat([stock[..., 1:], order.unsqueeze(-1)], -1)
    return torch.cat([coming[..., :1] + carry.unsqueeze(-1), coming[..., 1:]], -1), cost


def proportional(wanted: Tensor, stock: Tensor) -> Tensor:
    """What stores [..., n] get who want `wanted` >= 0 of a stock [...]: all of it, or each the same share of it."""
    total = wanted.sum(-1)
    return wanted * (stock / total.clamp(min=1e-9)).clamp(max=1).unsqueeze(-1)


def softmax_share(logits: Tensor, stock: Tensor) -> Tensor:
    """Shares of a stock [...] by softmax over the stores' logits [..., n] and a 0 for what stays in the warehouse."""
    stays = torch.zeros_like(logits[..., :1])
    return torch.cat([logits, stays], -1).softmax(-1)[..., :-1] * stock.unsqueeze(-1)


def sigmoid_share(wanted: Tensor, stock: Tensor) -> Tensor:
    """Each of the stores [..., n] asks for the share 1 - exp(-wanted) of a stock [...], wanted >= 0; together they get no more.

    Of a policy whose actions are softplus(x) these are the shares sigmoid(x): any share, down to none and up to all.
    """
    return proportional(-torch.expm1(-wanted) * stock.unsqueeze(-1), stock)


SHARING = {"proportional": proportional, "softmax": softmax_share, "sigmoid": sigmoid_share}


@dataclass(frozen=True)
class StoreDynamics(Dynamics):
    """One store, [max(lead_time, 1)] observed: on hand, then by when it arrives.

    lead_time     periods from an order to the demand that it serves
    lost_sales    unmet demand is lost, instead of served later
    demand        "normal" cut at 0, "poisson" (of `mean` alone), "gamma"
    max_order     the most that is ordered at once
    lot           0: any amount; else orders are 0, 1, 2, ... lots of this size, as discrete actions
    fixed_cost    of ordering anything at all
    """

    lead_time: int = 4
    lost_sales: bool = False
    holding: float = 1.0
    penalty: float = 9.0
    demand: Kind = "normal"
    mean: float = 5.0
    std: float = 1.6
    max_order: float = 40.0
    lot: float = 0.0
    fixed_cost: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        if self.lot and self.max_order < self.lot:
            raise UsageError(f"max_order={self.max_order:g} is less than one lot of {self.lot:g}.")
        size = max(self.lead_time, 1)
        # A frozen dataclass of settings, with what follows from them beside.
        set_ = object.__setattr__
        set_(self, "observation_space", spaces.Box(-np.inf, np.inf, (size,), np.float32))
        action: spaces.Space[Any] = (
            spaces.Discrete(int(self.max_order / self.lot) + 1)
            if self.lot
            else spaces.Box(0.0, self.max_order, (1,), np.float32)
        )
        set_(self, "action_space", action)
        whole = "orders come in whole lots" if self.lot else ""
        set_(self, "obstacle", f"fixed_cost={self.fixed_cost:g} has no gradient" if self.fixed_cost else whole)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        first = self.mean * generator.random(max(self.lead_time, 1))
        return (np.floor(first) if self.lot else first).astype(np.float32)

    def noise(self, generator: np.random.Generator, steps: int) -> np.ndarray:
        return _demand(generator, self.demand, self.mean, self.std, (steps, 1)).astype(np.float32)

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        order = self._order(state, action)
        following, cost = store_step(
            state,
            order,
            noise[..., 0],
            holding=self.holding,
            penalty=self.penalty,
            lost_sales=self.lost_sales,
            lead_time=self.lead_time,
        )
        if self.fixed_cost:
            cost = cost + self.fixed_cost * (order > 0)
        return following, -cost

    def post_decision(self, observation: Tensor, action: Tensor) -> Tensor:
        order = self._order(observation, action).unsqueeze(-1)
        return torch.cat([observation, order], -1) if self.lead_time else observation + order

    def _order(self, state: Tensor, action: Tensor) -> Tensor:
        return action.to(state.dtype) * self.lot if self.lot else action[..., 0]


@dataclass(frozen=True)
class WarehouseDynamics(Dynamics):
    """A warehouse and `stores` stores: the warehouse orders from outside and sends what it has on hand to the stores.

    Observed: the warehouse's max(warehouse_lead_time, 1) slots, then lead_time of each store. Actions: the warehouse's order,
    then for each store what it wants (allocation "proportional"), its logit ("softmax"), or x of the share 1 - exp(-x) that it
    asks for ("sigmoid", the one that can leave everything in the warehouse): no more goes out than there is.
    Demands of a period have correlation `correlation` between stores; unmet demand is lost, or with lost_sales=False kept.
    The stores' means are spread evenly over mean * (1 -+ spread), their std is in proportion.
    """

    stores: int = 3
    lead_time: int = 2
    warehouse_lead_time: int = 3
    warehouse_holding: float = 0.3
    lost_sales: bool = True
    holding: float = 1.0
    penalty: float = 9.0
    mean: float = 5.0
    std: float = 1.6
    spread: float = 0.0
    correlation: float = 0.5
    max_order: float = 40.0
    allocation: Allocation = "proportional"

    def __post_init__(self) -> None:
        _check(self)
        for name, value in (("stores", self.stores), ("lead_time", self.lead_time)):
            if value < 1:
                raise UsageError(f"Warehouse: {name} is {value}; it must be at least 1.")
        if not (0 <= self.correlation <= 1 and 0 <= self.spread < 1):
            raise UsageError(
                f"Warehouse: correlation={self.correlation:g} must be from 0 to 1, and spread={self.spread:g} from 0 to below 1."
            )
        ordered = self.max_order * np.array([self.stores, *[1] * self.stores], dtype=np.float32)
        size = max(self.warehouse_lead_time, 1) + self.stores * self.lead_time
        object.__setattr__(self, "observation_space", spaces.Box(-np.inf, np.inf, (size,), np.float32))
        object.__setattr__(self, "action_space", spaces.Box(np.zeros_like(ordered), ordered, dtype=np.float32))

    @property
    def means(self) -> np.ndarray:
        """The stores' mean demands [n]."""
        return self.mean * np.linspace(1 - self.spread, 1 + self.spread, self.stores)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        slots = max(self.warehouse_lead_time, 1)
        upstream = self.means.sum() * generator.random(slots)
        stores = self.means[:, None] * generator.random((self.stores, self.lead_time))
        return np.concatenate([upstream, stores.ravel()]).astype(np.float32)

    def noise(self, generator: np.random.Generator, steps: int) -> np.ndarray:
        draws = generator.standard_normal((steps, 1 + self.stores))
        mixed = self.correlation**0.5 * draws[:, :1] + (1 - self.correlation) ** 0.5 * draws[:, 1:]
        return np.maximum(self.means * (1 + self.std / self.mean * mixed), 0).astype(np.float32)

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        upstream, stores = self._split(state)
        sent = self._sent(upstream, action)
        stores, cost = store_step(
            stores,
            sent,
            noise,
            holding=self.holding,
            penalty=self.penalty,
            lost_sales=self.lost_sales,
            lead_time=self.lead_time,
        )
        # The warehouse is a store whose demand is what it sends, and never more than it has: no penalty.
        upstream, kept = store_step(
            upstream,
            action[..., 0],
            sent.sum(-1),
            holding=self.warehouse_holding,
            penalty=0.0,
            lost_sales=False,
            lead_time=self.warehouse_lead_time,
        )
        return torch.cat([upstream, stores.flatten(-2)], -1), -(cost.sum(-1) + kept)

    def post_decision(self, observation: Tensor, action: Tensor) -> Tensor:
        upstream, stores = self._split(observation)
        sent = self._sent(upstream, action)
        left = upstream[..., :1] - sent.sum(-1, keepdim=True)
        known = torch.cat([stores, sent.unsqueeze(-1)], -1).flatten(-2)
        return torch.cat([left, upstream[..., 1:], action[..., :1], known], -1)

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        upstream, stores = state.tensor_split([max(self.warehouse_lead_time, 1)], -1)
        return upstream, stores.unflatten(-1, (self.stores, self.lead_time))

    def _sent(self, upstream: Tensor, action: Tensor) -> Tensor:
        on_hand = upstream[..., 0] if self.warehouse_lead_time else upstream[..., 0] + action[..., 0]
        return SHARING[self.allocation](action[..., 1:], on_hand.clamp(min=0))


class Inventory(Simulation):
    """`StoreDynamics(**settings)` as a Gymnasium environment: upslope/Inventory-v0."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(StoreDynamics(**_named(StoreDynamics, settings)))


class LotSizing(Inventory):
    """A store that produces at once, in whole units, at a fixed cost of 10: upslope/LotSizing-v0. Settings as `Inventory`."""

    def __init__(self, **settings: Any) -> None:
        own = {
            "lead_time": 0,
            "lost_sales": True,
            "demand": "poisson",
            "max_order": 20.0,
            "lot": 1.0,
            "fixed_cost": 10.0,
        }
        super().__init__(**{**own, **settings})


class Warehouse(Simulation):
    """`WarehouseDynamics(**settings)` as a Gymnasium environment: upslope/Warehouse-v0."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(WarehouseDynamics(**_named(WarehouseDynamics, settings)))


def _demand(generator: np.random.Generator, kind: Kind, mean: float, std: float, size: tuple[int, ...]) -> np.ndarray:
    if kind == "poisson":
        return generator.poisson(mean, size)
    if kind == "gamma":
        return generator.gamma((mean / std) ** 2, std**2 / mean, size)
    return np.maximum(generator.normal(mean, std, size), 0)


def _named(kind: type, settings: dict[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(kind)]
    strange = sorted(set(settings) - set(known))
    if strange:
        raise UsageError(f"{kind.__name__} has no setting {', '.join(strange)}. It has: {', '.join(known)}.")
    return settings


def _check(dynamics: Any) -> None:
    """Raises UsageError for settings out of range, by name."""
    name, values = type(dynamics).__name__, {f.name: getattr(dynamics, f.name) for f in fields(dynamics)}
    for key, value in values.items():
        whole = key in ("lead_time", "warehouse_lead_time", "stores")
        if key in ("lost_sales", "demand", "allocation"):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < float("inf") or (whole and value != int(value)):
            kind = "whole number" if whole else "finite number"
            raise UsageError(f"{name}: {key} is {value!r}; it must be a {kind} of at least 0.")
    for key in ("mean", "std", "max_order"):
        if not values[key] > 0:
            raise UsageError(f"{name}: {key} is {values[key]}; it must be above 0.")
    if not isinstance(values["lost_sales"], bool):
        raise UsageError(f"{name}: lost_sales is {values['lost_sales']!r}; it must be true or false.")
    for key, kinds in (("demand", Kind), ("allocation", Allocation)):
        if key in values and values[key] not in get_args(kinds):
            raise UsageError(f"{name}: {key} is {values[key]!r}; it must be one of {', '.join(get_args(kinds))}.")
