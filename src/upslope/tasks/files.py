"""The user's own data as a task: read, its columns recognized, split, and given to a judge.

    JSONL, JSON list, CSV, TSV, Parquet; a `datasets` folder; a folder of such files
    columns of TRL, verl, OpenRLHF or question/answer (upslope.tasks.columns)

The evaluation split is, in this order: the file of the setting `eval_data`; files or splits named eval, validation, dev
or test; the rows whose `split` column says so; otherwise the rows whose prompt is held out (about a tenth, the same
ones in every run: upslope.tasks.holdout; where that is nearly none or nearly all, a twentieth).
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.errors import UsageError
from upslope.rollout import Example, Message
from upslope.tasks.base import ASSETS, Task
from upslope.tasks.columns import Layout, detect_layout
from upslope.tasks.holdout import is_held_out
from upslope.tasks.judge import Judge
from upslope.tasks.rewards import RewardSpec, parse_reward
from upslope.tasks.rows import Row, counted, given_rows, read_rows

EMBEDDED = {"tiny-preferences": ASSETS / "tiny" / "preferences.jsonl"}  # data in the package, by name
SETTINGS = ("input_key", "label_key", "eval_data")
EVAL_NAMES = frozenset({"eval", "evaluation", "validation", "valid", "val", "dev", "test"})
LEAST_SHARE, ENOUGH = 0.05, 128  # of the rows that are held out, at least
Prompt = str | Sequence[Message]
Data = str | os.PathLike[str] | Sequence[Mapping[str, Any]]


def open_data(
    data: Data,
    settings: Mapping[str, Any],
    reward: RewardSpec | None,
    timeout: float,
    workers: int | None,
    train_size: int | None,
    eval_size: int | None,
) -> Task:
    """The task for `data`. Raises UsageError naming file, line or row, and what is wrong there."""
    name, layout, splits, notes = read_splits(data, settings)
    if reward is None:
        proposal = " or --reward math or --reward exact" if layout.reference else ""
        raise UsageError(f"say how answers to {name} are verified: --reward FILE.py:FUNCTION{proposal}.")
    parts = parse_reward(reward)
    notes += duplicate_notes(splits)
    for part in parts:
        if part.needs_reference:
            require_references(name, splits, layout, part.name)
    judge = Judge(parts, reference=layout.reference_of, timeout=timeout, workers=workers)
    try:
        judge.check(layout.columns, name)
    except BaseException:
        judge.close()
        raise
    cut, size_notes = at_most(splits, train_size, eval_size)
    return Task(name, cut, judge, plain(settings), notes + size_notes)


def open_prompts(data: Data, settings: Mapping[str, Any], eval_size: int | None) -> Task:
    """The prompts of `data`, whose judge is of no parts: somebody else judges the answers, or nobody."""
    name, layout, splits, notes = read_splits(data, settings)
    cut, size_notes = at_most(splits, None, eval_size)
    return Task(name, cut, Judge((), reference=layout.reference_of), plain(settings), notes + size_notes)


def read_splits(data: Data, settings: Mapping[str, Any]) -> tuple[str, Layout, dict[str, list[Example]], list[str]]:
    """Name, columns, both splits and notes of a file with prompts."""
    for setting in settings:
        if setting not in SETTINGS:
            raise UsageError(f"a data file has no setting '{setting}'. Its settings: {', '.join(SETTINGS)}.")
    name, rows = read(data)
    layout = detect_layout(name, rows, settings.get("input_key"), settings.get("label_key"))
    notes = [f"{name}: {counted(len(rows), 'row')}, {layout.describe()}"]
    if settings.get("eval_data") is not None:
        splits, split_notes = split_by_file(rows, layout, settings)
    else:
        splits, split_notes = split_within(rows, examples_of(rows, layout))
    return name, layout, splits, notes + split_notes


def at_most(
    splits: Mapping[str, list[Example]], train_size: int | None, eval_size: int | None
) -> tuple[dict[str, list[Example]], list[str]]:
    """The first so many examples of each split, and a note where that leaves some out."""
    limits = {"train": train_size, "eval": eval_size}
    notes = [
        f"{split}: the first {limit} of {counted(len(splits[split]), 'row')}"
        for split, limit in limits.items()
        if limit is not None and limit < len(splits[split])
    ]
    return {split: examples[: limits[split]] for split, examples in splits.items()}, notes


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain JSON: paths as texts."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in settings.items()}


def read(data: Data) -> tuple[str, list[Row]]:
    if isinstance(data, str | os.PathLike):
        if os.fspath(data) in EMBEDDED:
            return os.fspath(data), read_rows(str(EMBEDDED[os.fspath(data)]))
        path = os.path.abspath(os.path.expanduser(os.fspath(data)))
        return os.path.basename(path), read_rows(path)
    return "data", given_rows(data)


def split_within(rows: Sequence[Row], examples: Sequence[Example]) -> tuple[dict[str, list[Example]], list[str]]:
    """By the names in the rows if any row has one, otherwise by the prompt's hash. One example per row."""
    names = [row.split or split_column(row) for row in rows]
    if any(names):
        for row, name in zip(rows, names, strict=True):
            if name not in EVAL_NAMES and name != "train":
                shown = f"split '{name}'" if name else "no split"
                raise UsageError(f"{row.place}: {shown}. A split is train, or one of {', '.join(sorted(EVAL_NAMES))}.")
        held = [name in EVAL_NAMES for name in names]
        how = "by the split that the data names"
    else:
        held = hold_out([prompt_text(example.prompt) for example in examples])
        how = "held out by the prompt's hash"
    splits: dict[str, list[Example]] = {"train": [], "eval": []}
    for example, is_eval in zip(examples, held, strict=True):
        splits["eval" if is_eval else "train"].append(example)
    if not splits["train"]:
        raise UsageError(f"{rows[0].place} and all other rows are for evaluation; there is none to train on.")
    notes = [f"{len(splits['train'])} for training, {len(splits['eval'])} for evaluation, {how}"]
    if not splits["eval"]:
        notes[0] += "; nothing to evaluate on: give more rows or the setting eval_data"
    return splits, notes + overlap_notes(splits)


def split_column(row: Row) -> str | None:
    value = row.columns.get("split")
    return value.strip().lower() if isinstance(value, str) and value.strip() else None


def split_by_file(
    rows: Sequence[Row], layout: Layout, settings: Mapping[str, Any]
) -> tuple[dict[str, list[Example]], list[str]]:
    name, eval_rows = read(settings["eval_data"])
    eval_layout = detect_layout(name, eval_rows, settings.get("input_key"), settings.get("label_key"))
    splits = {"train": examples_of(rows, layout), "eval": examples_of(eval_rows, eval_layout)}
    missing = sorted(set(layout.columns) - set(eval_layout.columns))
    notes = [
        f"{len(rows)} for training; evaluation on {name}: {counted(len(eval_rows), 'row')}, {eval_layout.describe()}"
    ]
    if eval_layout.reference != layout.reference:
        raise UsageError(
            f"{name} has {eval_layout.describe()}, but the training data has {layout.describe()}. Give both the same columns."
        )
    if missing:
        notes.append(f"{name} lacks the columns {', '.join(missing)}; a reward gets None for them")
    return splits, notes + overlap_notes(splits)


def examples_of(rows: Sequence[Row], layout: Layout) -> list[Example]:
    return make_examples([(layout.prompt_of(row), row.columns) for row in rows])


def make_examples(questions: Sequence[tuple[Prompt, Mapping[str, Any]]]) -> list[Example]:
    """Examples of prompts and their data, with stable, distinct keys: the prompt's hash, numbered where it comes again."""
    seen: dict[str, int] = {}
    examples = []
    for prompt, data in questions:
        digest = hashlib.sha256(prompt_text(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        key = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        examples.append(Example(key, prompt, data))
    return examples


def prompt_text(prompt: Any) -> str:
    """A prompt as one text: messages as `role: content` lines."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{one['role']}: {one['content']}" for one in prompt)


def hold_out(prompts: Sequence[str]) -> list[bool]:
    """Which rows are held out. Equal prompts stay together; two different prompts suffice for one row on each side.

    The package's rule decides. Where it holds out less than a twentieth of the rows (or less than ENOUGH of them), as in data made
    of a task's training prompts, those with the lowest hashes join; where it holds out most rows, as in data made of a task's
    held-out prompts, those with the lowest hashes take their place.
    """
    rows = Counter(prompts)
    held = {prompt for prompt in rows if is_held_out(prompt.encode("utf-8", "replace").decode())}
    if 2 * sum(rows[prompt] for prompt in held) > len(prompts):
        held = set()
    missing = max(1, min(ENOUGH, round(LEAST_SHARE * len(prompts)))) - sum(rows[prompt] for prompt in held)
    for prompt in sorted(rows.keys() - held, key=_digest):
        if missing > 0 and rows[prompt] <= 2 * missing and len(held) + 1 < len(rows):
            held.add(prompt)
            missing -= rows[prompt]
    if not held and len(rows) > 1:
        held = {min(rows, key=lambda prompt: (rows[prompt], _digest(prompt)))}
    return [prompt in held for prompt in prompts]


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


def overlap_notes(splits: Mapping[str, Sequence[Example]]) -> list[str]:
    train = {prompt_text(example.prompt) for example in splits["train"]}
    shared = sum(prompt_text(example.prompt) in train for example in splits["eval"])
    return [f"{shared} of {len(splits['eval'])} evaluation prompts are also trained on"] if shared else []


def duplicate_notes(splits: Mapping[str, Sequence[Example]]) -> list[str]:
    train = splits["train"]
    repeated = len(train) - len({prompt_text(example.prompt) for example in train})
    return [f"{counted(repeated, 'training row')} repeat an earlier prompt"] if repeated else []


def require_references(name: str, splits: Mapping[str, Sequence[Example]], layout: Layout, reward: str) -> None:
    """Raise UsageError if the reward compares with a reference answer and a row has none."""
    if layout.reference is None:
        raise UsageError(
            f"the reward {reward} compares with a reference answer, but {name} has none; its columns: "
            f"{', '.join(layout.columns)}. Name the column: --set task_settings.label_key=COLUMN."
        )
    for split, examples in splits.items():
        for index, example in enumerate(examples):
            if layout.reference_of(example) is None:
                raise UsageError(
                    f"{name}: the {split} row {index + 1} has no {layout.reference}, which the reward {reward} compares "
                    f"with; its prompt begins {prompt_text(example.prompt)[:60]!r}. Fill it in or remove the row."
                )
