"""Logs of five qualities of four environments, made at home: python benchmarks/offline_data.py [NAME ...] [--out DIR]

One training run of SAC per environment gives all five (`upslope data make --quality all`), with the returns of random actions and
of the expert. Two environments at a time; called again, it goes on where it was stopped.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SMALL = ("policy.hidden=[64,64]", "critic.hidden=[64,64]", "batch_size=128")
WIDER = (
    "policy.hidden=[128,128]",
    "critic.hidden=[128,128]",
    "batch_size=128",
    "update.actor_lr=1e-3",
    "update.critic_lr=1e-3",
)


@dataclass(frozen=True)
class Source:
    """An environment, how long SAC learns in it (steps, of which `checkpoints` are kept), and how many transitions a log has."""

    env: str
    steps: int
    checkpoints: int
    transitions: int
    settings: tuple[str, ...]


SOURCES = {
    "pendulum": Source(
        "Pendulum-v1",
        80,
        80,
        20_000,
        # many random actions first: so a medium-replay has more than a few episodes
        (*SMALL, "rollout.steps=250", "rollout.warmup=5000"),
    ),
    "pointmaze": Source(
        "upslope/PointMaze-v0",
        40,
        40,
        20_000,
        # rewards are small: a temperature of 1 would be most of what is learned from; slowly, so that a replay is of many policies
        (
            *SMALL,
            "rollout.steps=500",
            "rollout.warmup=8000",
            "temperature.initial=0.05",
            "actor_lr=1e-4",
            "critic_lr=1e-4",
        ),
    ),
    "hopper": Source("Hopper-v5", 200, 40, 50_000, WIDER),
    "cheetah": Source("HalfCheetah-v5", 150, 30, 50_000, WIDER),
}


def command(name: str, out: Path) -> list[str]:
    """The command that makes the logs of one environment, in out/NAME/QUALITY."""
    source = SOURCES[name]
    words = [sys.executable, "-m", "upslope", "data", "make", "--env", source.env, "--quality", "all"]
    words += ["--out", str(out / name), "--run", str(out / name / "run"), "--steps", str(source.steps)]
    words += ["--checkpoints", str(source.checkpoints), "--transitions", str(source.transitions)]
    for setting in (*source.settings, "sinks=[]", "threads=1"):
        words += ["--set", setting]
    return words


def make(names: list[str], out: Path, parallel: int) -> int:
    """Makes what is not there yet; the number of environments that failed. Each one's words are in out/NAME.txt."""
    out.mkdir(parents=True, exist_ok=True)
    waiting, failed = list(names), 0
    running: dict[str, tuple[subprocess.Popen, float]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while waiting or running:
        while waiting and len(running) < parallel:
            name = waiting.pop(0)
            with open(out / f"{name}.txt", "ab") as log:
                words = command(name, out)
                started = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running[name] = (started, time.time())
            print(f"{name}: {SOURCES[name].env} begins; see {out / name}.txt", flush=True)
        time.sleep(0.5)
        for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
            process, begun = running.pop(name)
            failed += process.returncode != 0
            outcome = f"failed: see {out / name}.txt" if process.returncode else "done"
            print(f"{name}: {outcome} ({(time.time() - begun) / 60:.1f} minutes)", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--out", type=Path, default=Path("runs/offline-data"))
    parser.add_argument("--parallel", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in SOURCES]:
        parser.error(f"no environment {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    # the longest first, so that none is left alone at the end
    failed = make(arguments.names or [*reversed(SOURCES)], arguments.out, arguments.parallel)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(used.ru_utime + used.ru_stime) / 60:.1f} minutes of CPU time")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
