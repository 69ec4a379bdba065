"""PPO on CartPole-v1 beside Stable-Baselines3 and a plain loop: actions and CPU time to a mean return of 475, one thread.

    python benchmarks/on_policy.py            # needs: pip install stable-baselines3

The rule is the same for all: after a rollout, the last 100 training episodes have a mean return of at least 475. The peers take
turns, seed by seed. The ratio of times is that of CPU seconds per run, imports left out; medians over seeds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plain_ppo import Settings, actions_to

import upslope

TASK, GOAL = "CartPole-v1", 475.0


ZOO = Settings(8, 32, 1, 20, 1e-3, 0.98, 0.8, value_clip=None, entropy=0.0, value=1.0)


@dataclass(frozen=True)
class Setup:
    """Settings that all peers have in common, and how many actions a run has, at the end of which the rate is 0.

    `fast_actions`: of `ppo@fast`, with which Upslope is measured as well; 0: it is not.
    """

    title: str
    settings: Settings
    actions: int
    fast_actions: int = 0


SETUPS = (
    Setup("cleanrl's ppo.py, which are the defaults of `ppo`", Settings(), 500_000),
    Setup(
        "rl-zoo's for CartPole, its clip constant: 8 copies of 32 steps, 20 epochs of one mini-batch, lr 1e-3, gamma 0.98, "
        "lam 0.8, no entropy bonus, no clip of the value. ppo@fast: 64 copies of 32 steps, 4 epochs of 4 mini-batches, lr 4e-3",
        ZOO,
        100_000,
        200_000,
    ),
)


class ReachedError(Exception):
    """A run is at its goal."""


def ours(plain: Settings, actions: int, seed: int) -> int | None:
    """Actions to the goal."""
    settings: dict[str, Any] = {
        "rollout.environments": plain.environments,
        "rollout.steps": plain.steps,
        "minibatches": plain.minibatches,
        "epochs": plain.epochs,
        "lr": plain.lr,
        "gamma": plain.gamma,
        "lam": plain.lam,
        "critic.clip": plain.value_clip,
        "value_coefficient": plain.value,
    }
    settings |= {"regularizer": None} if plain.entropy == 0 else {"regularizer.coefficient": plain.entropy}
    return reached("ppo", settings, actions // (plain.environments * plain.steps), seed)


def fast(_: Settings, actions: int, seed: int) -> int | None:
    """The same of `ppo@fast`, whose settings are its own."""
    rollout: Any = upslope.make("ppo@fast").rollout
    return reached("ppo@fast", {}, actions // (rollout.environments * rollout.steps), seed)


def reached(method: str, settings: dict[str, Any], steps: int, seed: int) -> int | None:
    """Actions after which a run of so many steps is at its goal; None where it does not get there."""
    found: list[int] = []

    def seen(step: int, row: dict[str, Any]) -> None:
        if row.get("return", 0.0) >= GOAL:
            found.append(int(row["env_steps"]))
            raise ReachedError

    options: dict[str, Any] = {"threads": 1, "eval": {"episodes": 0}, "sinks": [], "on_row": seen}
    try:
        with upslope.Trainer(method, task=TASK, steps=steps, seed=seed, **options, **settings) as trainer:
            trainer.train()
    except ReachedError:
        return found[0]
    return None


def by_loop(settings: Settings, actions: int, seed: int) -> int | None:
    """The same of the plain loop."""
    return actions_to(GOAL, TASK, settings, actions, seed)


def sb3(s: Settings, actions: int, seed: int) -> int | None:
    """The same of Stable-Baselines3."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Watch(BaseCallback):
        found: int | None = None

        def _on_step(self) -> bool:
            return self.found is None

        def _on_rollout_end(self) -> None:
            episodes = self.model.ep_info_buffer
            if self.found is None and episodes and np.mean([episode["r"] for episode in episodes]) >= GOAL:
                self.found = self.num_timesteps

    watch = Watch()
    model = PPO(
        "MlpPolicy",
        make_vec_env(TASK, s.environments, seed=seed),
        n_steps=s.steps,
        batch_size=s.environments * s.steps // s.minibatches,
        n_epochs=s.epochs,
        learning_rate=lambda left: left * s.lr,
        gamma=s.gamma,
        gae_lambda=s.lam,
        clip_range=s.clip,
        clip_range_vf=s.value_clip,
        ent_coef=s.entropy,
        vf_coef=0.5 * s.value,  # its loss is the square, not half of it
        max_grad_norm=s.norm,
        seed=seed,
        device="cpu",
    )
    model.learn(actions, callback=watch)
    return watch.found


PEERS: dict[str, Callable[[Settings, int, int], int | None]] = {"Upslope": ours, "plain loop": by_loop, "SB3": sb3}


def measured(setup: Setup, seeds: int) -> dict[str, list[tuple[int | None, float]]]:
    """Actions to the goal and CPU seconds, by peer, one per seed."""
    runs = {name: (peer, setup.settings, setup.actions) for name, peer in PEERS.items()}
    if setup.fast_actions:
        runs["Upslope, ppo@fast"] = fast, setup.settings, setup.fast_actions
    found: dict[str, list[tuple[int | None, float]]] = {name: [] for name in runs}
    for seed in range(1, seeds + 1):
        for name, (peer, settings, budget) in runs.items():
            started = time.process_time()
            actions = peer(settings, budget, seed)
            found[name].append((actions, time.process_time() - started))
            print(f"seed {seed}: {name} {actions} {found[name][-1][1]:.1f} s", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[tuple[int | None, float]]], budget: int) -> list[str]:
    """A row for each peer. A run that did not get there counts as more actions than any, and with its whole time."""
    lines = [
        "| | runs at the goal | actions, median (all) | Upslope's actions / these | CPU s, median | these / Upslope's |"
    ]
    lines.append("|---|---|---|---|---|---|")
    medians = {}
    for name, runs in found.items():
        actions = statistics.median(budget if count is None else count for count, _ in runs)
        medians[name] = actions, statistics.median(seconds for _, seconds in runs)
    mine = medians["Upslope"]
    for name, (actions, seconds) in medians.items():
        every = ", ".join("-" if count is None else f"{count / 1000:.0f}k" for count, _ in found[name])
        there = sum(count is not None for count, _ in found[name])
        lines.append(
            f"| {name} | {there} of {len(found[name])} | {actions / 1000:.0f}k ({every}) | {mine[0] / actions:.2f} | "
            f"{seconds:.1f} | **{seconds / mine[1]:.1f}** |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=int, choices=range(len(SETUPS)), help="one of the settings")
    arguments = parser.parse_args()
    try:
        import stable_baselines3  # noqa: F401
    except ImportError:
        sys.exit("stable-baselines3 is not installed: pip install stable-baselines3")
    torch.set_num_threads(1)
    ours(Settings(), 512, 0)  # imports
    for index, setup in enumerate(SETUPS):
        if arguments.only in (None, index):
            found = measured(setup, arguments.seeds)
            print(f"\nSettings: {setup.title}. At most {setup.actions // 1000}k actions.\n")
            print("\n".join(table(found, setup.actions)), flush=True)


if __name__ == "__main__":
    main()
