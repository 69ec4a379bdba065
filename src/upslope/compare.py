"""Several methods over the same seeds and prompts: one process per run, as many at once as there are cores."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config import FREE_ON_RESUME, Config
from upslope.errors import UsageError
from upslope.parent import PARENT
from upslope.runs.config import changed_settings, is_free, read_config
from upslope.runs.files import write_atomic
from upslope.runs.metrics import read_metrics
from upslope.runs.signals import GracefulStop
from upslope.runs.statistics import Interval, bootstrap, interquartile_mean, paired_difference

METRIC = "eval/pass@1"
METRICS = (
    METRIC, "eval/return", "eval/reward", "eval/pairs/accuracy", "-eval/teacher/kl", "-eval/teacher/gap", "-eval/loss",
)  # fmt: skip
"""What runs are compared by: the first of these that all of them recorded. "-eval/loss" is the loss, its sign turned."""


@dataclass(frozen=True)
class Job:
    """One run of a comparison: `label` is the method with its settings, `overrides` those of train's --set."""

    label: str
    method: str
    overrides: tuple[str, ...]
    seed: int
    folder: Path


def parse_entry(entry: str) -> tuple[str, tuple[str, ...]]:
    """`grpo:ratio_high=1.28,beta=0` -> ("grpo", ("ratio_high=1.28", "beta=0"))."""
    method, _, settings = entry.partition(":")
    return method, tuple(part for part in settings.split(",") if part)


def plan_jobs(entries: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """Every entry with every seed, seed by seed, so that a comparison that is stopped early is balanced."""
    if len(set(entries)) < len(entries):
        raise UsageError(f"compare: an entry is named twice among {', '.join(entries)}.")
    if seeds < 1:
        raise UsageError(f"compare: --seeds is {seeds}; it must be at least 1.")
    jobs = []
    for seed in range(seeds):
        for entry in entries:
            method, overrides = parse_entry(entry)
            safe = "".join(c if c.isalnum() or c in "._-@=" else "-" for c in entry)
            jobs.append(Job(entry, method, overrides, seed, out / safe / f"seed-{seed}"))
    return jobs


def check_jobs(jobs: Sequence[Job], config_of: Callable[[Job], Config]) -> None:
    """Raises UsageError where a run is there already that was started with other settings than `config_of` wants now."""
    for job in jobs:
        if not (job.folder / "config.yaml").exists():
            continue
        wanted = config_of(job).to_dict()
        changes = changed_settings(read_config(job.folder / "config.yaml"), wanted, Config().to_dict())
        if "steps" in changes and changes["steps"][0] < wanted["steps"]:
            del changes["steps"]
        fixed = [name for name in changes if not is_free(name, FREE_ON_RESUME - {"steps"})]
        if fixed:
            listed = "; ".join(f"{name} was {changes[name][0]!r}, now {changes[name][1]!r}" for name in fixed)
            raise UsageError(f"compare: {job.folder} is of other settings: {listed}. Choose another --out.")


def run_jobs(
    jobs: Sequence[Job], options: Sequence[str], *, steps: int, parallel: int, threads: int, say: Any
) -> list[Job]:
    """Runs what has not trained `steps` steps yet, each in its own process; returns the jobs that failed.

    SIGINT and SIGTERM have every run finish its step and save; then this returns. Raises UsageError where a run says that
    its settings are wrong.
    """
    waiting = [job for job in jobs if not finished(job.folder, steps)]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already.")
    running: list[tuple[Job, subprocess.Popen]] = []
    failed: list[Job] = []
    done = len(jobs) - len(waiting)
    try:
        with GracefulStop() as stop:
            while (waiting or running) and not stop.requested:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running.append((job, _start(job, options, threads)))
                time.sleep(0.1)
                for job, process in [pair for pair in running if pair[1].poll() is not None]:
                    running.remove((job, process))
                    done += 1
                    say(f"{done}/{len(jobs)}  {_outcome(job, process.returncode)}")
                    if process.returncode:
                        failed.append(job)
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()
    return failed


def _outcome(job: Job, status: int) -> str:
    """What became of a run, in a line. Raises UsageError where its usage was wrong: the other runs would say the same."""
    who = f"{job.label} seed {job.seed}"
    if status == 2:
        raise UsageError(f"{who}: {_last_line(job.folder)}")
    return f"{who} failed: {_reason(job.folder)}" if status else f"{who}: {_told(job.folder)}"


def _told(folder: Path) -> str:
    metric = metric_of([folder])
    return f"{metric} {final(folder, metric):.3f}"


def metric_of(folders: Sequence[Path]) -> str:
    """The metric that these runs are compared by: the first of METRICS that all of them recorded."""
    return next(
        (metric for metric in METRICS if not any(np.isnan(final(folder, metric)) for folder in folders)), METRIC
    )


def _start(job: Job, options: Sequence[str], threads: int) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "upslope",
        "train",
        job.method,
        *options,
        "--seed",
        str(job.seed),
        "--out",
        str(job.folder),
    ]
    command += ["--resume"] if (job.folder / "config.yaml").exists() else []
    for override in (f"threads={threads}", *job.overrides):
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
    with open(job.folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which asks each run once to save and end
        )


def finished(folder: Path, steps: int) -> bool:
    """Whether the run in this folder has trained `steps` steps."""
    try:
        state = json.loads((folder / "status.json").read_text())["state"]
        return state == "finished" and int(read_config(folder / "config.yaml")["steps"]) >= steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def final(folder: Path, metric: str) -> float:
    """The last value of a metric, NaN where there is none."""
    values = [value for _, value in _course(folder, metric)]
    return values[-1] if values else float("nan")


def area(folder: Path, metric: str) -> float:
    """Mean of a metric over the run's evaluations by the trapezoid rule: how early it rises, not only how high."""
    pairs = _course(folder, metric)
    if len(pairs) < 2:
        return float("nan")
    steps, values = np.array(pairs, dtype=float).T
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def _course(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, with the sign turned where its name begins with "-"."""
    sign, name = (-1.0, metric[1:]) if metric.startswith("-") else (1.0, metric)
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], sign * float(row[name])) for row in rows if row.get(name) is not None]


def summarize(jobs: Sequence[Job], out: Path, task: str, steps: int) -> dict[str, Any]:
    """results.json: interquartile means over seeds with bootstrap intervals, and paired differences from the first entry."""
    labels = list(dict.fromkeys(job.label for job in jobs))
    usable = [job for job in jobs if finished(job.folder, steps)]
    metric = metric_of([job.folder for job in usable])
    methods: dict[str, Any] = {}
    finals: dict[str, dict[int, float]] = {}
    for label in labels:
        mine = [job for job in usable if job.label == label]
        finals[label] = {job.seed: final(job.folder, metric) for job in mine}
        if not mine:
            continue
        estimate = bootstrap(np.array(list(finals[label].values())), interquartile_mean)
        methods[label] = {
            **_interval(estimate, "iqm"),
            "final": list(finals[label].values()),
            "area": _interval(
                bootstrap(np.array([area(job.folder, metric) for job in mine]), interquartile_mean), "iqm"
            ),
            "seeds": [job.seed for job in mine],
            "runs": [str(job.folder.relative_to(out)) for job in mine],
        }
        shared = sorted(finals[label].keys() & finals[labels[0]].keys())
        if label != labels[0] and shared:
            x, y = (np.array([finals[which][seed] for seed in shared]) for which in (label, labels[0]))
            methods[label]["difference"] = {"from": labels[0], **_interval(paired_difference(x, y), "mean")}
    results = {"task": task, "metric": metric, "steps": steps, "methods": methods}
    write_atomic(out / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def _interval(found: Interval, name: str) -> dict[str, float]:
    return {name: found.value, "low": found.low, "high": found.high}


def _reason(folder: Path) -> str:
    """Why a run failed: as it noted itself, or its last words."""
    try:
        noted = json.loads((folder / "status.json").read_text())
        return noted["message"] if noted["state"] == "failed" else _last_line(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return _last_line(folder)


def _last_line(folder: Path) -> str:
    lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("upslope: ") if lines else "no output"
