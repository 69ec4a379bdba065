"""Speed of control beside Stable-Baselines3 and a plain loop, each part in turn in one run, one thread:

    python benchmarks/against_sb3.py [--only cartpole half_cheetah off_policy seeds buffer] [--pairs 5]

Part of `make bench` (ONLY=control). Ratios are those of wall time and of CPU time; on a machine with other work only the latter
say something. At most a quarter of an hour.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import off_policy
import on_policy
import torch
from child import ENVIRONMENT, measured

import upslope

CHEETAH, ROLLOUTS = "HalfCheetah-v5", 3
SEEDS, PARALLEL = 20, 2
CAPACITY = 1_000_000
Times = tuple[float, float]
"""Wall and CPU seconds."""


def clocked(work: Callable[[], object]) -> tuple[object, Times]:
    """What `work` returns, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, (time.perf_counter() - wall, time.process_time() - cpu)


def ratios(theirs: list[Times], mine: list[Times]) -> tuple[float, float]:
    """Medians of theirs over medians of mine: of wall time, of CPU time."""
    wall, cpu = (
        statistics.median(t[clock] for t in theirs) / statistics.median(t[clock] for t in mine) for clock in (0, 1)
    )
    return wall, cpu


def cart_pole(pairs: int) -> list[str]:
    """Time to a mean training return of 475 over 100 episodes, seeds from 1; a run that does not get there counts whole."""
    zoo = on_policy.SETUPS[1]
    peers: dict[str, tuple[Any, int]] = {
        "SB3": (on_policy.sb3, zoo.actions),
        "plain loop": (on_policy.by_loop, zoo.actions),
        "Upslope": (on_policy.ours, zoo.actions),
        "Upslope, ppo@fast": (on_policy.fast, zoo.fast_actions),
    }
    times: dict[str, list[Times]] = {name: [] for name in peers}
    actions: dict[str, list[Any]] = {name: [] for name in peers}
    for seed in range(1, pairs + 1):
        for name, (peer, budget) in peers.items():
            found, took = clocked(lambda peer=peer, budget=budget, seed=seed: peer(zoo.settings, budget, seed))
            times[name].append(took)
            actions[name].append(found)
            print(f"CartPole, seed {seed}: {name} {found} actions, {took[1]:.1f} s", file=sys.stderr, flush=True)
    lines = [
        "| | at the goal | actions, median | SB3's wall time / this | SB3's CPU time / this | target |",
        "|---|---|---|---|---|---|",
    ]
    for name, (_, budget) in peers.items():
        counts = [budget if count is None else count for count in actions[name]]
        there = sum(count is not None for count in actions[name])
        wall, cpu = ratios(times["SB3"], times[name])
        target = {"Upslope": "5", "Upslope, ppo@fast": "5"}.get(name, "")
        lines.append(
            f"| {name} | {there} of {pairs} | {statistics.median(counts) / 1000:.0f}k | **{wall:.1f}** | {cpu:.1f} | {target} |"
        )
    return lines


def half_cheetah(pairs: int) -> list[str]:
    """Actions per second of ppo@continuous, whose settings SB3 is given too, observations and rewards normalised."""

    def ours() -> None:
        options: dict[str, Any] = {"threads": 1, "eval": {"episodes": 0}, "sinks": []}
        with upslope.Trainer("ppo@continuous", task=CHEETAH, steps=ROLLOUTS, seed=1, **options) as trainer:
            trainer.train()

    def theirs() -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

        steps, batch, epochs = 2048, 64, 10
        environments = VecNormalize(make_vec_env(CHEETAH, 1, seed=1))
        model = PPO(
            "MlpPolicy", environments, n_steps=steps, batch_size=batch, n_epochs=epochs, learning_rate=lambda left: 3e-4 * left,
            clip_range_vf=0.2, ent_coef=0.0, vf_coef=0.25, seed=1, device="cpu",
        )  # fmt: skip
        model.learn(ROLLOUTS * steps)

    mine, others = list[Times](), list[Times]()
    for _ in range(pairs):
        mine.append(clocked(ours)[1])
        others.append(clocked(theirs)[1])
        print(f"HalfCheetah: {others[-1][1] / mine[-1][1]:.2f} of the CPU time", file=sys.stderr, flush=True)
    wall, cpu = ratios(others, mine)
    return [
        f"PPO on {CHEETAH} makes **{wall:.1f}** times SB3's steps per second of wall time, {cpu:.1f} times of CPU time (target 2).",
    ]


def replays(pairs: int) -> list[str]:
    """Milliseconds of CPU time for acting once and updating once."""
    lines = ["| method | width | batch | SB3 / Upslope | of the pairs | target |", "|---|---|---|---|---|---|"]
    for method in ("sac", "td3"):
        for width, batch in off_policy.SIZES:
            steps = 200 if width > 64 else 400
            found = [
                off_policy.theirs(method, width, batch, steps) / off_policy.ours(method, width, batch, steps)
                for _ in range(pairs)
            ]
            spread = f"{min(found):.2f} to {max(found):.2f}"
            target = "2" if width == 64 else "1.15"
            lines.append(f"| {method} | {width} | {batch} | **{statistics.median(found):.2f}** | {spread} | {target} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def seeds(_: int) -> list[str]:
    """One `upslope compare` of many seeds with two processes at once, and one with one."""

    def compare(parallel: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "upslope", "compare", "ppo@fast", "--task", "CartPole-v1", "--steps", "48"]
            command += ["--seeds", str(SEEDS), "--parallel", str(parallel), "--out", folder]
            command += ["--set", "self_checks=false", "--set", "eval.episodes=10"]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"})
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
            return time.perf_counter() - started

    together, alone = compare(PARALLEL), compare(1)
    return [
        f"`upslope compare ppo@fast --seeds {SEEDS} --parallel {PARALLEL}` has **{alone / together:.2f}** times the throughput of",
        "`--parallel 1` (target 1.7): whole processes, 98k actions in CartPole-v1 each, start-up and evaluations included.",
    ]


def buffer(_: int) -> list[str]:
    """Growth of a process's memory while a buffer fills."""
    found = measured("against_sb3.py", "--only", "fill")
    return [
        f"A replay buffer filled with {CAPACITY:,} transitions of {CHEETAH}, {found['width']} numbers each, takes",
        f"**{found['grown'] / found['arrays']:.3f}** times the {found['arrays'] / 1e6:.0f} MB of its arrays (target at most 1.05);",
        f"the arrays of SB3's buffer have {found['theirs'] / 1e6:.0f} MB.",
    ]


def fill() -> None:
    """Prints bytes of a buffer's arrays, by how much the process grew when they were filled, and SB3's arrays, as JSON."""
    import gymnasium
    from stable_baselines3.common.buffers import ReplayBuffer

    from upslope.actor_critic.replay import Layout, Replay

    one = gymnasium.make(CHEETAH)
    share = 1000
    peer = ReplayBuffer(share, one.observation_space, one.action_space, device="cpu")
    theirs = sum(value.nbytes for value in vars(peer).values() if isinstance(value, np.ndarray))
    layout = Layout(one.observation_space.shape[0], one.action_space.shape[0])
    rows = torch.ones(1000, layout.width)
    before = _resident()
    replay = Replay(CAPACITY, layout)
    for _ in range(CAPACITY // len(rows)):
        replay.add(rows)
    arrays = replay.rows.numel() * replay.rows.element_size()
    found = {
        "grown": _resident() - before,
        "arrays": arrays,
        "theirs": theirs * CAPACITY // share,
        "width": layout.width,
    }
    print(json.dumps(found))


def _resident() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


PARTS: dict[str, tuple[str, Callable[[int], list[str]]]] = {
    "cartpole": ("PPO on CartPole-v1, to a mean training return of 475", cart_pole),
    "half_cheetah": ("PPO on HalfCheetah-v5", half_cheetah),
    "off_policy": ("SAC and TD3 on Pendulum-v1", replays),
    "seeds": ("Many seeds", seeds),
    "buffer": ("Memory of a replay buffer", buffer),
}


def against_sb3(pairs: int, only: tuple[str, ...] = tuple(PARTS)) -> list[str]:
    """The lines of the parts named, under their titles."""
    if find_spec("stable_baselines3") is None:
        sys.exit("stable-baselines3 is not installed: pip install 'upslope[bench]'")
    torch.set_num_threads(1)
    on_policy.ours(on_policy.Settings(), 512, 0)  # imports
    lines = list[str]()
    for name in only:
        title, measure = PARTS[name]
        lines += [f"### {title}", "", *measure(pairs), ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "fill"], default=list(PARTS), help="parts to measure")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.only == ["fill"]:
        fill()
        return
    print("\n".join(against_sb3(arguments.pairs, tuple(arguments.only))))


if __name__ == "__main__":
    main()
