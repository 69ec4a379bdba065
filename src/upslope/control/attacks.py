"""Adversaries who change what a policy sees, within an l2 budget over the whole episode, before its own noise is added."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from upslope.collect import seeded
from upslope.control.evaluation import Quota
from upslope.policies.control import ControlPolicy
from upslope.tasks.environments import Environments, Episode

Aim = Literal["against", "toward", "away"]
DRAWS = 4  # of the policy's noise, over which an adversary averages a gradient


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
    lesson: "Lesson | None" = None,
) -> Found:
    """`count` whole episodes of the policy on observations + attack + N(0, sigma^2 I), fresh at every step.

    An episode's attack is cut so that sqrt(sum of |delta|^2) is at most `budget`. `lesson` is told of states, noise and returns.
    """
    environments.rewind()
    observation = environments.reset()
    copies = environments.count
    quota = Quota(count, copies)
    noise, draws = seeded(seed, "noise"), seeded(seed, "actions")
    purse, spent = np.full(copies, budget**2), 0.0
    episodes: list[Episode] = []
    seen: list[np.ndarray] = []
    while quota.open:
        shown = observation
        if attack is not None and budget:
            delta = _within(attack(observation, budget, purse).astype(np.float64), purse)
            purse = np.maximum(0.0, purse - (delta**2).sum(1))
            shown = observation + delta.astype(np.float32)
        elif len(seen) < 1000:
            seen.append(observation)
        own = torch.randn(observation.shape, generator=noise).mul_(sigma).numpy()
        if lesson is not None:
            lesson.watch(observation, own)
        action, _ = policy.act(shown + own, draws, deterministic)
        step = environments.step(action)
        for episode in step.episodes:
            spent = max(spent, budget**2 - float(purse[episode.copy]))
            purse[episode.copy] = budget**2
            if lesson is not None:
                lesson.end(episode)
            if quota.wants(episode):
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
                round; "toward": one fixed action becomes more likely, or all of it larger, which adds up over the episode;
                "away": less likely, or smaller
    threshold   only at steps where the policy prefers its choice by more than this (see `preference`)
    """

    policy: ControlPolicy
    sigma: float
    parts: int
    aim: Aim = "against"
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

    @property
    def _sign(self) -> float:
        return -1.0 if self.aim == "away" else 1.0

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
            return -(mode * chosen).sum(-1) if self.aim == "against" else self._sign * mode.sum(-1)
        if self.aim != "against":
            return self._sign * found.log_prob(torch.zeros_like(chosen).expand(DRAWS, *chosen.shape))
        return -found.log_prob(chosen.expand(DRAWS, *chosen.shape))


class Lesson:
    """Learns from episodes without an attack what to add, linearly in what is seen: the gradient of the expected return by W of

        delta_t = W f_t,  f_t = (1, tanh(o_t / scale)),       d E[R] / dW = E[R sum_t e_t f_t^T] / sigma^2   at W = 0

    which is the score function of the policy's own noise e_t: nothing of the policy need be known. R less its mean.
    """

    def __init__(self, scale: np.ndarray, copies: int) -> None:
        self.scale = np.maximum(scale, 1e-6)
        self._running = np.zeros((copies, len(scale), len(scale) + 1))
        self._found: list[tuple[float, np.ndarray]] = []

    def watch(self, observation: np.ndarray, noise: np.ndarray) -> None:
        """A step of every copy, both [N, D]."""
        self._running += noise[:, :, None] * _features(observation, self.scale)[:, None, :]

    def end(self, episode: Episode) -> None:
        """Of a copy's episode."""
        self._found.append((episode.total, self._running[episode.copy].copy()))
        self._running[episode.copy] = 0.0

    def attack(self, seen: np.ndarray, parts: int) -> "Linear":
        """Against the gradient, of such a size that `parts` steps spend the budget where observations are like `seen` [M, D]."""
        totals = np.array([total for total, _ in self._found])
        sums = np.stack([found for _, found in self._found])
        weights = -np.einsum("n,nij->ij", totals - totals.mean(), sums) / len(totals)
        usual = math.sqrt(float(((_features(seen, self.scale) @ weights.T) ** 2).sum(1).mean()))
        return Linear(weights / max(usual * math.sqrt(parts), 1e-30), self.scale)


@dataclass(frozen=True)
class Linear:
    """budget W f of a Lesson's features f, W [D, D + 1]."""

    weights: np.ndarray
    scale: np.ndarray

    def __call__(self, observation: np.ndarray, budget: float, left: np.ndarray) -> np.ndarray:
        found: np.ndarray = budget * (_features(observation, self.scale) @ self.weights.T)
        return found


def _features(observation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(1, tanh(o / scale)), [N, D + 1]."""
    return np.concatenate([np.ones((len(observation), 1)), np.tanh(observation / scale)], 1)


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
    left      toward the first action, spread evenly         right   away from it
    """
    sure = float(np.quantile(preference(policy, seen), 0.9))
    return {
        "random": Random(length),
        "uniform": Gradient(policy, sigma, length),
        "early": Gradient(policy, sigma, min(10, length)),
        "once": Gradient(policy, sigma, 1, threshold=sure),
        "left": Gradient(policy, sigma, length, "toward"),
        "right": Gradient(policy, sigma, length, "away"),
    }


def timed(policy: ControlPolicy, sigma: float, length: int, seen: np.ndarray) -> list[Gradient]:
    """Candidates for an adversary who chooses when to strike: how many strikes, toward what, and how sure the policy must be."""
    quantiles = np.quantile(preference(policy, seen), (0.0, 0.8))
    parts: Sequence[int] = sorted({min(n, length) for n in (1, 10, 50)})
    aims: tuple[Aim, ...] = ("against", "toward", "away")
    return [Gradient(policy, sigma, n, aim, float(q)) for aim in aims for n in parts for q in quantiles]
