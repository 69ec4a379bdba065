"""Make an embedded model in src/upslope/assets: training from scratch, measurement, model card.

    python scripts/make_tiny.py tiny            the model that is trained, and the tokenizer of both
    python scripts/make_tiny.py tiny-teacher    its stronger sibling: wider, deeper, and 80 % of its demonstrators are right

About 17 minutes for tiny on one core that multiplies bfloat16 in hardware (AVX512-BF16 or AMX), several times that on one
that does not. Equal options give equal weights on one machine; other machines and thread counts round differently.
"""

import argparse
import json
import os
from itertools import islice
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "src" / "upslope" / "assets"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="tiny", choices=["tiny", "tiny-teacher"])
    parser.add_argument(
        "--out", type=Path, default=ASSETS, help="folder for the model's folder (default: the shipped one)"
    )
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps; fewer make a weaker model sooner")
    parser.add_argument("--batch", type=int, default=96, help="questions per step, all tasks together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    # Before torch is imported: OpenMP reads it once.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch
    from tiny.card import write_card
    from tiny.demonstrators import RIGHT, TASKS
    from tiny.measure import measure
    from tiny.tokenizer import save_tokenizer, train_tokenizer
    from tiny.training import TRAINING_SEED, Plan, Size, entries, train
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    is_teacher, folder = options.name == "tiny-teacher", options.out / options.name
    if is_teacher:
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    else:
        texts = [e["question"] for task in TASKS for e in islice(entries(task, TRAINING_SEED, held_out=False), 1500)]
        tokenizer = train_tokenizer(texts)

    def report(step: int, seconds: float, losses: dict[str, float]) -> None:
        left = seconds / step * (options.steps - step)
        shown = "  ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
        print(f"step {step}/{options.steps}  {seconds:.0f} s, {left:.0f} s left  loss: {shown}", flush=True)

    size, right = (Size(192, 5), 0.8) if is_teacher else (Size(128, 4), RIGHT)
    plan = Plan(options.steps, options.batch, options.seed, size, right)
    model, seconds = train(tokenizer, plan, report)
    # The attention registered for training exists in this script alone.
    model.set_attn_implementation("sdpa")
    dtype = "bfloat16" if is_teacher else "float32"  # a teacher is only read, so half the bytes do
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    # safetensors makes it readable by its owner alone.
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)
    settings = {task: dict(recipe.settings) for task, recipe in TASKS.items()}
    (folder / "tasks.json").write_text(json.dumps(settings, indent=2) + "\n")

    # The folder as it was written is what gets measured.
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    measured = {}
    for task in TASKS:
        measured[task] = measure(written, tokenizer, task)
        print(f"{task}: {measured[task]}", flush=True)
    write_card(folder, written, plan, dtype, options.threads, seconds, measured)


if __name__ == "__main__":
    main()
