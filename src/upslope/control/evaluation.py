"""Returns of a policy on episodes that nothing is learned from."""

from typing import Any

import numpy as np

from upslope.collect import seeded
from upslope.policies.control import ControlPolicy
from upslope.runs.statistics import bootstrap, mean
from upslope.tasks.environments import Environments, Episode


class Quota:
    """Which of the episodes that end are wanted, `count` in all: each copy has as many as the others, or one less, since the
    first to end would be the short ones.
    """

    def __init__(self, count: int, copies: int) -> None:
        self._left = np.full(copies, count // copies)
        self._left[: count % copies] += 1

    @property
    def open(self) -> bool:
        """Whether there are more to come."""
        return bool(self._left.any())

    def wants(self, episode: Episode) -> bool:
        """Whether this one counts; asked once for each that ends."""
        wanted = bool(self._left[episode.copy])
        self._left[episode.copy] -= wanted
        return wanted


def play_episodes(
    policy: ControlPolicy, environments: Environments, count: int, *, deterministic: bool = True, seed: int = 0
) -> list[Episode]:
    """`count` whole episodes, the same ones for every policy; each copy plays as many as the others, or one less."""
    environments.rewind()
    observation = environments.reset()
    quota = Quota(count, environments.count)
    generator = seeded(seed, "evaluation")
    found: list[Episode] = []
    while quota.open:
        action, _ = policy.act(observation, generator, deterministic)
        step = environments.step(action)
        found += filter(quota.wants, step.episodes)
        observation = step.observation
    environments.skip()
    return sorted(found, key=lambda episode: (episode.number, episode.copy))


def return_metrics(episodes: list[Episode]) -> dict[str, Any]:
    """eval/return, the mean, with its bootstrap interval over episodes; eval/length, eval/episodes."""
    totals = np.array([episode.total for episode in episodes])
    found = bootstrap(totals[:, None], mean)
    return {
        "eval/return": found.value,
        "eval/return_low": found.low,
        "eval/return_high": found.high,
        "eval/return_std": float(totals.std(ddof=1)) if len(totals) > 1 else 0.0,
        "eval/length": float(np.mean([episode.length for episode in episodes])),
        "eval/episodes": float(len(episodes)),
    }
