"""DPO steps against TRL's DPOTrainer: python benchmarks/pairs.py [--pairs 5]

One process each, in turn: python benchmarks/pairs.py --side {upslope,trl} --shape PROMPT_TOKENS ANSWER_TOKENS [--log], which
prints one JSON line: seconds of each step after the first, peak memory above that of the imported libraries, in MB, and with
--log the loss and the gradient's norm of every step.

Both get the same model, reference model, pairs in the same order, optimizer and precision; a step is one micro-batch of 8 pairs,
with the reference's log-probs computed in it. Before anything is timed, losses and gradient norms of the first steps must agree.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile

import torch
from child import measured
from step import clock, peak, tiny_llama, word_tokenizer

SHAPES = ((16, 64, None), (256, 64, 1.6), (512, 64, None), (512, 8, None))
"""Tokens of a prompt, and of each of its two answers with the end token; by how many times a step is meant to be faster."""
PAIRS, LR, GATE_STEPS, TOLERANCE = 8, 1e-3, 5, 1e-4
"""Pairs of a step; learning rate; steps whose losses are compared, and how far they may be apart, relative."""


def steps_of(prompt: int) -> int:
    """Steps per process: more of the short ones, whose times scatter more."""
    return 13 if prompt < 64 else 5


def pairs_of(prompt: int, answer: int, steps: int) -> list[dict[str, str]]:
    """Random words; prompts of `prompt` tokens, answers of `answer` tokens with the end token."""
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(2, 1024, (length,), generator=generator).tolist())

    def one() -> dict[str, str]:
        return {"prompt": words(prompt), "chosen": " " + words(answer - 1), "rejected": " " + words(answer - 1)}

    return [one() for _ in range(PAIRS * steps)]


def run_upslope(rows: list[dict[str, str]], steps: int) -> dict:
    """Memory after the imports, in MB, seconds per step, losses and gradient norms."""
    from upslope.policies.language import LanguagePolicy
    from upslope.prompts import PromptStream
    from upslope.rollout import Example
    from upslope.tasks.completions import Completion, CompletionData
    from upslope.trainer import Trainer

    start = peak()
    places = PromptStream(rows, seed=0).places(0, len(rows))
    examples: list[Example] = [Example("", "")] * len(rows)
    for row, place in zip(rows, places, strict=True):  # so that the trainer draws them in the order of the rows
        given = (Completion(row["chosen"], 1.0), Completion(row["rejected"], 0.0))
        examples[place] = Example(str(place), row["prompt"], {"completions": given})
    trainer = Trainer(
        "dpo", model=LanguagePolicy(tiny_llama(), word_tokenizer()), steps=steps,
        task=CompletionData("pairs", "pairs", {"train": examples, "eval": []}),
        prompts_per_step=PAIRS, optimizer={"lr": LR}, eval={"every": 0, "prompts": 0},
    )  # fmt: skip
    trained = trainer.train().rows[1:]
    return {
        "before": start,
        "seconds": [row["time/total"] - row.get("time/eval", 0.0) for row in trained[1:]],
        "loss": [row["loss"] for row in trained],
        "grad_norm": [row["grad_norm"] for row in trained],
    }


def run_trl(rows: list[dict[str, str]], steps: int, log: bool) -> dict:
    """The same by TRL's DPOTrainer; losses only with `log`, as its log costs time."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    start = peak()
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=steps, learning_rate=LR, beta=0.1,
            lr_scheduler_type="constant", train_sampling_strategy="sequential", report_to="none", save_strategy="no",
            logging_strategy="steps" if log else "no", logging_steps=1, disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = DPOTrainer(
            tiny_llama(),
            ref_model=tiny_llama(),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=word_tokenizer(),
            callbacks=[clock(stamps)],
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "before": start,
        "seconds": [b - a for a, b in itertools.pairwise(stamps[1:])],
        "loss": [float(entry["loss"]) for entry in logged],
        "grad_norm": [float(entry["grad_norm"]) for entry in logged],
    }


def side(name: str, prompt: int, answer: int, *options: str) -> dict:
    """One process of this file."""
    return measured("pairs.py", "--side", name, "--shape", prompt, answer, *options)


def gate(prompt: int, answer: int) -> float:
    """Largest relative difference of losses and gradient norms over the first steps. Exits where they are not the same."""
    ours, theirs = (side(name, prompt, answer, "--log") for name in ("upslope", "trl"))
    worst = 0.0
    for name in ("loss", "grad_norm"):
        if len(ours[name]) != GATE_STEPS or len(theirs[name]) != GATE_STEPS:
            sys.exit(
                f"{prompt} + {answer}: {len(ours[name])} and {len(theirs[name])} values of {name}, not {GATE_STEPS}"
            )
        for step, (one, other) in enumerate(zip(ours[name], theirs[name], strict=True)):
            worst = max(worst, abs(one - other) / abs(other))
            if not worst <= TOLERANCE:
                sys.exit(
                    f"{prompt} + {answer}: {name} of step {step + 1} is {one} here and {other} in TRL: nothing was timed"
                )
    if not abs(ours["loss"][-1] - ours["loss"][0]) > 10 * TOLERANCE:
        sys.exit(f"{prompt} + {answer}: the loss did not move, so that it is the same says nothing: {ours['loss']}")
    return worst


def against_trl_on_pairs(pairs: int) -> list[str]:
    """Rows of the table: ratio of step times, each the median of a pair's, and of peak memory above the imports.

    Where there is no target, three pairs of processes do.
    """
    lines = [
        "| prompt + answer tokens | step time, TRL / Upslope | of the pairs | target | peak memory, Upslope / TRL |",
        "|---|---|---|---|---|",
    ]
    for prompt, answer, _ in SHAPES:
        print(f"{prompt} + {answer}: losses and gradient norms agree to {gate(prompt, answer):.0e}", flush=True)
    for prompt, answer, target in SHAPES:
        ratios, memory = [], []
        for _ in range(pairs if target else min(pairs, 3)):
            ours, theirs = side("upslope", prompt, answer), side("trl", prompt, answer)
            ratios.append(statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"]))
            memory.append(ours["memory"] / theirs["memory"])
            print(f"{prompt} + {answer}: {ratios[-1]:.2f} times faster, {memory[-1]:.2f} of the memory", flush=True)
        spread, goal = f"{min(ratios):.1f} to {max(ratios):.1f}", "" if target is None else f"{target}"
        faster, share = statistics.median(ratios), statistics.median(memory)
        lines.append(f"| {prompt} + {answer} | **{faster:.2f}** | {spread} | {goal} | {share:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=("upslope", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--log", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is None:
        print("\n".join(against_trl_on_pairs(arguments.pairs)))
        return
    prompt, answer = arguments.shape
    steps = GATE_STEPS if arguments.log else steps_of(prompt)
    rows = pairs_of(prompt, answer, steps)
    found = run_upslope(rows, steps) if arguments.side == "upslope" else run_trl(rows, steps, arguments.log)
    print(json.dumps({**found, "memory": peak() - found["before"]}))


if __name__ == "__main__":
    main()
