"""Which columns of a data file are the prompt, the completions, their labels and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upslope.errors import UsageError
from upslope.rollout import Message
from upslope.tasks.columns import Layout, check_message, column_names, dig, most_frequent, require_columns
from upslope.tasks.conversations import Text, is_conversation
from upslope.tasks.labels import as_number
from upslope.tasks.rows import Row, json_kind

Kind = Literal["pairs", "labels", "demonstrations"]
PROMPTS = ("prompt", "question", "problem", "instruction", "input")
COMPLETIONS = ("completion", "response", "output", "answer", "solution", "messages")
PROBABILITIES = ("label", "p", "probability")
LABELS = ("label", "desirable")
SCORES = ("score", "reward")
PAIRS_OF_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("reward_chosen", "reward_rejected"),
    ("chosen_reward", "rejected_reward"),
)


@dataclass(frozen=True)
class Roles:
    """The roles of the columns.

    prompt       where the prompt stands; None: in the completions, which are whole conversations
    context      a second part of the prompt: `input` beside `instruction`
    completions  chosen and rejected, or the one completion
    label        pairs, also those of which chosen alone is read: probability that chosen is preferred; otherwise whether the
                 completion is desirable
    scores       one per completion, or none
    unread       rejected, where chosen alone is the completion
    """

    prompt: Layout | None
    context: str | None
    completions: tuple[str, ...]
    label: str | None
    scores: tuple[str, ...]
    unread: str | None = None

    @property
    def is_pair(self) -> bool:
        return len(self.completions) == 2

    def describe(self) -> str:
        here = [self.prompt.prompt] if self.prompt else []
        here += [self.context] if self.context else []
        text = f"{'pairs' if self.is_pair else 'completions'} in columns {', '.join([*here, *self.completions])}"
        if self.prompt is None:
            text += ", each a whole conversation with its prompt"
        if self.label:
            text += f"; {'probability of the preference' if self.is_pair or self.unread else 'label'}: {self.label}"
        text += f"; {' and '.join(self.scores)}" if self.scores else ""
        return text + (f"; {self.unread} is not read" if self.unread else "")

    def prompt_of(self, row: Row) -> str | list[Message]:
        """The prompt by its own column. Raises UsageError with the row's place if that has none."""
        assert self.prompt is not None
        prompt = self.prompt.prompt_of(row)
        context = row.columns.get(self.context) if self.context else None
        if context is None or context == "":
            return prompt
        if not (isinstance(prompt, str) and isinstance(context, str)):
            raise UsageError(f"{row.place}: {self.prompt.prompt} and {self.context} must both be texts.")
        return f"{prompt}\n\n{context}" if context.strip() else prompt

    def completion_of(self, row: Row, column: str) -> Text:
        """What the column holds; null is an empty text. Raises UsageError for a missing column or a wrong type."""
        value = dig(row.columns, column)
        if value is None and column.partition(".")[0] not in row.columns:
            raise UsageError(f"{row.place} has no column '{column}'. Its columns: {', '.join(row.columns) or 'none'}.")
        if value is None:
            return ""
        if isinstance(value, list):
            return [check_message(one, f"{row.place}: {column}: message {n}") for n, one in enumerate(value, start=1)]
        if not isinstance(value, str):
            raise UsageError(f"{row.place}: {column} is {json_kind(value)}. It must be a text or a list of messages.")
        return value


def detect_roles(name: str, rows: Sequence[Row], kind: Kind, settings: Mapping[str, Any]) -> Roles:
    """The roles by the names of the columns; settings override what is recognized.

    Raises UsageError if there is no column for the prompt, the completions or their labels.
    """
    keys = {setting: key for setting, key in settings.items() if setting.endswith("_key")}
    require_columns(name, rows, keys)
    completions, unread = detect_completions(name, rows, kind, keys)
    prompt = keys.get("input_key") or most_frequent([one for one in PROMPTS if one not in completions], rows)
    context = None
    if prompt == "instruction" and "input_key" not in keys and "input" not in completions:
        context = most_frequent(("input",), rows)
    if prompt is None and not any(holds_conversation(row, completions[0]) for row in rows):
        raise UsageError(
            f"{name}: no column can be the prompt, and {completions[0]} holds no conversations (messages, or a text with "
            f"\\n\\nHuman: and \\n\\nAssistant:). Its columns: {', '.join(column_names(rows))}. Expected: "
            f"{', '.join(PROMPTS)}; for another name: --set task_settings.input_key=COLUMN."
        )
    layout = None if prompt is None else Layout("the prompt", prompt, None, column_names(rows))
    return Roles(layout, context, completions, *detect_numbers(name, rows, kind, keys, completions, unread), unread)


def detect_completions(
    name: str, rows: Sequence[Row], kind: Kind, keys: Mapping[str, str]
) -> tuple[tuple[str, ...], str | None]:
    """The columns of the completions; and rejected, where chosen alone is to be read.

    A file of pairs may have an answer or the like besides, which is then no completion; one that is called so is.
    """
    candidates = [one for one in COMPLETIONS if one != keys.get("input_key")]
    one = keys.get("completion_key") or most_frequent(candidates, rows)
    chosen = keys.get("chosen_key") or most_frequent(("chosen",), rows)
    rejected = keys.get("rejected_key") or most_frequent(("rejected",), rows)
    columns = f"Its columns: {', '.join(column_names(rows)) or 'none'}."
    pair_named = "chosen_key" in keys or "rejected_key" in keys
    paired = chosen and rejected and "completion_key" not in keys and "completion" not in column_names(rows)
    if kind == "pairs" or (kind == "labels" and (pair_named or paired)):
        if "completion_key" in keys:
            raise UsageError(f"{name}: give completion_key, or chosen_key and rejected_key, not both.")
        if chosen and rejected and chosen != rejected:
            return (chosen, rejected), None
        raise UsageError(
            f"{name}: no two columns can be the pair. {columns} Expected: chosen and rejected; for other names: "
            "--set task_settings.chosen_key=COLUMN --set task_settings.rejected_key=COLUMN."
        )
    if kind == "demonstrations" and chosen and (paired or one is None):
        return (chosen,), rejected
    if one is None:
        raise UsageError(
            f"{name}: no column can be the completion. {columns} Expected: {', '.join(COMPLETIONS)}; for another name: "
            "--set task_settings.completion_key=COLUMN."
        )
    return (one,), None


def detect_numbers(
    name: str,
    rows: Sequence[Row],
    kind: Kind,
    keys: Mapping[str, str],
    completions: tuple[str, ...],
    unread: str | None,
) -> tuple[str | None, tuple[str, ...]]:
    """The columns of the label and of the scores."""
    if len(completions) == 2 or unread:
        label = keys.get("label_key") or first_numeric(PROBABILITIES, rows)
        scores = [pair for pair in PAIRS_OF_SCORES if all(first_numeric((column,), rows) for column in pair)]
        return label, next(iter(scores), ())[: len(completions)]
    label = None
    if kind == "labels":
        label = keys.get("label_key") or most_frequent(LABELS, rows)
        if label is None:
            raise UsageError(
                f"{name}: no column can be the label. Its columns: {', '.join(column_names(rows))}. Expected: "
                f"{' or '.join(LABELS)}; for another name: --set task_settings.label_key=COLUMN."
            )
    score = first_numeric([column for column in SCORES if column != label], rows)
    return label, (score,) if score else ()


def first_numeric(candidates: Sequence[str], rows: Sequence[Row]) -> str | None:
    """The first candidate that is a number in some row: a column of texts with such a name is something else."""
    return next((one for one in candidates if any(as_number(row.columns.get(one)) is not None for row in rows)), None)


def holds_conversation(row: Row, column: str) -> bool:
    value = dig(row.columns, column)
    if isinstance(value, list):
        return bool(value)
    return isinstance(value, str) and is_conversation(value)
