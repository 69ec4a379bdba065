"""Fitted Q evaluation with a network: what a policy earns, from a log of other policies' transitions alone.

    y = r + g (1 - terminated) Q'(s', a'), a' of the policy;  L = mean (Q(s, a) - y)^2;  Q' <- Q every `copy_every` steps
    J = mean over the log's first states of Q(s_0, a), a of the policy

The estimate is of the discounted return without a time limit, and only as good as the log's cover of what the policy does.

Source: Le et al. 2019 (arXiv:1903.08738); takuseno/d3rlpy, ope/torch/fqe_impl.py.
Deviations: the target is copied every 20 steps, not 100: a copy looks one step further, and 500 copies reach 0.99^500;
    observations are standardized by the log; rewards are divided by their root mean square while fitting.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from upslope.errors import UsageError


@dataclass(frozen=True)
class FitSettings:
    """Steps of Adam, its rate, batch, hidden widths, steps between hard copies of the target, discount, seed."""

    steps: int = 10_000
    lr: float = 3e-4
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)
    copy_every: int = 20
    discount: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "copy_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"fitted Q evaluation: {name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.discount < 1:
            raise UsageError(f"fitted Q evaluation: discount is {self.discount:g}; it must be in [0, 1).")


@dataclass(frozen=True)
class FittedValue:
    """`value`: the estimate. `history`: it at every copy of the target; where that still moves, fit longer.

    `q`: Q [n] of observations [n, O] and actions [n, A], in units of the rewards.
    """

    value: float
    history: tuple[float, ...]
    q: Callable[[Tensor, Tensor], Tensor] = field(compare=False)

    @property
    def drift(self) -> float:
        """How far the estimate moved over the last tenth of the fit."""
        late = self.history[-max(2, len(self.history) // 10) :]
        return max(late) - min(late)


def fitted_value(
    observation: Tensor,
    action: Tensor,
    reward: Tensor,
    next_observation: Tensor,
    terminated: Tensor,
    start: Tensor,
    policy: Callable[[Tensor], Tensor],
    settings: FitSettings | None = None,
) -> FittedValue:
    """Of a log, observation and next_observation [n, O], action [n, A], reward and terminated [n], first states [m, O].

    `policy` gives actions [k, A] of observations [k, O], in the units of the log's; it may draw them. Raises UsageError where the
    fit diverges.
    """
    settings = settings or FitSettings()
    generator = torch.Generator().manual_seed(settings.seed)
    mean, deviation = observation.mean(0), observation.std(0, correction=0).clamp(min=1e-6)
    scale = float(reward.double().square().mean().sqrt()) or 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        live, target = (_network(observation.shape[1] + action.shape[1], settings.hidden) for _ in range(2))
    target.load_state_dict(live.state_dict())
    optimizer = torch.optim.Adam(live.parameters(), lr=settings.lr, fused=True)

    def value(network: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
        return network(torch.cat([(states - mean) / deviation, actions], -1)).squeeze(-1)

    history: list[float] = []
    for step in range(1, settings.steps + 1):
        rows = torch.randint(0, len(reward), (settings.batch_size,), generator=generator)
        with torch.no_grad():
            ahead = value(target, next_observation[rows], policy(next_observation[rows]))
            wanted = reward[rows] / scale + settings.discount * (1 - terminated[rows]) * ahead
        loss = (value(live, observation[rows], action[rows]) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % settings.copy_every == 0 or step == settings.steps:
            target.load_state_dict(live.state_dict())
            with torch.no_grad():
                history.append(float(value(target, start, policy(start)).mean()) * scale)
            if not torch.isfinite(torch.tensor(history[-1])):
                raise UsageError("fitted Q evaluation diverged: lower its learning rate, or the discount.")

    def q(states: Tensor, actions: Tensor) -> Tensor:
        return value(target, states, actions).detach() * scale

    return FittedValue(history[-1], tuple(history), q)


def _network(size: int, hidden: tuple[int, ...]) -> nn.Sequential:
    widths, layers = [size, *hidden], list[nn.Module]()
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))
