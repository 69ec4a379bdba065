"""A few demonstrations beside a verifier: python benchmarks/demonstrations.py [--seeds 5] [--runs DIR] [--out docs/results]

The embedded model spells words of three to five letters backward, mostly wrongly. Here it gets 200 longer words with their right
answers, and a verifier: which methods make most of both? Held out are 128 other words of six and seven letters.
"""

import json
import subprocess
import sys
from pathlib import Path

from arms import compare, course, jobs_of, parse, publish

from upslope.compare import Job
from upslope.tasks.base import open_task

WORDS, HELD_OUT, STEPS, PROMPTS, GROUP, LENGTH = 200, 128, 80, 16, 8, 16
SHARED = ("eval.prompts=128", "eval.samples=8", "eval.every=10", "optimizer.warmup=5", "self_checks=false", "sinks=[]")
SHARED += (f"prompts_per_step={PROMPTS}", f"max_tokens={LENGTH}", "optimizer.lr=1e-4", "checkpoint_every=0")
WHOLE_SUM = f"aggregate.scale={1 / LENGTH}"
SFT = "sft"
GRPO = f"grpo:group_size={GROUP}"
HYBRIDS = (
    "chord",
    "chord@phi",
    f"luffy:{WHOLE_SUM}",
    f"hpt:{WHOLE_SUM}",
    f"srft:{WHOLE_SUM}",
    f"rl_plus:{WHOLE_SUM}",
)
SAMPLING = (GRPO, *HYBRIDS)
TWO_STAGES = "sft, then grpo"
LABELS = (GRPO, SFT, TWO_STAGES, *HYBRIDS)


def make_data(folder: Path) -> None:
    """Questions with answers for training and for evaluation, from the two sides of the task's held-out rule."""
    settings = {"min_word_len": 6, "max_word_len": 7}
    with open_task("spell_backward", settings=settings, train_size=WORDS * 3, eval_size=HELD_OUT * 3) as task:
        for split, size in (("train", WORDS), ("eval", HELD_OUT)):
            rows = {e.prompt: {"prompt": e.prompt, "completion": e.data["answer"]} for e in task.examples(split)}
            with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
                for row in list(rows.values())[:size]:
                    file.write(json.dumps({**row, "answer": row["completion"]}) + "\n")


def run_all(runs: Path, seeds: int) -> None:
    """Sampling methods on the questions with the verifier, then imitation, then GRPO from where imitation ended."""
    verifier = ("--data", str(runs / "train.jsonl"), "--reward", "exact")
    questions = (*SHARED, f"task_settings.eval_data={runs / 'eval.jsonl'}")
    compare(SAMPLING, runs / "out", steps=STEPS, seeds=seeds, options=verifier, settings=questions)
    compare([SFT], runs / "out", steps=STEPS, seeds=seeds, options=verifier, settings=questions)
    compare([SFT], runs / "first", steps=STEPS // 2, seeds=seeds, options=verifier, settings=questions)
    for job in jobs_of([SFT], runs / "first", steps=STEPS // 2, seeds=seeds):
        folder = two_stages(runs, job.seed)
        if not (folder / "status.json").exists():
            start = max((job.folder / "checkpoints").glob("step-*"))
            words = [
                "--model",
                str(start),
                *verifier,
                "--steps",
                str(STEPS // 2),
                "--seed",
                str(job.seed),
                "--out",
                str(folder),
            ]
            words += [word for setting in (*questions, f"group_size={GROUP}") for word in ("--set", setting)]
            subprocess.run(
                [sys.executable, "-m", "upslope", "train", "grpo", *words], check=True, stdout=subprocess.DEVNULL
            )


def two_stages(runs: Path, seed: int) -> Path:
    return runs / "out" / "sft-then-grpo" / f"seed-{seed}"


def courses(runs: Path, seeds: int) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """pass@1 over steps by label and seed; the second stage's steps count on from the first's."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for job in jobs_of((*SAMPLING, SFT), runs / "out", steps=STEPS, seeds=seeds):
        found.setdefault(job.label, {})[job.seed] = course(job, "eval/pass@1")
    for job in jobs_of([SFT], runs / "first", steps=STEPS // 2, seeds=seeds):
        second = Job(TWO_STAGES, "grpo", (), job.seed, two_stages(runs, job.seed))
        later = [(step + STEPS // 2, value) for step, value in course(second, "eval/pass@1") if step]
        found.setdefault(TWO_STAGES, {})[job.seed] = [*course(job, "eval/pass@1"), *later]
    return found


def main() -> None:
    arguments = parse(__doc__ or "", "demonstrations")
    if not (arguments.runs / "eval.jsonl").exists():
        make_data(arguments.runs)
    run_all(arguments.runs, arguments.seeds)
    found = courses(arguments.runs, arguments.seeds)
    values = {label: {seed: [points[-1][1]] for seed, points in of.items()} for label, of in found.items()}
    setup = f"""{STEPS} steps of {PROMPTS} prompts with {GROUP} of the policy's completions each (chord and hpt: and the
    demonstration; luffy, srft, rl_plus: {GROUP - 1} and the demonstration), AdamW at 1e-4. `sft` takes {PROMPTS}
    demonstrations a step; `{TWO_STAGES}` spends half the steps on either. pass@1 on the held-out words with 8
    samples each, {arguments.seeds} seeds: interquartile mean [95 % interval], differences paired by seed."""
    axes = {"x": "step", "y": "held-out pass@1", "title": f"{WORDS} demonstrations beside a verifier"}
    publish("demonstrations", __doc__ or "", LABELS, setup, values, ("pass@1",), found, axes, arguments.out)


if __name__ == "__main__":
    main()
