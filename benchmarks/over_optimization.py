"""Over-optimization: python benchmarks/over_optimization.py [--seeds 5] [--runs DIR] [--out docs/results]

How far does a policy move from where it began, and what is it worth there? Preferences (pairs of right and wrong sums of the
embedded model) are the only lesson; what the pairs stand for, right answers to other sums, is only measured.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from arms import compare, jobs_of, parse, publish
from preferences import make_pairs

from upslope.collect import seeded
from upslope.engines.local import LocalEngine
from upslope.policies.language import LanguagePolicy
from upslope.policies.soup import average_models
from upslope.rollout import Sampling
from upslope.tasks.base import open_task

TASK, PAIRS, STEPS, EVERY, LENGTH, SAMPLES = "chain_sum", 600, 120, 20, 8, 4
SHARED = (
    "eval.prompts=128",
    "eval.samples=4",
    f"eval.every={STEPS}",
    "optimizer.warmup=5",
    "self_checks=false",
    "sinks=[]",
)
SHARED += (f"max_tokens={LENGTH}", f"checkpoint_every={EVERY}", "keep_checkpoints=100", "prompts_per_step=32")
PAIRED = (
    "dpo:optimizer.lr=3e-5",
    "rpo_sft:optimizer.lr=3e-5,beta=0.1,coefficient=0.2",
    "hypo_online_kl:optimizer.lr=3e-5,beta=0.1",
    "hypo_online_kl:optimizer.lr=3e-5,beta=0.1,coefficient=0.1",
)
REWARDED = ("rlhf_ppo",)
SALSA = "salsa"
LABELS = (*PAIRED, *REWARDED, SALSA)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def trained(run: Path, *arguments: str) -> Path:
    """The newest checkpoint of a run that is trained unless it is there."""
    if not (run / "status.json").exists():
        command = [sys.executable, "-m", "upslope", "train", *arguments, "--out", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return newest(run)


def run_all(runs: Path, seeds: int) -> None:
    """On the pairs; with a reward model of them; and with that and a soup of two models of their preferred answers."""
    pairs = str(runs / "pairs.jsonl")
    shared = {"steps": STEPS, "seeds": seeds}
    compare(PAIRED, runs / "out", **shared, options=("--task", TASK, "--data", pairs), settings=SHARED)
    learned = trained(
        runs / "rm", "rm", "--data", pairs, "--steps", "60", "--set", "prompts_per_step=32", "--set", "sinks=[]"
    )
    options = ("--task", TASK, "--reward-model", str(learned))
    compare(REWARDED, runs / "out", **shared, options=options, settings=SHARED)
    sft = [
        trained(
            runs / f"sft-{seed}",
            "sft",
            "--data",
            pairs,
            "--steps",
            "20",
            "--seed",
            str(seed),
            "--set",
            "prompts_per_step=32",
        )
        for seed in (1, 2)
    ]
    if not (runs / "soup").exists():
        average_models([str(one) for one in sft], runs / "soup")
    options = (*options, "--teacher", str(runs / "soup"), "--model", str(sft[0]))
    compare([SALSA], runs / "out", **shared, options=options, settings=SHARED)


@torch.no_grad()
def point(checkpoint: Path, start: LanguagePolicy, task: object) -> tuple[float, float]:
    """(KL per completion from the embedded model, share of right answers) on held-out sums, from the policy's own samples."""
    policy = LanguagePolicy.load(str(checkpoint))
    examples = task.examples("eval")  # type: ignore[attr-defined]
    ids = [policy.encode(example.prompt) for example in examples]
    rollouts = LocalEngine(policy).generate(ids, [SAMPLES] * len(ids), Sampling(LENGTH), seeded("over-optimization"))
    theirs = start.score(rollouts, frozenset({"logp"}))["logp"]
    kl = ((rollouts.logp - theirs) * rollouts.mask).sum(1).mean()
    of_row = [examples[index] for index in rollouts.prompt.tolist()]
    outcomes = task.judge.score(of_row, rollouts.text)  # type: ignore[attr-defined]
    return float(kl), float(np.mean([outcome.value == 1.0 for outcome in outcomes]))


def courses(runs: Path, seeds: int) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """Points of every checkpoint, by label and seed; measured once and kept beside the run."""
    start = LanguagePolicy.load("tiny")
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    with open_task(TASK, for_model="tiny", eval_size=200) as task:
        for job in jobs_of(LABELS, runs / "out", steps=STEPS, seeds=seeds):
            kept = job.folder / "course.json"
            if not kept.exists():
                steps = sorted((job.folder / "checkpoints").glob("step-*"))
                kept.write_text(json.dumps([point(step, start, task) for step in steps]))
            found.setdefault(job.label, {})[job.seed] = json.loads(kept.read_text())
    return found


def main() -> None:
    arguments = parse(__doc__ or "", "over_optimization")
    if not (arguments.runs / "pairs.jsonl").exists():
        make_pairs(0.0, arguments.runs / "pairs.jsonl", PAIRS)
    run_all(arguments.runs, arguments.seeds)
    found = courses(arguments.runs, arguments.seeds)
    values = {
        label: {seed: [of[-1][1], of[-1][0], *max(of, key=lambda pair: pair[1])[::-1]] for seed, of in by_seed.items()}
        for label, by_seed in found.items()
    }
    setup = f"""{PAIRS} prompts; {STEPS} steps of 32 pairs, or of 32 completions scored by a reward model of the same pairs
    (`rlhf_ppo`, `salsa`), {arguments.seeds} seeds. KL is that of whole completions from the embedded model, in
    nats, measured with the true reward (share of right answers) on 200 held-out sums with {SAMPLES} samples each,
    every {EVERY} steps: at the end, and where the true reward was highest. Interquartile mean [95 % interval],
    differences paired by seed."""
    figures = ("true reward", "KL", "best true reward", "KL there")
    axes = {"x": "KL from the start, nats per completion", "y": "true reward", "title": "True reward over KL"}
    publish("over_optimization", __doc__ or "", LABELS, setup, values, figures, found, axes, arguments.out)


if __name__ == "__main__":
    main()
