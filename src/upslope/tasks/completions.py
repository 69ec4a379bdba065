"""Data files that hold completions: preference pairs, labelled completions, demonstrations.

    pairs           prompt, chosen, rejected; perhaps the probability that chosen is preferred (label, p, probability)
                    and the scores of both (score_chosen, score_rejected and the like)
    labels          prompt, completion and label, perhaps score or reward; a file of pairs is taken apart
    demonstrations  prompt and completion, perhaps score or reward: also question and answer; instruction, input and
                    output; messages; of a file of pairs, chosen

Without a column for the prompt, chosen and rejected (or the completion) are whole conversations, as messages or as one
text with the turns of HH (upslope.tasks.conversations). Formats and splits are those of upslope.tasks.files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from upslope.errors import UsageError
from upslope.rollout import Example, Message
from upslope.tasks.base import Split, check_sizes
from upslope.tasks.columns import dig, most_frequent
from upslope.tasks.conversations import (
    Text,
    UnusableRowError,
    is_assistant,
    is_blank,
    is_conversation,
    split_conversation,
)
from upslope.tasks.files import (
    Data,
    Prompt,
    at_most,
    make_examples,
    overlap_notes,
    plain,
    prompt_text,
    read,
    split_within,
)
from upslope.tasks.labels import read_label, read_number, require_one_sign
from upslope.tasks.roles import LABELS, Kind, Roles, detect_roles
from upslope.tasks.rows import Row, counted

SETTINGS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("input_key", "chosen_key", "rejected_key", "label_key", "eval_data"),
    "labels": ("input_key", "completion_key", "chosen_key", "rejected_key", "label_key", "eval_data"),
    "demonstrations": ("input_key", "completion_key", "teacher_logps_key", "eval_data"),
}


@dataclass(frozen=True)
class Completion:
    """A completion that the data gives.

    text    as a text, or as assistant messages; messages always follow a prompt of messages
    label   pairs: the probability that this one is preferred, 1 and 0 or p and 1 - p; labels: 1 desirable, 0
            undesirable; demonstrations: 1
    score   what the data says it is worth; None where it does not say
    place   file and row, for messages
    """

    text: str | Sequence[Message]
    label: float = 1.0
    score: float | None = None
    place: str = field(default="", compare=False, repr=False)


@dataclass
class CompletionData:
    """Prompts with given completions: what a task is to methods that learn from a file.

    name        the file's name
    kind        what the completions are
    splits      "train" and "eval"; `Example.data["completions"]` is a tuple of Completion: two in a pair, chosen first,
                otherwise one. The rest of `data` are the row's columns
    settings    what it was opened with, as plain JSON
    notes       what is worth a line in the log: the columns that were recognized, rows that were left out, the split
    judge       of completions that a run samples to held-out prompts; None: nothing is sampled, nothing judged
    """

    name: str
    kind: Kind
    splits: Mapping[str, Sequence[Example]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    solved_at: float = 1.0
    judge: Any = None

    def examples(self, split: Split) -> Sequence[Example]:
        return self.splits[split]

    def describe(self) -> str:
        """The notes, and how answers to held-out prompts are verified; one fact per line."""
        return "\n".join([*self.notes, *([] if self.judge is None else [f"reward: {self.judge.describe()}"])])

    def close(self) -> None:
        """Ends the judge's workers, where there is one."""
        if self.judge is not None:
            self.judge.close()

    def __enter__(self) -> "CompletionData":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_completions(
    data: Data,
    kind: Kind,
    settings: Mapping[str, Any] | None = None,
    *,
    train_size: int | None = None,
    eval_size: int | None = None,
) -> CompletionData:
    """The prompts of `data` with their completions.

    data        a JSONL, JSON, CSV or Parquet file, a `datasets` folder, a folder of such files, or rows
    settings    input_key, completion_key, chosen_key, rejected_key, label_key, teacher_logps_key: columns by name; eval_data:
                another file
    train_size  examples in a split, at most; None: all

    Rows without a lesson (an empty completion, chosen the same as rejected, conversations without a shared prompt) are
    left out, counted and named in the notes. Raises UsageError, naming file, line or row, for a missing column, a
    wrong type, a score that is not finite, a label out of range; and if no row is left.
    """
    settings = settings or {}
    if kind not in SETTINGS:
        raise UsageError(f"kind '{kind}': it must be {', '.join(SETTINGS)}.")
    for setting in settings:
        if setting not in SETTINGS[kind]:
            raise UsageError(f"a file of {kind} has no setting '{setting}'. Its settings: {', '.join(SETTINGS[kind])}.")
    check_sizes(train_size, eval_size)
    name, entries, notes = read_entries(data, kind, settings)
    if settings.get("eval_data") is not None:
        eval_name, eval_entries, eval_notes = read_entries(settings["eval_data"], kind, settings)
        splits = {"train": examples_of(entries), "eval": examples_of(eval_entries)}
        split_notes = [f"{len(entries)} for training; evaluation on {eval_name}: {len(eval_entries)}", *eval_notes]
        split_notes += overlap_notes(splits)
    else:
        splits, split_notes = split_within([entry.row for entry in entries], examples_of(entries))
    cut, size_notes = at_most(splits, train_size, eval_size)
    return CompletionData(name, kind, cut, plain(settings), [*notes, *split_notes, *size_notes])


class Entry(NamedTuple):
    """What becomes an example."""

    row: Row
    prompt: Prompt
    completions: tuple[Completion, ...]


def examples_of(entries: Sequence[Entry]) -> list[Example]:
    return make_examples([(one.prompt, {**one.row.columns, "completions": one.completions}) for one in entries])


def read_entries(data: Data, kind: Kind, settings: Mapping[str, Any]) -> tuple[str, list[Entry], list[str]]:
    """Name, entries of the usable rows and notes of one file."""
    name, rows = read(data)
    roles = detect_roles(name, rows, kind, settings)
    if kind == "labels" and roles.label is not None:
        require_one_sign(rows, roles.label)
    entries: list[Entry] = []
    unusable: dict[str, list[str]] = {}
    for row in rows:
        try:
            entries += entries_of(row, roles, kind)
        except UnusableRowError as reason:
            unusable.setdefault(str(reason), []).append(row.place)
    left_out = [
        f"{counted(len(places), 'row')} left out: {reason} (e.g. {places[0]})" for reason, places in unusable.items()
    ]
    if not entries:
        raise UsageError(f"{name} has no usable row. {'; '.join(left_out)}.")
    notes = [f"{name}: {counted(len(rows), 'row')}, {roles.describe()}", *left_out]
    if kind == "demonstrations" and not roles.unread and (label := most_frequent(LABELS, rows)):
        notes.append(f"the column {label} is not read: every completion is learned, whatever its {label}")
    return name, entries, notes + summary(name, entries, kind)


def entries_of(row: Row, roles: Roles, kind: Kind) -> list[Entry]:
    """The row as one entry, or as two of one completion each where labels are wanted of a pair."""
    labels = labels_of(row, roles, kind)
    scores: list[float | None] = [read_number(row, column) for column in roles.scores]
    scores = scores or [None] * len(labels)
    prompt, texts = texts_of(row, roles)
    completions = tuple(Completion(*one, row.place) for one in zip(texts, labels, scores, strict=True))
    if kind == "labels":
        return [Entry(row, prompt, (completion,)) for completion in completions]
    return [Entry(row, prompt, completions)]


def labels_of(row: Row, roles: Roles, kind: Kind) -> list[float]:
    """One label per completion of the row."""
    if not roles.is_pair and not roles.unread:
        return [1.0 if roles.label is None else read_label(row, roles.label)]
    p = 1.0 if roles.label is None else read_number(row, roles.label)
    if p is None or not 0 <= p <= 1:
        raise UsageError(
            f"{row.place}: {roles.label} is {'empty' if p is None else f'{p:g}'}. Beside a pair it must be the probability "
            "that chosen is the preferred one, from 0 to 1. If the column means something else, rename it."
        )
    if roles.unread:
        if p < 0.5:
            raise UnusableRowError(f"{roles.unread} is the preferred one, by {roles.label}")
        return [1.0]
    if kind == "labels" and p not in (0, 1):
        raise UsageError(
            f"{row.place}: {roles.label} is {p:g}. A pair is taken apart into a desirable and an undesirable completion "
            "only where the preference is certain: 0 or 1."
        )
    return [p, 1 - p]


def texts_of(row: Row, roles: Roles) -> tuple[Prompt, list[Text]]:
    """The prompt and the completions after it. Raises UnusableRowError for a row that teaches nothing."""
    values = [roles.completion_of(row, column) for column in roles.completions]
    refuse_blank(values, roles)
    if len({type(value) for value in values}) > 1:
        raise UsageError(
            f"{row.place}: one of {' and '.join(roles.completions)} is a text, the other a list of messages. Give both alike."
        )
    if len(values) > 1 and values[0] == values[1]:
        raise UnusableRowError(f"{' and '.join(roles.completions)} are the same")
    texts = isinstance(values[0], str)
    if roles.prompt is None or (not texts and any(map(is_conversation, values))):
        prompt, completions = split_conversation(values)
        require_same_beginning(row, roles, prompt)
        refuse_blank(completions, roles)
        return prompt, completions
    prompt = roles.prompt_of(row)
    if texts:
        return prompt, values
    if not all(map(is_assistant, values)):
        raise UnusableRowError("a completion holds turns that are not the assistant's")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, values


def refuse_blank(values: Sequence[Text], roles: Roles) -> None:
    for column, value in zip(roles.completions, values, strict=True):
        if is_blank(value):
            raise UnusableRowError(f"{column} is empty")


def require_same_beginning(row: Row, roles: Roles, prompt: Text) -> None:
    """Raise UsageError if the row's own prompt is messages with which the conversations do not begin.

    A text is not compared: data sets with whole conversations repeat some turn of theirs in it, or a template's output.
    """
    column = roles.prompt.prompt if roles.prompt else ""
    given = dig(row.columns, column)
    if isinstance(given, list) and given and list(prompt[: len(given)]) != given:
        raise UsageError(
            f"{row.place}: {roles.completions[0]} is a whole conversation, but does not begin with the messages of {column}. "
            "Leave other turns than the assistant's out of it, or remove the column."
        )


def summary(name: str, entries: Sequence[Entry], kind: Kind) -> list[str]:
    """Notes on the usable rows: repeated prompts, how many of each label, scores that contradict the preference."""
    prompts = len({prompt_text(entry.prompt) for entry in entries})
    notes = [f"{counted(len(entries), kind[:-1])} of {counted(prompts, 'prompt')}"] if prompts < len(entries) else []
    if kind == "labels":
        desirable = sum(entry.completions[0].label == 1 for entry in entries)
        notes.append(f"{desirable} desirable, {len(entries) - desirable} undesirable")
    if kind != "pairs":
        return notes
    against = [entry.row.place for entry in entries if contradicts(*entry.completions)]
    scored = sum(None not in [one.score for one in entry.completions] for entry in entries)
    if 2 * len(against) > scored:
        raise UsageError(
            f"{name}: in {len(against)} of {scored} scored pairs (e.g. {against[0]}) the preferred completion has the lower "
            "score. Are the columns exchanged, or are low scores good? Correct them, or rename columns that are no scores."
        )
    if against:
        notes.append(
            f"{counted(len(against), 'pair')} whose preferred completion has the lower score (e.g. {against[0]}): "
            "kept, the preference counts"
        )
    return notes


def contradicts(chosen: Completion, rejected: Completion) -> bool:
    if chosen.score is None or rejected.score is None:
        return False
    return (chosen.score - rejected.score) * (chosen.label - rejected.label) < 0
