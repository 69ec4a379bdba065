"""upslope diagnose teacher-logps TEACHER --data FILE [--policy MODEL] --out FILE"""

import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upslope.cli.pass_rates import new_file, write_rows
from upslope.config import config_from, merge_overrides
from upslope.errors import UsageError

CHUNK = 256  # completions that are scored together, so that memory does not grow with the file
EXAMPLE = "upslope diagnose teacher-logps ./teacher --data answers.jsonl --policy ./student --out with_logps.jsonl"


def measure(
    model: str,
    data: str | None,
    policy: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Writes the data's rows with the column teacher_logps to `out`; a summary: rows, tokens, the mean log-prob of a token.

    model   the teacher
    policy  the model that learns, whose tokens and prompts they are; None: the teacher's own

    Rows that do not fit into the teacher's context are left out and counted. Raises UsageError for what is missing, for an
    `out` that exists, for models with different vocabularies, and where no row is left.
    """
    out = new_file("teacher-logps", {"--data": data, "--out": out}, EXAMPLE)
    assert data is not None
    from upslope.policies.language import LanguagePolicy
    from upslope.runs.checkpoint import model_folder
    from upslope.stored import COLUMN, column_of
    from upslope.tasks.completions import SETTINGS, examples_of, read_entries
    from upslope.threads import use_threads

    config = config_from(merge_overrides({"data": data}, overrides), where="diagnose teacher-logps")
    use_threads(config.threads)
    if unknown := [name for name in config.task_settings if name not in SETTINGS["demonstrations"]]:
        raise UsageError(
            f"diagnose teacher-logps: a file of demonstrations has no setting '{unknown[0]}'. Its settings: "
            f"{', '.join(SETTINGS['demonstrations'])}."
        )
    name, entries, notes = read_entries(data, "demonstrations", config.task_settings)
    column = column_of(config.task_settings) if "." not in column_of(config.task_settings) else COLUMN
    options = {key: getattr(config, key) for key in ("device", "dtype", "trust_remote_code", "packing", "vocab_chunk")}
    teacher = LanguagePolicy.load(model_folder(model), **options)
    writer = teacher if policy is None else _with_tokens_of(policy, teacher, options)
    examples = examples_of(entries)
    logps = _scored(writer, examples, config.tokens_per_pass, progress)
    kept = [(entry, values) for entry, values in zip(entries, logps, strict=True) if values is not None]
    if not kept:
        raise UsageError(
            f"diagnose teacher-logps: no row of {name} fits into the {teacher.context_length} tokens of the teacher's context."
        )
    write_rows(out, [{**entry.row.columns, column: values} for entry, values in kept])
    tokens = sum(len(values) for _, values in kept)
    long = [entry.row.place for entry, values in zip(entries, logps, strict=True) if values is None]
    return {
        "teacher": model,
        "notes": notes,
        "rows": len(kept),
        "tokens": tokens,
        "mean": sum(itertools.chain.from_iterable(values for _, values in kept)) / tokens,
        "too_long": len(long),
        "too_long_first": long[0] if long else None,
        "column": column,
        "out": str(out),
    }


def _with_tokens_of(policy: str, teacher: Any, options: dict[str, Any]) -> Any:
    """The teacher, reading text as the other model does. Raises UsageError where that knows other tokens."""
    from upslope.policies.language import LanguagePolicy
    from upslope.runs.checkpoint import model_folder

    tokenizer = LanguagePolicy.load(model_folder(policy), **options).tokenizer
    if tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise UsageError(
            f"diagnose teacher-logps: the teacher has another vocabulary than {policy}, so it has no log-probs of its tokens. Take "
            "a teacher of the same family."
        )
    reading = copy.copy(teacher)
    reading.tokenizer = tokenizer
    return reading


def _scored(
    teacher: Any, examples: Sequence[Any], tokens_per_pass: int, progress: Callable[[int], None]
) -> list[list[float] | None]:
    """The log-probs of each example's completion, None where it does not fit into the context."""
    import numpy as np
    import torch

    from upslope.policies.plans import score_in_passes
    from upslope.rollout import Rollouts

    found: list[list[float] | None] = []
    for start in range(0, len(examples), CHUNK):
        part = examples[start : start + CHUNK]
        prompts = [teacher.encode(example.prompt) for example in part]
        tokens = [teacher.encode_completion(one.prompt, one.data["completions"][0].text)[0] for one in part]
        rows = [n for n in range(len(part)) if len(prompts[n]) + len(tokens[n]) <= teacher.context_length]
        values: dict[int, list[float]] = {}
        if rows:
            given = [tokens[n] for n in rows]
            rollouts = Rollouts.given(prompts, torch.tensor(rows), given, ["stop"] * len(rows), [""] * len(rows))
            with torch.no_grad():
                logp = score_in_passes(teacher, rollouts, frozenset({"logp"}), tokens_per_pass=tokens_per_pass)["logp"]
            for row, column, ids in zip(rows, logp.cpu().numpy().astype(np.float32), given, strict=True):
                values[row] = [
                    float(str(value)) for value in column[: len(ids)]
                ]  # the shortest text of the same float32
        found += [values.get(n) for n in range(len(part))]
        progress(start + len(part))
    return found
