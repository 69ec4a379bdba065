"""How many goals a policy still knows: PPO beside polychromic PPO in upslope/FourRooms-v0, after as many steps, over seeds.

    python benchmarks/polychromic.py [--seeds 5] [--budget 40000] [--goals 4] [--scratch] [--only ARM ...]

Every arm starts from the same policy, which has been shown the ways to all goals (or, with --scratch, from nothing).

The environment is deterministic, so the chance p_g that an episode ends in goal g is computed exactly, by carrying the
distribution over cells through the time limit. From it: pass@1, that an episode ends in any goal; pass@k where one goal alone
counts and is not told, averaged over goals; the goals that 32 episodes are expected to find. Steps of vines count as steps;
steps that are replayed to put a state back are told apart.
"""

import argparse
import time

import numpy as np
import torch

import upslope
from upslope.environments.four_rooms import FourRooms
from upslope.policies.control import ControlPolicy
from upslope.runs.statistics import bootstrap, mean

LIMIT = 60
COMMON = {"lr": 2.5e-4, "optimizer.schedule": "constant"}
ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "ppo": ("ppo", {}),
    "ppo, gamma 1": ("ppo", {"gamma": 1.0}),
    "ppo, gamma 1, entropy 0.05": ("ppo", {"gamma": 1.0, "regularizer.coefficient": 0.05}),
    "ppo, gamma 1, updates as polychromic": ("ppo", {"gamma": 1.0, "control": None, "regularizer": None, "epochs": 2}),
    "polychromic_ppo@control": ("polychromic_ppo@control", {}),
    "polychromic, gamma 1": ("polychromic_ppo@control", {"gamma": 1.0}),
    "polychromic, gamma 1, n = 1": ("polychromic_ppo@control", {"gamma": 1.0, "sets": 8, "size": 1}),
}


def shown(city: FourRooms, slips: float = 0.1) -> torch.Tensor:
    """What demonstrations do in each cell, [cells, 4]: the shortest ways to a goal drawn evenly, a tenth of the moves random."""
    cells = len(city.cells)
    total = np.full((cells, 4), 1e-6)
    for goal in city.goals:
        far = np.full(cells, np.inf)
        far[goal] = 0
        for _ in range(cells):
            far = np.minimum(far, 1 + far[city._next].min(1))
        best = far[city._next] == far[city._next].min(1, keepdims=True)
        moves = (1 - slips) * best / best.sum(1, keepdims=True) + slips / 4
        at = np.eye(cells)[city.start]
        for _ in range(LIMIT):
            total += at[:, None] * moves
            after = np.zeros(cells)
            np.add.at(after, city._next, at[:, None] * moves)
            after[city.goals] = 0
            at = after
    return torch.from_numpy(total / total.sum(1, keepdims=True)).float()


def clone(policy: ControlPolicy, city: FourRooms) -> None:
    """Fits the policy to what was shown, in every cell alike."""
    wanted, seen = shown(city), torch.eye(len(city.cells))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        logits = policy.distribution(seen).logits  # type: ignore[attr-defined]
        (-(wanted * logits.log_softmax(-1)).sum(-1)).mean().backward()
        optimizer.step()
    for parameter in policy.parameters():
        parameter.grad = None


@torch.no_grad()
def chances(policy: ControlPolicy, city: FourRooms) -> np.ndarray:
    """p_g for every goal: the chance that an episode of the drawn policy ends there within the limit."""
    cells = len(city.cells)
    found = policy.distribution(torch.eye(cells))
    moves = found.logits.softmax(-1).double().numpy()  # type: ignore[attr-defined]
    step = np.zeros((cells, cells))
    for action in range(4):
        np.add.at(step, (np.arange(cells), city._next[:, action]), moves[:, action])
    step[city.goals] = np.eye(cells)[city.goals]
    at = np.eye(cells)[city.start]
    for _ in range(LIMIT):
        at = at @ step
    reached: np.ndarray = at[city.goals]
    return reached


def trained(
    method: str, settings: dict[str, object], seed: int, budget: int, goals: int, scratch: bool
) -> tuple[np.ndarray, float]:
    """p_g after `budget` steps of the environment, and the steps that were replayed for them."""
    options = {
        "threads": 1,
        "eval": {"episodes": 0},
        "sinks": [],
        "self_checks": False,
        "task_settings": {"goals": goals},
    }
    with upslope.Trainer(
        method, task="upslope/FourRooms-v0", steps=max(budget, 1), seed=seed, **options, **COMMON, **settings
    ) as trainer:
        if not scratch:
            clone(trainer.parts.policy, FourRooms(goals=goals))
        step, row = 0, {"env_steps": 0.0}
        while row["env_steps"] < budget:
            step += 1
            row, _ = trainer.parts.train_step(step)
        return chances(trainer.parts.policy, FourRooms(goals=goals)), float(row.get("replayed_steps", 0.0))


def figures(p: np.ndarray) -> list[float]:
    """pass@1 of any goal, pass@1, 8 and 32 of one goal that is not told, goals found by 32 episodes."""
    hidden = [float((1 - (1 - p) ** k).mean()) for k in (1, 8, 32)]
    return [float(p.sum()), *hidden, hidden[-1] * len(p)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=40_000)
    parser.add_argument("--goals", type=int, default=4)
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(ARMS))
    arguments = parser.parse_args()
    print("| | any goal, pass@1 | one goal, pass@1 | pass@8 | pass@32 | goals in 32 episodes | replayed |")
    print("|---|---|---|---|---|---|---|")
    if not arguments.scratch:
        start = [trained("ppo", {}, seed, 0, arguments.goals, False)[0] for seed in range(arguments.seeds)]
        print(
            "| before |",
            " | ".join(f"{x:.2f}" for x in np.mean([figures(p) for p in start], axis=0)),
            "| |",
            flush=True,
        )
    settings = (arguments.budget, arguments.goals, arguments.scratch)
    for name in arguments.only:
        begun = time.process_time()
        method, changed = ARMS[name]
        runs = [trained(method, changed, seed, *settings) for seed in range(arguments.seeds)]
        cells = []
        for column in np.array([figures(p) for p, _ in runs]).T:
            found = bootstrap(column[:, None], mean)
            cells.append(f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]")
        replayed = np.mean([count for _, count in runs])
        spent = (time.process_time() - begun) / arguments.seeds
        print(f"| {name} | {' | '.join(cells)} | {replayed:,.0f} |", f"{spent:.0f} s", flush=True)
        print(np.array([p for p, _ in runs]).round(2).tolist(), flush=True)


if __name__ == "__main__":
    main()
