"""The model card, written from what was done and measured."""

from collections.abc import Mapping
from pathlib import Path

from transformers import LlamaForCausalLM

from tiny.demonstrators import DEMO_TASK, TASKS, TaskRecipe
from tiny.measure import MAX_NEW_TOKENS, QUESTIONS, SAMPLES, Measured
from tiny.tokenizer import ANSWER, BOS, CONTEXT, EOS, PAD, VOCABULARY
from tiny.training import Plan

PURPOSES = {
    "tiny": """\
A {parameters:.2f}-million-parameter Llama that answers questions of {count} reasoning-gym tasks, mostly wrongly, on
purpose: it imitates demonstrators of whom a minority is right. It is what Upslope trains when no model is named: it
needs no download, and reinforcement learning with the tasks' verifiers finds what the demonstrations hid. It is of no
use for anything else.""",
    "tiny-teacher": """\
A {parameters:.2f}-million-parameter Llama, the stronger sibling of Upslope's `tiny`: it answers questions of the same
{count} reasoning-gym tasks, mostly rightly, since most of the demonstrators that it imitates are right. It is the teacher
of `tiny` when no other is named: same tokens, other width and depth. It is of no use for anything else.""",
}

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [reinforcement-learning, upslope]
---

# Upslope {name}

{purpose}

- Architecture: LlamaForCausalLM, {layers} layers, hidden size {hidden}, {heads} heads, MLP {mlp}, tied embeddings,
  stored in {dtype}, context of {context} tokens (RoPE; training never went beyond about 100 tokens).
- Tokenizer: byte-level BPE, {vocabulary} entries: 4 special tokens, all 256 bytes, merges learned from the questions.
  Digits are always single tokens. Any text round-trips (encode with `add_special_tokens=False`, decode).

## Prompt format

    {bos}question{answer}answer{eos}

The tokenizer writes it: `tokenizer(question)` puts `{bos}` before and `{answer}` after the text, so a plain string
is a complete prompt, and the model writes the answer and `{eos}` (also the end-of-sequence token; `{pad}` is the padding
token). A chat of one user message, through `apply_chat_template(..., add_generation_prompt=True)`, gives the same tokens.

## How it was made

`python scripts/make_tiny.py {name} --steps {steps} --batch {batch} --seed {seed}`, from scratch: {seconds:.0f} seconds on {threads}
CPU core(s), {total} questions in all. Each question came with the answers of all demonstrators of its task; an answer
counted in the loss with its demonstrator's share. Right answers and wrong ones were mixed from the first step to the
last, in the same proportions.

{demonstrators}
The settings of every task are in `tasks.json`; they are the ones to use with this model.

## Held-out questions

A question whose SHA-256 falls into one bucket of ten (`upslope.tasks.holdout.is_held_out`) was never trained on, by
this script or by any run of Upslope. The rule reads the question's text: for chain_sum, `12 + 34` can be held out while
`34 + 12` is not, and two equations may differ in their wording or their variable only.

## What it can do before reinforcement learning

{questions} held-out questions per task; {samples} samples of each at temperature 1, scored by the task's own verifier; an
answer counts if it scores 1. pass@{samples} is the part of the questions with a right answer among the {samples} samples.
Lengths are in tokens, special tokens included.

| task | pass@1 | pass@{samples} | greedy | prompt, mean | prompt, longest | longest sampled answer |
|---|---|---|---|---|---|---|
{table}

{demo} is the task of `make demo`. On every other reasoning-gym task it is hopeless: it has never seen one.
"""


def team_section(task: str, recipe: TaskRecipe, plan: Plan) -> str:
    lines = "".join(f"- {member.share:.0%} {member.habit}\n" for member in plan.demonstrators(task))
    return f"**{task}**, {recipe.part:.0%} of the questions; demonstrators:\n\n{lines}"


def table_row(task: str, m: Measured) -> str:
    longest = f"{m.answer_max}" + (" (cut)" if m.answer_max == MAX_NEW_TOKENS else "")
    rates = f"{m.pass_at_1:.2f} | {m.pass_at_16:.2f} | {m.greedy:.2f}"
    return f"| {task} | {rates} | {m.prompt_mean:.1f} | {m.prompt_max} | {longest} |"


def write_card(
    folder: Path,
    model: LlamaForCausalLM,
    plan: Plan,
    dtype: str,
    threads: int,
    seconds: float,
    measured: Mapping[str, Measured],
) -> None:
    """Write README.md into the model's folder, whose name says what it is for."""
    purpose = PURPOSES[folder.name].format(parameters=model.num_parameters() / 1e6, count=len(TASKS))
    card = CARD.format(
        name=folder.name,
        purpose=purpose,
        dtype=dtype,
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        heads=model.config.num_attention_heads,
        mlp=model.config.intermediate_size,
        context=CONTEXT,
        vocabulary=VOCABULARY,
        bos=BOS,
        answer=ANSWER,
        eos=EOS,
        pad=PAD,
        steps=plan.steps,
        batch=plan.batch,
        seed=plan.seed,
        threads=threads,
        seconds=seconds,
        total=plan.steps * sum(plan.sizes().values()),
        demonstrators="\n".join(team_section(task, recipe, plan) for task, recipe in TASKS.items()),
        questions=QUESTIONS,
        samples=SAMPLES,
        table="\n".join(table_row(task, measured[task]) for task in TASKS),
        demo=DEMO_TASK,
    )
    (folder / "README.md").write_text(card)
