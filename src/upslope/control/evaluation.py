"""Returns of a policy on episodes that nothing is learned from."""

from typing import Any

import numpy as np

from upslope.collect import seeded
from upslope.policies.control import ControlPolicy
from upslope.runs.statistics import bootstrap, mean
from upslope.tasks.environments import Environments, Episode


def play_episodes(
    policy: ControlPolicy, environments: Environments, count: int, *, deterministic: bool = True, seed: int = 0
) -> list[Episode]:
    """`count` whole episodes, the same ones for every policy; each copy plays as many as the others, or one less."""
    environments.rewind()
    observation = environments.reset()
    left = np.full(environments.count, count // environments.count)
    left[: count % environments.count] += 1
    generator = seeded(seed, "evaluation")
    found: list[Episode] = []
    while left.any():
        action, _ = policy.act(observation, generator, deterministic)
        step = environments.step(action)
        for episode in step.episodes:
            if left[episode.copy]:
                left[episode.copy] -= 1
                found.append(episode)
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
