"""Methods on stock control, beside the known optimum: python benchmarks/inventory.py [--arms TEXT] [--runs DIR] [--out DIR]

One store, backlogged and with lost sales: HDPO, PPO and REINFORCE, the same number of simulated periods. Lot sizing and slippery
FrozenLake: PDPPO, the same with one critic, and PPO. Five seeds each; a run that is done is not run again. About ten minutes.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import upslope
from upslope.control.evaluation import play_episodes
from upslope.control.pathwise import simulate
from upslope.environments.frozen_lake import FrozenLake
from upslope.environments.inventory import StoreDynamics
from upslope.exact.stock import average_cost, least_costs
from upslope.runs.statistics import bootstrap, mean
from upslope.tasks.opening import open_environments

BACKLOG: dict[str, Any] = {}
LOST: dict[str, Any] = {"lead_time": 1, "lost_sales": True, "demand": "poisson"}
TRACES, PERIODS, SKIP = 1024, 130, 30
HDPO = {"rollout.environments": 512, "minibatches": 32, "schedule": "cosine", "lr": 1e-2}
CONTINUOUS = {"distribution": "squashed", "log_std_init": -1.0, "hidden": [32, 32], "normalize": True}
PPO = {
    **CONTINUOUS, "rollout.environments": 64, "rollout.steps": 50, "minibatches": 8, "epochs": 10, "lr": 1e-3,
}  # fmt: skip
REINFORCE = {**CONTINUOUS, "rollout.environments": 64, "rollout.episodes": 64, "lr": 3e-3}
EPISODES = {"rollout.episodes": 32, "rollout.environments": 32, "epochs": 10, "hidden": [64, 64], "normalize": True}
LAKE = {**EPISODES, "rollout.episodes": 128, "rollout.environments": 64, "normalize": False}
ONE = {"advantage.critics": "state", "critic.critics": "state"}
SHORT = {"rollout.environments": 64, "rollout.steps": 16, "normalize": False}
ROLLOUT = {"rollout.environments": 32, "rollout.steps": 50, "hidden": [64, 64], "normalize": True, "lr": 1e-3}


@dataclass(frozen=True)
class Arm:
    """One method on one task: `steps` of the run with these settings; `title` in the table."""

    name: str
    title: str
    method: str
    task: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    task_settings: dict[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("backlog-hdpo", "`hdpo`", "hdpo", "upslope/Inventory-v0", 16, HDPO, BACKLOG),
    Arm("backlog-longer", "`hdpo`, twice the periods", "hdpo", "upslope/Inventory-v0", 32, HDPO, BACKLOG),
    Arm("backlog-ppo", "`ppo@continuous`", "ppo@continuous", "upslope/Inventory-v0", 128, PPO, BACKLOG),
    Arm("backlog-reinforce", "`reinforce@control`", "reinforce@control", "upslope/Inventory-v0", 128, REINFORCE, BACKLOG),
    Arm("lost-hdpo", "`hdpo`", "hdpo", "upslope/Inventory-v0", 16, HDPO, LOST),
    Arm("lost-ppo", "`ppo@continuous`", "ppo@continuous", "upslope/Inventory-v0", 128, PPO, LOST),
    Arm("lost-reinforce", "`reinforce@control`", "reinforce@control", "upslope/Inventory-v0", 128, REINFORCE, LOST),
    Arm("lots-pdppo", "`pdppo`", "pdppo", "upslope/LotSizing-v0", 120, EPISODES),
    Arm("lots-one", "`pdppo`, V alone", "pdppo", "upslope/LotSizing-v0", 120, {**EPISODES, **ONE}),
    Arm("lots-ppo", "`ppo`", "ppo", "upslope/LotSizing-v0", 120, ROLLOUT),
    Arm("lake-pdppo", "`pdppo`", "pdppo", "upslope/FrozenLake-v0", 60, LAKE),
    Arm("lake-one", "`pdppo`, V alone", "pdppo", "upslope/FrozenLake-v0", 60, {**LAKE, **ONE}),
    Arm("lake-ppo", "`ppo`", "ppo", "upslope/FrozenLake-v0", 60, {**ROLLOUT, **SHORT}),
)  # fmt: skip


def run(arm: Arm, seed: int) -> dict[str, Any]:
    """Trains one arm with a seed; the curve of training returns and what the policy is worth at the end."""
    options: dict[str, Any] = {"threads": 1, "eval": {"episodes": 0}, "sinks": [], "self_checks": False}
    options |= {"task_settings": arm.task_settings, **arm.settings}
    with upslope.Trainer(arm.method, task=arm.task, steps=arm.steps, seed=seed, **options) as trainer:
        trainer.train()
        if trainer.step < arm.steps:
            raise SystemExit(f"{arm.name} was stopped after {trainer.step} steps; the next call begins it again.")
        policy = trainer.parts.policy
        rows = [row for row in trainer.rows if "return" in row]
        found = {"periods": rows[-1]["env_steps"], "returns": [row["return"] for row in rows]}
        if arm.task == "upslope/Inventory-v0":
            return found | {"excess": excess(policy, StoreDynamics(**arm.task_settings))}
        environments = open_environments(arm.task, 200, 12345)
        episodes = play_episodes(policy, environments, 400, deterministic=True)
        return found | {"value": float(np.mean([episode.total for episode in episodes]))}


@torch.no_grad()
def excess(policy: Any, store: StoreDynamics) -> float:
    """Cost per period in the long run. Where the best policy is known as one, its cost on the same demand is taken off, and
    what it costs exactly put on: so the demand's noise falls out.
    """
    generator = np.random.default_rng(12345)
    start = torch.from_numpy(np.stack([store.start(generator) for _ in range(TRACES)]))
    noise = torch.from_numpy(np.stack([store.noise(generator, PERIODS) for _ in range(TRACES)]))
    convention, spec = policy.convention, policy.actions

    def act(state: torch.Tensor) -> torch.Tensor:
        action = policy.distribution(state).mode()
        return torch.from_numpy(spec.to_environment(action.numpy(), convention))

    def cost(player: Any) -> float:
        return -float(simulate(store, player, start, noise).reward[:, SKIP:].mean())

    if store.lost_sales:
        return cost(act) / average_cost(store) - 1
    level = base_stock(store)[0]
    return cost(act) / cost(lambda state: (level - state.sum(-1, keepdim=True)).clamp(min=0)) - 1


def base_stock(store: StoreDynamics) -> tuple[float, float]:
    """The best base-stock level of a backlogged store with normal demand, and its cost per period (newsvendor)."""
    from scipy.stats import norm

    z = norm.ppf(store.penalty / (store.penalty + store.holding))
    spread = store.std * (store.lead_time + 1) ** 0.5
    return (store.lead_time + 1) * store.mean + spread * z, (store.holding + store.penalty) * spread * norm.pdf(z)


def table(arms: list[Arm], found: dict[str, list[dict[str, Any]]], head: str, value: Any) -> list[str]:
    """A row per arm: its figure over seeds with a bootstrap interval, the spread between seeds, every seed's."""
    lines = [
        f"| method | simulated steps | {head}, mean [95 %] | standard deviation over seeds | each seed |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        runs = found[arm.name]
        values = np.array([value(one) for one in runs])
        interval = bootstrap(values[:, None], mean)
        each = ", ".join(f"{one:.4g}" for one in values)
        steps = np.mean([one["periods"] for one in runs])
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        between = f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
        lines.append(f"| {arm.title} | {steps / 1000:.0f}k | {between} | {spread:.3g} | {each} |")
    return lines


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """docs/results/inventory.md, all its figures from the runs; what they mean stands in `READING`."""
    chosen = {name: [arm for arm in ARMS if arm.name.startswith(name)] for name in ("backlog", "lost", "lots", "lake")}
    backlog, lost = StoreDynamics(**BACKLOG), StoreDynamics(**LOST)
    lots = open_environments("upslope/LotSizing-v0", 1, 0).dynamics  # type: ignore[attr-defined]
    level, cost = base_stock(backlog)
    excess_of = lambda one: 100 * one["excess"]  # noqa: E731
    last = lambda one: float(np.mean(one["returns"][-10:]))  # noqa: E731
    best_lots = -float(least_costs(lots, 50)[:5].mean())
    seeds = max(len(runs) for runs in found.values())
    lines = [
        "# Stock control",
        "",
        f"Made by `python benchmarks/inventory.py`: {seeds} seeds, one thread each. Policies are measured with their likeliest "
        f"action: for stores on {TRACES} demand traces of {PERIODS} periods, the first {SKIP} left out; else over 400 episodes.",
        "",
        "## One store, backlogged",
        "",
        f"Demand N(5, 1.6), lead time 4, holding 1, penalty 9 (`upslope/Inventory-v0`). The best is to order up to {level:.4f}, at "
        f"{cost:.5f} per period. Cost above that, in per cent, against ordering up to {level:.4f} on the same demand:",
        "",
        *table(chosen["backlog"], found, "% above the optimum", excess_of),
        "",
        "## One store, lost sales",
        "",
        f"Demand Poisson(5), lead time 1. The least cost per period is {average_cost(lost):.5f}, by dynamic programming "
        "(`upslope.exact.stock`). Cost above that, in per cent; the demand's own noise is in it, about half a per cent:",
        "",
        *table(chosen["lost"], found, "% above the optimum", excess_of),
        "",
        "## Lot sizing with post-decision states",
        "",
        "Poisson(5) demand, lost sales, 10 for any production, 0 to 20 units at once, 50 periods (`upslope/LotSizing-v0`). "
        f"The best expected return of an episode is {best_lots:.1f}, by dynamic programming. Returns at the end:",
        "",
        *table(chosen["lots"], found, "return of the likeliest action", lambda one: one["value"]),
        "",
        "The same while training, with exploration, mean over the last ten updates:",
        "",
        *table(chosen["lots"], found, "training return", last),
        "",
        "## Slippery FrozenLake with the intended cell as post-decision state",
        "",
        "`upslope/FrozenLake-v0`, 4 x 4, at most 100 steps; the best policy reaches the goal in "
        f"{lake_optimum():.3f} of the episodes.",
        "",
        *table(chosen["lake"], found, "share at the goal, likeliest action", lambda one: one["value"]),
        "",
        READING,
    ]
    return "\n".join(lines).rstrip() + "\n"


READING = """## What it says

- **HDPO** is within 1 % of the known optimum in all five seeds after 819k simulated periods, which are 1,024 updates on 16
  traces each; after 410k it is 1 to 4 % above. PPO and REINFORCE are far from it at 410k. They are not tuned further than
  what stands at the top of the script (nor is HDPO, whose learning rate was tried at 3e-3 and 1e-2 on another seed): their
  actions are a squashed Gaussian over all orders from 0 to 40, and much of what they play early on is backlogs and stocks of
  hundreds. Settings exist that serve them better; these were the first that were tried.
- **With lost sales** HDPO is 0.6 to 1.1 % above the least cost of dynamic programming, the demand's noise included. PPO's
  likeliest order is far too large there.
- **PDPPO is not better than PPO here.** In lot sizing the same recipe with V alone, which is PPO with a baseline on
  normalised returns, earns more while training (the intervals do not overlap) and at the end, and `ppo` as much as PDPPO or
  more; on FrozenLake `ppo` does, from fewer actions. Its advantage lets one expect that: V^x of stock plus order knows the
  action, so with good critics the mean of A given an action is max(0, Q - V), which is less to learn from than Q - V; and of
  two critics only the smaller one learns. The authors' lot sizing has several items and machines, and 60 epochs an update
  where these runs have 10, and their PPO is that of their own code.
- Five seeds say little about differences of a standard deviation between seeds. None of the methods for discrete actions is
  near the optimum of lot sizing in most seeds after 192k actions."""


def lake_optimum(steps: int = 100) -> float:
    """The chance that the best policy reaches FrozenLake's goal within `steps`, by dynamic programming over its own table."""
    table = FrozenLake().P
    value = np.zeros(len(table))
    for _ in range(steps):
        value = np.array(
            [
                max(sum(p * (r + (0 if done else value[to])) for p, to, r, done in moves) for moves in actions.values())
                for actions in table.values()
            ]
        )
    return float(value[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="", help="only arms whose name has this in it, e.g. backlog or pdppo")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/inventory"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    complete = True
    for seed in range(1, arguments.seeds + 1):
        for arm in ARMS:
            kept = arguments.runs / f"{arm.name}-{seed}.json"
            if not kept.exists() and arguments.arms not in arm.name:
                complete = False
                continue
            if not kept.exists():
                kept.write_text(json.dumps(run(arm, seed)))
                print(f"{kept.stem} is done", flush=True)
            found.setdefault(arm.name, []).append(json.loads(kept.read_text()))
    if complete:
        (arguments.out / "inventory.md").write_text(page(found))
        print(f"wrote {arguments.out / 'inventory.md'}")


if __name__ == "__main__":
    main()
