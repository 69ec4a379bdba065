"""Learning from a teacher: python benchmarks/teachers.py [--seeds 5] [--runs DIR] [--out docs/results]

The embedded model (pass@1 about 0.3 on sums) learns from its stronger sibling, tiny-teacher. Every method has the teacher score,
or write, as many tokens: which makes most of them, and which comes to be better than the teacher?
"""

import json
from pathlib import Path

import numpy as np
from arms import compare, course, jobs_of, parse, publish

from upslope.collect import seeded
from upslope.compare import Job
from upslope.engines.local import LocalEngine
from upslope.policies.language import LanguagePolicy
from upslope.rollout import Sampling
from upslope.runs.metrics import read_metrics
from upslope.tasks.base import open_task

TEACHER, TASK, STEPS, PROMPTS, GROUP, LENGTH = "tiny-teacher", "chain_sum", 60, 16, 4, 8
SHARED = ("eval.prompts=128", "eval.samples=8", "eval.every=5", "optimizer.lr=1e-4", "optimizer.warmup=5")
SHARED += (f"max_tokens={LENGTH}", "self_checks=false", "sinks=[]", "checkpoint_every=0")
ON_POLICY = ("opd", "vopd", "gkd:rollout.reference_rows=0", "scope_opd", "g_opd")
SEQKD = "seqkd"
LABELS = (*ON_POLICY, SEQKD)


def make_data(teacher: str, path: Path) -> None:
    """One completion of the teacher for each of as many prompts as the other methods have completions."""
    policy = LanguagePolicy.load(teacher)
    with open_task(TASK, for_model="tiny") as task, open(path, "w", encoding="utf-8") as file:
        examples = task.examples("train")[: STEPS * PROMPTS * GROUP]
        ids = [policy.encode(example.prompt) for example in examples]
        rollouts = LocalEngine(policy).generate(ids, [1] * len(ids), Sampling(LENGTH), seeded("teacher's completions"))
        for prompt, text in zip(rollouts.prompt.tolist(), rollouts.text, strict=True):
            if text.strip():
                file.write(json.dumps({"prompt": examples[prompt].prompt, "completion": text}) + "\n")


def score_of(teacher: str) -> float:
    """The teacher's own pass@1 on held-out prompts."""
    policy = LanguagePolicy.load(teacher)
    with open_task(TASK, for_model="tiny", eval_size=200) as task:
        examples = task.examples("eval")
        rollouts = LocalEngine(policy).generate(
            [policy.encode(e.prompt) for e in examples], [8] * len(examples), Sampling(LENGTH), seeded("teacher")
        )
        outcomes = task.judge.score([examples[index] for index in rollouts.prompt.tolist()], rollouts.text)
    return float(np.mean([outcome.value == 1.0 for outcome in outcomes]))


def points(job: Job) -> list[tuple[float, float]]:
    """(tokens that the teacher has scored or written so far, pass@1)."""
    rows = read_metrics(job.folder / "metrics.jsonl")
    spent = np.cumsum([row.get("tokens", 0.0) for row in rows])
    at = {row["step"]: tokens for row, tokens in zip(rows, spent, strict=True)}
    return [(at[step], value) for step, value in course(job, "eval/pass@1")]


def main() -> None:
    arguments = parse(__doc__ or "", "teachers")
    data = arguments.runs / "teacher.jsonl"
    if not data.exists():
        make_data(TEACHER, data)
    shared = {"steps": STEPS, "seeds": arguments.seeds}
    sampled = (*SHARED, f"prompts_per_step={PROMPTS}", f"group_size={GROUP}")
    teacher = ("--task", TASK, "--teacher", TEACHER)
    compare(ON_POLICY, arguments.runs / "out", **shared, options=teacher, settings=sampled)
    given = (*SHARED, f"prompts_per_step={PROMPTS * GROUP}")
    compare([SEQKD], arguments.runs / "out", **shared, options=("--task", TASK, "--data", str(data)), settings=given)
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for job in jobs_of(LABELS, arguments.runs / "out", **shared):
        found.setdefault(job.label, {})[job.seed] = points(job)
    values = {
        label: {seed: [of[-1][1], max(value for _, value in of), of[-1][0] / 1000] for seed, of in by_seed.items()}
        for label, by_seed in found.items()
    }
    setup = f"""{STEPS} steps of {PROMPTS} prompts with {GROUP} completions each (`seqkd`: {PROMPTS * GROUP} completions of the
    teacher), AdamW at 1e-4, {arguments.seeds} seeds. The teacher itself has pass@1 {score_of(TEACHER):.3f}. pass@1
    on 128 held-out sums with 8 samples each, at the end and at the best of the evaluations (every 5 steps), and
    thousands of tokens that the teacher scored or wrote. Interquartile mean [95 % interval], differences paired by
    seed. Only `scope_opd` has a verifier, too."""
    figures = ("pass@1", "best pass@1", "teacher tokens / 1000")
    axes = {
        "x": "tokens that the teacher scored or wrote",
        "y": "held-out pass@1",
        "title": "A teacher's tokens, by method",
    }
    publish("teachers", __doc__ or "", LABELS, setup, values, figures, found, axes, arguments.out)


if __name__ == "__main__":
    main()
