"""Make the embedded model, src/upslope/assets/tiny: tokenizer, training from scratch, measurement, model card.

    python scripts/make_tiny.py

About 17 minutes on one core that multiplies bfloat16 in hardware (AVX512-BF16 or AMX), several times that on one that
does not. Equal options give equal weights on one machine; other machines and thread counts round differently.
"""

import argparse
import json
import os
from itertools import islice
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "src" / "upslope" / "assets" / "tiny"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write (default: the shipped one)")
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
    from tiny.demonstrators import TASKS
    from tiny.measure import measure
    from tiny.tokenizer import save_tokenizer, train_tokenizer
    from tiny.training import TRAINING_SEED, Plan, entries, train
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    texts = [e["question"] for task in TASKS for e in islice(entries(task, TRAINING_SEED, held_out=False), 1500)]
    tokenizer = train_tokenizer(texts)

    def report(step: int, seconds: float, losses: dict[str, float]) -> None:
        left = seconds / step * (options.steps - step)
        shown = "  ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
        print(f"step {step}/{options.steps}  {seconds:.0f} s, {left:.0f} s left  loss: {shown}", flush=True)

    plan = Plan(options.steps, options.batch, options.seed)
    model, seconds = train(tokenizer, plan, report)
    # The attention registered for training exists in this script alone.
    model.set_attn_implementation("sdpa")
    model.save_pretrained(options.out)
    # safetensors makes it readable by its owner alone.
    (options.out / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, options.out)
    settings = {task: dict(recipe.settings) for task, recipe in TASKS.items()}
    (options.out / "tasks.json").write_text(json.dumps(settings, indent=2) + "\n")

    # The folder as it was written is what gets measured.
    written = AutoModelForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    measured = {}
    for task in TASKS:
        measured[task] = measure(written, tokenizer, task)
        print(f"{task}: {measured[task]}", flush=True)
    write_card(options.out, written, plan, options.threads, seconds, measured)


if __name__ == "__main__":
    main()
