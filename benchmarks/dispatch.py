"""Giving orders to vehicles: OSPO beside PPO with a shared critic and beside rules, over seeds.

    python benchmarks/dispatch.py [--seeds 5] [--steps 60] [--episodes 20] [--fare 0.1] [--only ARM ...]

Every arm plays the same days of upslope/Dispatch-v0, and is evaluated on the same days afterwards: the likeliest assignment
of the trained policy, or the rule. Orders served, cells driven to an origin per order, and what all vehicles earned.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import upslope
from upslope.environments.dispatch import Dispatch
from upslope.parts.gae import GAE
from upslope.parts.normalize import NormalizedAdvantage
from upslope.parts.steps import StepUpdate
from upslope.parts.value import ClippedValue
from upslope.policies.assignment import assign
from upslope.recipe import Recipe
from upslope.runs.statistics import bootstrap, mean

Rule = Callable[[Dispatch, dict[str, np.ndarray]], np.ndarray]


def nearest(city: Dispatch, seen: dict[str, np.ndarray]) -> np.ndarray:
    """Orders, longest waiting first, each to the nearest vehicle that is still free."""
    action, cells, open_ = np.zeros(city.vehicles, dtype=np.int64), city.distances(), city.open()
    for order in np.argsort(-city.waited, kind="stable"):
        free = np.flatnonzero(open_[:, order] & (action == 0))
        if len(free):
            action[free[cells[free, order].argmin()]] = order + 1
    return action


def shortest(city: Dispatch, seen: dict[str, np.ndarray]) -> np.ndarray:
    """As many orders as can be taken in the step, with the fewest cells in sum."""
    return assign(-city.distances().astype(float), city.open())


def anything(city: Dispatch, seen: dict[str, np.ndarray]) -> np.ndarray:
    """As many orders as can be taken in the step, by any of those who can."""
    return assign(np.random.default_rng(city.time).random((city.vehicles, city.shown)), city.open())


def shared_critic() -> Recipe:
    """OSPO with a value: returns, GAE, one critic for all agents, advantages normalised in a mini-batch as in PPO."""
    return upslope.make("ospo").replace(
        name="shared_critic_ppo",
        critic=ClippedValue(clip=None),
        advantage=GAE(gamma=0.99, lam=0.95, whiten=False),
        control=NormalizedAdvantage(),
        regularizer=upslope.make("a2c", coefficient=0.05).regularizer,
        surrogate=upslope.make("ppo").surrogate,
        update=StepUpdate(epochs=10, minibatches=1, value_coefficient=None),
    )


ARMS: dict[str, Callable[[], Recipe]] = {
    "ospo": lambda: upslope.make("ospo"),
    "ospo, fairness=0": lambda: upslope.make("ospo", fairness=0.0),
    "ospo, choice=agents": lambda: upslope.make("ospo", choice="agents"),
    "ospo@grpo": lambda: upslope.make("ospo@grpo"),
    "PPO, shared critic": shared_critic,
}
RULES: dict[str, Rule] = {"greedy nearest": nearest, "fewest cells (assignment)": shortest, "any": anything}


def evaluated(play: Rule, episodes: int, fare: float) -> tuple[float, float, float]:
    """Mean over days of orders served, cells to an origin per order, and earnings."""
    found = []
    for day in range(episodes):
        city = Dispatch(fare=fare)
        seen, info = city.reset(seed=10_000 + day)
        total, over = 0.0, False
        while not over:
            seen, reward, over, _, info = city.step(play(city, seen))
            total += reward
        found.append((info["served"], info["pickup"] / max(info["served"], 1), total))
    served, pickup, earned = (float(column) for column in np.mean(found, axis=0))
    return served, pickup, earned


def trained(recipe: Recipe, seed: int, steps: int, episodes: int, fare: float) -> tuple[float, float, float]:
    """The same of a policy after `steps` episodes of learning."""
    options = {
        "threads": 1,
        "eval": {"episodes": 0},
        "sinks": [],
        "self_checks": False,
        "task_settings": {"fare": fare},
    }
    with upslope.Trainer(recipe, task="upslope/Dispatch-v0", steps=steps, seed=seed, **options) as trainer:
        trainer.train()
        policy = trainer.parts.policy
        return evaluated(lambda city, seen: policy.predict(seen, deterministic=True)[0], episodes, fare)


def row(name: str, seeds: list[tuple[float, float, float]]) -> str:
    """A line of the table: means over seeds with their bootstrap interval."""
    cells = []
    for column in np.array(seeds).T:
        found = bootstrap(column[:, None], mean)
        interval = "" if len(seeds) == 1 else f" [{found.low:.2f}, {found.high:.2f}]"
        cells.append(f"{found.value:.2f}{interval}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--fare", type=float, default=0.1, help="what a cell of the trip earns")
    parser.add_argument("--only", nargs="*", default=None)
    arguments = parser.parse_args()
    days = (arguments.episodes, arguments.fare)
    print("| | orders served | cells to an origin | earned |\n|---|---|---|---|")
    for name, rule in RULES.items():
        print(row(name, [evaluated(rule, *days)]), flush=True)
    for name, make in ARMS.items():
        if arguments.only is None or name in arguments.only:
            begun = time.process_time()
            seeds = [trained(make(), seed, arguments.steps, *days) for seed in range(arguments.seeds)]
            print(row(name, seeds), f"{(time.process_time() - begun) / arguments.seeds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
