"""Learning studies over seeds, by claim: python benchmarks/studies.py [NAME ...] [--seeds 5] [--runs DIR] [--out DIR]

Each arm of a study is one `upslope compare`, so the whole goes on where it was stopped. Every method of an arm gets the same
prompts, rollouts per step and learning rate; where a method samples more (DAPO), it is read at the budget of the others.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arms import compare, table
from readings import READINGS

from upslope.compare import Job, finished, plan_jobs
from upslope.runs.metrics import read_metrics

PROMPTS, GROUP = 16, 8
COMMON = (f"prompts_per_step={PROMPTS}", f"group_size={GROUP}", "eval.prompts=128", "eval.samples=8", "eval.every=20")
COMMON += ("optimizer.lr=1e-4", "optimizer.warmup=5", "self_checks=false", "sinks=[]", "checkpoint_every=0")
Rows = list[dict]


@dataclass(frozen=True)
class Arm:
    """One comparison: its name, task, steps, and further settings of every run. `model` may be another arm's run."""

    name: str
    task: str = "chain_sum"
    steps: int = 80
    settings: tuple[str, ...] = ("max_tokens=8",)
    model: str = "tiny"


@dataclass(frozen=True)
class Study:
    """A question, the methods that claim something about it (the first is the baseline), and the figures that answer it."""

    question: str
    methods: tuple[str, ...]
    arms: tuple[Arm, ...]
    figures: tuple[str, ...]
    curves: tuple[str, ...] = ()


WARM = Arm("warm", steps=150)
EASY = "runs of `warm`"
SINGLE = f"spo_single_stream:group_size=1,prompts_per_step={PROMPTS * GROUP}"
STUDIES = {
    "first": Study(
        "The first methods on one task, with their published settings and one update per step.",
        ("grpo", "reinforce", "rloo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "reinforce_pp_baseline", "ppo_llm"),
        (Arm("chain_sum", settings=("max_tokens=8", "minibatches=1", "epochs=1")),),
        ("pass@1", "pass@8", "entropy", "rollouts"),
    ),
    "entropy": Study(
        "Do methods that mean to keep entropy keep it, and what does that do to pass@1 and pass@8? Four updates per step.",
        (
            "grpo:regularizer=none", "clip_cov", "clip_cov:control.share=0.02,cov_low=0.2", "kl_cov", "kl_cov:control.share=0.02",
            "aepo_arbitrary", "epo_agent", "lp_reg", "high_entropy_20",
        ),
        (Arm("leg_counting", task="leg_counting", steps=120, settings=("max_tokens=16", "minibatches=4", "epochs=1")),),
        ("pass@1", "pass@8", "entropy", "rollouts"),
        ("entropy", "pass@1", "pass@8"),
    ),
    "stale": Study(
        "Do methods for stale data bear more updates per rollout than PPO's clip (here dr_grpo)?",
        ("dr_grpo", "topr", "bapo_balanced", "r2vpo", "remix", "cispo", "gspo"),
        (
            Arm("1-update", steps=40, settings=("max_tokens=8", "minibatches=1", "epochs=1")),
            Arm("4-updates", steps=40, settings=("max_tokens=8", "minibatches=4", "epochs=1")),
            Arm("16-updates", steps=40, settings=("max_tokens=8", "minibatches=4", "epochs=4")),
        ),
        ("pass@1", "best pass@1", "entropy"),
    ),
    "degenerate": Study(
        "Where nearly all groups have equal rewards: do methods that use such groups learn more from the same rollouts?",
        ("grpo", "copo", "riskpo", "bnpo", "dapo", SINGLE),
        (
            Arm("very-easy", settings=("max_tokens=8", "minibatches=1", "epochs=1"), model=EASY),
            Arm(
                "very-hard",
                settings=(
                    "max_tokens=8", "minibatches=1", "epochs=1", "task_settings.min_terms=3", "task_settings.max_terms=3",
                ),
            ),
        ),
        ("pass@1", "pass@8", "zero variance", "rollouts"),
    ),
    "length": Study(
        "Length and difficulty bias: correctness, length of completions, and pass@8, on answers of differing length.",
        ("grpo", "dr_grpo", "disco", "hapo", "gtpo_trajectory"),
        (Arm("spell_backward", task="spell_backward", settings=("max_tokens=16", "minibatches=4", "epochs=1")),),
        ("pass@1", "pass@8", "length", "entropy"),
    ),
    "aggressive": Study(
        "At ten times the learning rate, do methods that watch their own steps hold where GRPO breaks?",
        ("grpo", "capo_curvature", "oblr_po", "grpo:optimizer.lr=1e-4"),
        (
            Arm(
                "lr-1e-3",
                steps=60,
                settings=("max_tokens=8", "minibatches=1", "epochs=1", "optimizer.lr=1e-3"),
            ),
        ),
        ("pass@1", "best pass@1", "entropy"),
    ),
}  # fmt: skip


def at_budget(rows: Rows, budget: float, name: str) -> float:
    """The last value of an evaluation at which no more than `budget` rollouts had been sampled."""
    used, value = 0.0, float("nan")
    for row in rows:
        used += row.get("rollouts", 0.0)
        if name in row and used <= budget * (1 + 1e-9):
            value = float(row[name])
    return value


def late(rows: Rows, budget: float, name: str) -> float:
    """Mean of a training metric over the last tenth of the steps."""
    values = [row[name] for row in rows if row.get(name) is not None and row["step"] > 0]
    return float(np.mean(values[-max(1, len(values) // 10) :])) if values else float("nan")


FIGURES: dict[str, Callable[[Rows, float], float]] = {
    "pass@1": lambda rows, budget: at_budget(rows, budget, "eval/pass@1"),
    "pass@8": lambda rows, budget: at_budget(rows, budget, "eval/pass@8"),
    "best pass@1": lambda rows, budget: max(row["eval/pass@1"] for row in rows if "eval/pass@1" in row),
    "entropy": lambda rows, budget: late(rows, budget, "entropy"),
    "length": lambda rows, budget: late(rows, budget, "length/mean"),
    "zero variance": lambda rows, budget: late(rows, budget, "groups/zero_variance"),
    "rollouts": lambda rows, budget: sum(row["rollouts"] for row in rows),
}
CURVES = {"entropy": "entropy", "pass@1": "eval/pass@1", "pass@8": "eval/pass@8"}


def rows_of(job: Job) -> Rows:
    """A run's metrics, with the rollouts of every step."""
    size = next((int(o.split("=")[1]) for o in job.overrides if o.startswith("group_size=")), GROUP)
    return [
        {**row, "rollouts": row.get("groups/sampled", 0.0) * size} for row in read_metrics(job.folder / "metrics.jsonl")
    ]


def run_arm(study: Study, arm: Arm, folder: Path, seeds: int) -> int:
    """Trains what is not trained yet; the exit status of `upslope compare`."""
    model = arm.model
    if model == EASY:
        model = str(warm(folder.parent.parent))
    options = ("--task", arm.task, "--model", model)
    return compare(
        study.methods, folder, steps=arm.steps, seeds=seeds, options=options, settings=(*COMMON, *arm.settings)
    )


def warm(runs: Path) -> Path:
    """The checkpoint of a model that solves nearly all two-number sums, trained once: on it they are very easy prompts."""
    folder = runs / "warm"
    command = [
        sys.executable,
        "-m",
        "upslope",
        "train",
        "grpo",
        "--task",
        WARM.task,
        "--steps",
        str(WARM.steps),
        "--out",
        str(folder),
    ]
    for setting in (*COMMON, *WARM.settings, "prompts_per_step=32", "group_size=16"):
        command += ["--set", setting]
    if (folder / "config.yaml").exists():
        command += ["--resume"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return max((folder / "checkpoints").glob("step-*"))


def write(name: str, study: Study, runs: Path, seeds: int, out: Path) -> None:
    """docs/results/study_NAME.md: a table per arm, with intervals, and curves."""
    lines = [f"# Study: {name}", "", study.question, ""]
    lines += [
        f"Made by `make studies`: the embedded model, {seeds} seeds, {PROMPTS} prompts with {GROUP} completions a step,",
        "AdamW at 1e-4 where not said otherwise. Interquartile means over seeds with 95 % bootstrap intervals; differences from",
        "the first row are paired by seed. Evaluations are on 128 held-out prompts with 8 samples each; entropy, length and zero",
        "variance are means over the last tenth of the steps (entropy as the mean of -logp of sampled tokens, nats).",
    ]
    for arm in study.arms:
        jobs = [
            job for job in plan_jobs(study.methods, seeds, runs / name / arm.name) if finished(job.folder, arm.steps)
        ]
        lines += ["", f"## {arm.name}: {arm.task}, {arm.steps} steps", "", f"`{' '.join(arm.settings)}`", ""]
        lines += arm_table(study, arm, jobs)
        for curve in study.curves:
            lines += ["", f"Mean {curve} over the run:", "", *curve_table(study, arm, jobs, CURVES[curve])]
    if name in READINGS:
        lines += ["", "## Reading", "", READINGS[name]]
    (out / f"study_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def arm_table(study: Study, arm: Arm, jobs: Sequence[Job]) -> list[str]:
    """One row per method; figures with intervals, and the paired difference of the first figure."""
    budget = arm.steps * PROMPTS * GROUP
    values: dict[str, dict[int, list[float]]] = {}
    for job in jobs:
        rows = rows_of(job)
        values.setdefault(job.label, {})[job.seed] = [FIGURES[figure](rows, budget) for figure in study.figures]
    return table(study.methods, values, study.figures)


def curve_table(study: Study, arm: Arm, jobs: Sequence[Job], name: str) -> list[str]:
    """Means over seeds at up to six points of the run."""
    points = [round(arm.steps * share) for share in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
    lines = ["| method | " + " | ".join(f"step {point}" for point in points) + " |", "|---" * (len(points) + 1) + "|"]
    for method in study.methods:
        runs = [[row for row in rows_of(job) if row.get(name) is not None] for job in jobs if job.label == method]
        if runs:
            cells = [f"{np.mean([_near(rows, point)[name] for rows in runs]):.3f}" for point in points]
            lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def _near(rows: Rows, step: int) -> dict:
    return min(rows, key=lambda row: abs(row["step"] - step))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in STUDIES]
    if unknown:
        parser.error(f"no study {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    status = 0
    for name in arguments.names or STUDIES:
        study = STUDIES[name]
        for arm in study.arms:
            print(f"== {name}: {arm.name}", flush=True)
            status |= run_arm(study, arm, arguments.runs / name / arm.name, arguments.seeds)
        write(name, study, arguments.runs, arguments.seeds, arguments.out)
    return status


if __name__ == "__main__":
    sys.exit(main())
