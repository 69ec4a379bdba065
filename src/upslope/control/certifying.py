"""A trained policy with noise on its observations: what it earns at least within a budget, and what it earns under attacks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.collect import key_number
from upslope.control.attacks import Attack, Found, Gradient, Lesson, attacks, play_attacked, timed
from upslope.diagnostics.smoothing import Certificate, certify, whole
from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy
from upslope.registry import make
from upslope.runs.statistics import bootstrap, mean
from upslope.tasks.batched import BatchedCartPole
from upslope.tasks.environments import Environments
from upslope.tasks.opening import open_environments

FIRST, PILOT = 64, 100  # episodes that show what returns are like; episodes by which an adversary chooses its timing
COPIES, BATCHED = 64, 1000  # of an environment that is stepped in turn, and of one that is stepped as arrays
SHARES = (0.5, 0.9)  # of the highest return: thresholds where none are given


@dataclass(frozen=True)
class Smoothed:
    """A policy, the noise on what it sees, the environment it plays in, and whether it plays its likeliest actions."""

    policy: ControlPolicy
    sigma: float
    task: str
    settings: dict[str, Any]
    deterministic: bool = True
    seed: int = 0

    def play(
        self, count: int, what: str, attack: Attack | None = None, budget: float = 0.0
    ) -> tuple[Found, int | None]:
        """`count` episodes, whose starts and noise are those of the name `what`; with the environment's time limit."""
        environments = self._open(count, what)
        try:
            seed = key_number(f"{self.seed}/certify/{what}")
            options: dict[str, Any] = {"sigma": self.sigma, "deterministic": self.deterministic, "seed": seed}
            found = play_attacked(self.policy, environments, count, attack=attack, budget=budget, **options)
            return found, environments.limit
        finally:
            environments.close()

    def lesson(self, count: int, scale: np.ndarray) -> Lesson:
        """What `count` episodes without an attack teach an adversary."""
        environments = self._open(count, "lesson")
        try:
            lesson = Lesson(scale, environments.count)
            seed = key_number(f"{self.seed}/certify/lesson")
            options: dict[str, Any] = {"sigma": self.sigma, "deterministic": self.deterministic, "seed": seed}
            play_attacked(self.policy, environments, count, lesson=lesson, **options)
            return lesson
        finally:
            environments.close()

    def _open(self, count: int, what: str) -> Environments:
        seed = key_number(f"{self.seed}/certify/{what}/starts") % 2**32
        options: dict[str, Any] = {"settings": self.settings, "convention": self.policy.convention}
        found = open_environments(self.task, min(count, COPIES), seed, **options)
        if (found.observations, found.actions) != (self.policy.observations, self.policy.actions):
            found.close()
            raise UsageError(
                f"certify: the policy was trained on other observations or actions than those of {self.task}."
            )
        if count > COPIES and isinstance(found, BatchedCartPole):
            found.close()
            return open_environments(self.task, min(count, BATCHED), seed, **options)
        return found


def trained_noise(values: Mapping[str, Any]) -> float:
    """The noise on observations that a run's settings (its config.yaml) say; 0 for none."""
    settings = values.get("settings", {})
    try:
        rollout = make(values["method"], **settings).rollout
    except (KeyError, UsageError):  # a policy of no run, or the method's file is gone
        return float(settings.get("rollout.observation_noise", settings.get("observation_noise", 0.0)))
    return float(getattr(rollout, "observation_noise", 0.0))


@dataclass(frozen=True)
class Bounds:
    """What is known of returns before they are seen: none is below `lowest`; `highest` None: the time limit above it, where
    returns are whole numbers. `thresholds` None: SHARES of the highest and it itself.
    """

    lowest: float | None = None
    highest: float | None = None
    thresholds: tuple[float, ...] | None = None
    alpha: float = 0.05


def certified(
    smoothed: Smoothed, episodes: int, bounds: Bounds
) -> tuple[Certificate, tuple[float, ...], Found, list[str]]:
    """The certificate from `episodes` episodes, the thresholds, the first episodes, and what was assumed, in sentences.

    Raises UsageError where nothing is known that no return can be below, or the episodes are too few.
    """
    first, limit = smoothed.play(FIRST, "first")
    lowest, highest, notes = bounds.lowest, bounds.highest, []
    if lowest is None:
        if first.returns.min() < 0:
            raise UsageError(
                f"certify: a return of {first.returns.min():.4g} was seen. Give a number that no return can be below, whatever the "
                f"actions: --lowest {first.returns.min() * 2:.0f}, say, if that is so."
            )
        lowest = 0.0
        notes.append("taken for granted: no return can be below 0 (--lowest)")
    most = None
    if whole(first.returns) and float(lowest).is_integer() and (limit is not None or highest is not None):
        highest = lowest + float(limit or 0) if highest is None else highest
        most = max(1, int(highest - lowest))
    thresholds = bounds.thresholds
    if thresholds is None and highest is not None:
        thresholds = tuple(lowest + share * (highest - lowest) for share in (*SHARES, 1.0))
    _enough(episodes, most, bounds.alpha)
    found, _ = smoothed.play(episodes, "clean")
    certificate = certify(found.returns, smoothed.sigma, lowest=lowest, most=most, alpha=bounds.alpha)
    return certificate, thresholds or (), first, notes


def _enough(episodes: int, most: int | None, alpha: float) -> None:
    from upslope.diagnostics.smoothing import fewest

    if episodes < (least := fewest(most, alpha)):
        raise UsageError(
            f"certify: --episodes {episodes} cannot certify anything at --alpha {alpha:g}: take at least {least}, better 10000."
        )


def adversaries(smoothed: Smoothed, lessons: int, first: Found) -> dict[str, Attack]:
    """Those that are the same for every budget: `attacks`, and "learned" from `lessons` episodes."""
    length = max(episode.length for episode in first.episodes)
    fixed = attacks(smoothed.policy, smoothed.sigma, length, first.seen)
    lesson = smoothed.lesson(lessons, first.seen.std(0))
    return {**fixed, "learned": lesson.attack(first.seen, length)}


def attacked(
    smoothed: Smoothed,
    budget: float,
    episodes: int,
    first: Found,
    fixed: Mapping[str, Attack],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """What `episodes` episodes earn under each attack: mean with its bootstrap interval, the least, the largest budget spent.

    "timed" is the candidate that hurts most in PILOT episodes of its own, played anew.
    """
    chosen = worst(smoothed, budget, first)
    about = f"aimed {chosen.aim}, {chosen.parts} strikes, log-odds above {chosen.threshold:.3g}"
    found: dict[str, dict[str, Any]] = {}
    for name, attack in {**fixed, "timed": chosen}.items():
        played, _ = smoothed.play(episodes, f"attack/{name}/{budget:g}", attack, budget)
        interval = bootstrap(played.returns[:, None], mean)
        found[name] = {
            "mean": interval.value,
            "low": interval.low,
            "high": interval.high,
            "least": float(played.returns.min()),
            "episodes": len(played.returns),
            "spent": played.spent,
            "about": about if name == "timed" else "",
            "returns": played.returns,
        }
        say(f"{name} within {budget:g}: {interval.value:.4g}")
    return found


def worst(smoothed: Smoothed, budget: float, first: Found) -> Gradient:
    """The candidate under which PILOT episodes earn least."""
    length = max(episode.length for episode in first.episodes)
    candidates = timed(smoothed.policy, smoothed.sigma, length, first.seen)
    means = [smoothed.play(PILOT, "pilot", one, budget)[0].returns.mean() for one in candidates]
    return candidates[int(np.argmin(means))]
