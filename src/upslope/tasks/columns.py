"""Which column is the prompt and which the reference answer: recognized by name, and said aloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.errors import UsageError
from upslope.rollout import Example, Message
from upslope.tasks.rows import Row, json_kind
from upslope.tasks.scorers import excerpt

PROMPTS = ("prompt", "question", "problem", "input")
REFERENCES = ("answer", "ground_truth", "solution", "target", "label")
VERL_REFERENCE = "reward_model.ground_truth"
EXPECTED = (
    "Expected: prompt (TRL); prompt and reward_model.ground_truth (verl); input and label (OpenRLHF); or question and "
    "answer. For other names: --set task_settings.input_key=COLUMN --set task_settings.label_key=COLUMN."
)


@dataclass(frozen=True)
class Layout:
    """The roles of the columns.

    family      whose names they are, for the log
    prompt      column of the prompt
    reference   column of the reference answer, perhaps dotted; None if there is none
    columns     all columns, in the order of their first appearance
    """

    family: str
    prompt: str
    reference: str | None
    columns: tuple[str, ...]

    def describe(self) -> str:
        return f"columns of {self.family} ({', '.join(filter(None, (self.prompt, self.reference)))})"

    def prompt_of(self, row: Row) -> str | list[Message]:
        """The prompt: a text, or messages with text content. Raises UsageError with the row's place otherwise."""
        value = dig(row.columns, self.prompt)
        if value is None and self.prompt not in row.columns:
            there = ", ".join(row.columns) or "none"
            raise UsageError(f"{row.place} has no column '{self.prompt}'. Its columns: {there}.")
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, list) and value:
            return [check_message(message, f"{row.place}: message {n}") for n, message in enumerate(value, start=1)]
        shown = "empty" if value in ("", []) or isinstance(value, str) else json_kind(value)
        raise UsageError(f"{row.place}: {self.prompt} is {shown}. It must be a text or a list of messages.")

    def reference_of(self, example: Example) -> Any:
        return None if self.reference is None else dig(example.data, self.reference)


def detect_layout(name: str, rows: Sequence[Row], input_key: str | None, label_key: str | None) -> Layout:
    """The layout of rows by the names of their columns; `input_key` and `label_key` override what is recognized.

    Raises UsageError if no column can be the prompt, or a key names a column that is not there.
    """
    columns = column_names(rows)
    require_columns(name, rows, {"input_key": input_key, "label_key": label_key})
    family, prompt, reference = recognize(rows, columns)
    if input_key is not None or label_key is not None:
        family = "OpenRLHF, by input_key and label_key"
    prompt, reference = input_key or prompt, label_key or reference
    if not prompt:
        raise UsageError(
            f"{name}: no column can be the prompt. Its columns: {', '.join(columns) or 'none'}. {EXPECTED}"
        )
    return Layout(family, prompt, reference, columns)


def recognize(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, str, str | None]:
    """Family, prompt and reference: of several candidates the one that most rows have, of equals the first."""
    reference, prompt = most_frequent(REFERENCES, rows), most_frequent(PROMPTS, rows) or ""
    if prompt == "prompt":
        if any(dig(row.columns, VERL_REFERENCE) is not None for row in rows):
            return "verl", prompt, VERL_REFERENCE
        return "TRL", prompt, reference
    if prompt == "input":
        return "OpenRLHF", prompt, "label" if "label" in columns else reference
    return f"{prompt}/{reference or 'no reference answer'}", prompt, reference


def column_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """All columns, in the order of their first appearance."""
    return tuple(dict.fromkeys(column for row in rows for column in row.columns))


def most_frequent(candidates: Sequence[str], rows: Sequence[Row]) -> str | None:
    """The candidate that most rows have as a column, of equals the first; None if no row has any."""
    count = {column: sum(column in row.columns for row in rows) for column in candidates}
    best = max(candidates, key=count.__getitem__)
    return best if count[best] else None


def require_columns(name: str, rows: Sequence[Row], keys: Mapping[str, str | None]) -> None:
    """Raise UsageError if a setting names a column that no row has; `keys` are columns by setting."""
    columns = column_names(rows)
    for setting, key in keys.items():
        if key is not None and key not in columns and not any(dig(row.columns, key) is not None for row in rows):
            raise UsageError(f"{name} has no column '{key}', which {setting} names. Its columns: {', '.join(columns)}.")


def dig(columns: Mapping[str, Any], key: str) -> Any:
    """The value of a column, or of `outer.inner` where the outer one is a mapping."""
    if key in columns:
        return columns[key]
    outer, dot, inner = key.partition(".")
    value = columns.get(outer)
    return dig(value, inner) if dot and isinstance(value, Mapping) else None


def check_message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise UsageError(f"{place} is {json_kind(message)}, not an object with role and content.")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            found = json_kind(message[key]) if key in message else "missing"
            raise UsageError(f"{place}: {key} is {found}, it must be a text: {excerpt(str(dict(message)))}")
    return dict(message)
