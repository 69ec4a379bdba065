"""Adversaries who change what a policy sees, within an l2 budget over the whole episode, before its own noise is added."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from upslope.collect import seeded
from upslope.policies.control import ControlPolicy
from upslope.tasks.environments import Environments, Episode

DRAWS = 8  # of the policy's noise, over which an adversary averages a gradient


class Attack(Protocol):
    """Knows the policy and sigma, sees the true observations and what is left of the budget; not the noise to come."""

    def __call__(self, observation: np.ndarray, budget: float, left: np.ndarray) -> np.ndarray:
        """What is added to observations [N, D], of which copy i may spend sqrt(left[i]) more of `budget`. What is more is cut."""


@dataclass(frozen=True)
class Found:
    """Episodes under an attack, the most that one of them spent (an l2 norm), and observations [M, D] that were seen on the way."""

    episodes: list[Episode]
    spent: float
    seen: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """[n]"""
        return np.array([episode.total for episode in self.episodes])


def play_attacked(
    policy: ControlPolicy,
    environments: Environments,
    count: int,
    *,
    sigma: float,
    attack: Attack | None = None,
    budget: float = 0.0,
    deterministic: bool = True,
    seed: int = 0,
) -> Found:
    """`count` whole episodes of the policy on observations + attack + N(0, sigma^2 I), fresh at every step.

    Each copy of the environment plays as many episodes as the others, or one less: the first to end would be the short ones.
    An episode's attack is cut so that sqrt(sum of |delta|^2) is at most `budget`.
    """
    environments.rewind()
    observation = environments.reset()
    copies = environments.count
    left = np.full(copies, count // copies)
    left[: count % copies] += 1
    noise, draws = seeded(seed, "noise"), seeded(seed, "actions")
    purse, spent = np.full(copies, budget**2), 0.0
    episodes: list[Episode] = []
    seen: list[np.ndarray] = []
    while left.any():
        shown = observation
        if attack is not None and budget:
            delta = _within(attack(observation, budget, purse).astype(np.float64), purse)
            purse = np.maximum(0.0, purse - (delta**2).sum(1))
            shown = observation + delta.astype(np.float32)
        elif len(seen) < 1000:
            seen.append(observation)
        own = torch.randn(observation.shape, generator=noise).mul_(sigma).numpy()
        action, _ = policy.act(shown + own, draws, deterministic)
        step = environments.step(action)
        for episode in step.episodes:
            spent = max(spent, budget**2 - float(purse[episode.copy]))
            purse[episode.copy] = budget**2
            if left[episode.copy]:
                left[episode.copy] -= 1
                episodes.append(episode)
        observation = step.observation
    environments.skip()
    return Found(episodes, math.sqrt(spent), np.concatenate(seen) if seen else observation)


def _within(delta: np.ndarray, left: np.ndarray) -> np.ndarray:
    """delta [N, D], rows longer than sqrt(left) made as long."""
    norm = np.sqrt((delta**2).sum(1))
    allowed = np.sqrt(left)
    return np.where(norm > allowed, allowed / np.maximum(norm, 1e-300), 1.0)[:, None] * delta


@dataclass(frozen=True)
class Random:
    """Random directions, the budget spread evenly over `parts` steps: what carelessness costs, without knowledge of the policy."""

    parts: int
    generator: torch.Generator = field(default_factory=lambda: seeded("random attack"), compare=False)

    def __call__(self, observation: np.ndarray, budget: float, left: np.ndarray) -> np.ndarray:
        direction = torch.randn(observation.shape, generator=self.generator).numpy()
        return direction * (budget / math.sqrt(self.parts) / np.linalg.norm(direction, axis=1, keepdims=True))


@dataclass(frozen=True)
class Gradient:
    """Along the policy's gradient, averaged over its noise (one step of FGSM in l2): budget / sqrt(parts) at each of `parts` steps.

    aim         "against": what the policy would choose becomes less likely, or where actions are continuous smaller and turned
                round; "toward": one fixed action becomes more likely, or all of it larger, which adds up over the episode
    threshold   only at steps where the policy prefers its choice by more than this (see `preference`)
    """

    policy: ControlPolicy
    sigma: float
    parts: int
    aim: Literal["against", "toward"] = "against"
    threshold: float = -math.inf
    generator: torch.Generator = field(default_factory=lambda: seeded("gradient attack"), compare=False)

    def __call__(self, observation: np.ndarray, budget: float, left: np.ndarray) -> np.ndarray:
        size = budget / math.sqrt(self.parts)
        rows = left > 1e-9 * budget**2
        if self.threshold > -math.inf:
            rows &= preference(self.policy, observation) > self.threshold
        delta = np.zeros_like(observation)
        if rows.any():
            direction = self._direction(observation[rows])
            delta[rows] = size * direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-30)
        return delta

    def _direction(self, observation: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(observation).requires_grad_()
        noise = torch.randn((DRAWS, *observation.shape), generator=self.generator).mul_(self.sigma)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._aimed(seen, noise).sum(), seen)
        return gradient.numpy()

    def _aimed(self, seen: Tensor, noise: Tensor) -> Tensor:
        """What the adversary raises, [DRAWS, M]."""
        policy = self.policy
        with torch.no_grad():
            chosen = policy.distribution(seen).mode()
        found = policy.distribution(seen + noise)
        if policy.actions.kind == "continuous":
            mode = found.mode()
            return mode.sum(-1) if self.aim == "toward" else -(mode * chosen).sum(-1)
        if self.aim == "toward":
            return found.log_prob(torch.zeros_like(chosen).expand(DRAWS, *chosen.shape))
        return -found.log_prob(chosen.expand(DRAWS, *chosen.shape))


@torch.no_grad()
def preference(policy: ControlPolicy, observation: np.ndarray) -> np.ndarray:
    """How much a policy cares what it does, [M]: the log-odds of its likeliest action, or the length of a continuous one.

    Source: Lin et al. 2017 (arXiv:1703.06748), section 3.2, for the timing of an attack by it.
    """
    found = policy.distribution(torch.from_numpy(observation))
    mode = found.mode()
    if policy.actions.kind == "continuous":
        length: np.ndarray = mode.norm(dim=-1).numpy()
        return length
    logp = found.log_prob(mode).double().clamp(max=-1e-12)
    odds: np.ndarray = (logp - (-torch.expm1(logp)).log()).numpy()
    return odds


def attacks(policy: ControlPolicy, sigma: float, length: int, seen: np.ndarray) -> dict[str, Attack]:
    """The adversaries that are fixed beforehand: `length` is of an episode, `seen` [M, D] observations of the policy's own.

    random    random directions, spread evenly
    uniform   against the choice, spread evenly              early   against it, in the first 10 steps
    once      all at the first step at which the policy is as sure as at one in ten
    drift     toward one action, spread evenly
    """
    sure = float(np.quantile(preference(policy, seen), 0.9))
    return {
        "random": Random(length),
        "uniform": Gradient(policy, sigma, length),
        "early": Gradient(policy, sigma, min(10, length)),
        "once": Gradient(policy, sigma, 1, threshold=sure),
        "drift": Gradient(policy, sigma, length, "toward"),
    }


def timed(policy: ControlPolicy, sigma: float, length: int, seen: np.ndarray) -> list[Gradient]:
    """Candidates for an adversary who chooses when to strike: how many strikes, toward what, and how sure the policy must be."""
    quantiles = np.quantile(preference(policy, seen), (0.0, 0.8))
    parts: Sequence[int] = sorted({min(n, length) for n in (1, 5, 20, 80)})
    aims: tuple[Literal["against", "toward"], ...] = ("against", "toward")
    return [Gradient(policy, sigma, n, aim, float(q)) for aim in aims for n in parts for q in quantiles]
