"""Rows of a data file, each with its place, so that an error can say where."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upslope.errors import UsageError
from upslope.tasks.scorers import excerpt

CSV_FIELD_LIMIT = 1 << 27
MESSAGES = re.compile(r"\s*\[\s*\{")
SHOWN = re.compile(r"\s*\[\s*\{\s*'(role|content)'\s*:")
SPLIT_WORDS = ("train", "eval", "evaluation", "validation", "valid", "val", "dev", "test")


class Row(NamedTuple):
    """`place` for messages ("questions.jsonl line 17"), columns, and the split if its file or folder has a name for it."""

    place: str
    columns: dict[str, Any]
    split: str | None = None


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All rows of a file or folder, at least one.

    Raises UsageError for what is missing, unreadable, empty, of an unknown kind or malformed, with file, line or row.
    """
    path = Path(path)
    if path.is_dir():
        rows = read_folder(path)
    else:
        reader = READERS.get(path.suffix.lower())
        if not path.exists():
            raise UsageError(f"there is no data file {path}.")
        if reader is None:
            raise UsageError(
                f"{path.name}: data files end in {', '.join(READERS)}, or are a folder; this one does not."
            )
        try:
            rows = list(reader(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not rows:
        raise UsageError(f"{path.name} is empty: it has no rows.")
    return rows


def given_rows(data: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows that are already there, as mappings."""
    rows = [as_row(f"data row {number}", row) for number, row in enumerate(data, start=1)]
    if not rows:
        raise UsageError("data is empty: it has no rows.")
    return rows


def as_row(place: str, value: Any, split: str | None = None) -> Row:
    if not isinstance(value, Mapping):
        raise UsageError(f"{place} is {json_kind(value)}, not an object with columns such as prompt and answer.")
    if not all(isinstance(name, str) for name in value):
        raise UsageError(
            f"{place} has a column whose name is no text: {[n for n in value if not isinstance(n, str)][:3]}."
        )
    return Row(place, dict(value), split)


def read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            place = f"{path.name} line {number}"
            line = decode(raw, place).strip()
            if line:
                yield as_row(place, parse_json(line, place))


def read_json(path: Path) -> Iterator[Row]:
    """A list of objects; a file of this name that holds one object per line is read as JSONL."""
    text = decode(path.read_bytes(), path.name).strip()
    if text.startswith("{") and "\n" in text and is_json(text.partition("\n")[0]):
        yield from read_jsonl(path)
        return
    if not text:
        return
    values = parse_json(text, path.name)
    if isinstance(values, dict):
        raise UsageError(f"{path.name} is one object. It must be a list of objects, or one object per line (.jsonl).")
    if not isinstance(values, list):
        raise UsageError(f"{path.name} is {json_kind(values)}, not a list of objects.")
    for number, value in enumerate(values, start=1):
        yield as_row(f"{path.name} row {number}", value)


def read_csv(path: Path) -> Iterator[Row]:
    text = decode(path.read_bytes(), path.name)
    csv.field_size_limit(CSV_FIELD_LIMIT)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    header: list[str] | None = None
    try:
        for values in reader:
            place = f"{path.name} line {reader.line_num}"
            if header is None:
                header = [name.strip() for name in values]
                if len(set(header)) < len(header) or "" in header:
                    raise UsageError(f"{place}: the header has an empty or repeated name: {', '.join(header)}.")
            elif values and len(values) != len(header):
                raise UsageError(
                    f"{place} has {len(values)} fields, but the header has {len(header)}: {values[:3]} ..."
                )
            elif values:
                yield as_row(place, {n: cell(v, f"{place}: {n}") for n, v in zip(header, values, strict=True)})
    except csv.Error as error:
        raise UsageError(f"{path.name} line {reader.line_num}: {error}.") from None


def cell(text: str, place: str) -> Any:
    """A field of a CSV file: a text, or the messages whose JSON it is. Raises UsageError for messages as Python shows them."""
    if not MESSAGES.match(text):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        if not SHOWN.match(text):
            return text
        raise UsageError(
            f"{place} is a list of messages as Python shows it, not as JSON. Write it with json.dumps, or save as .jsonl or "
            ".parquet."
        ) from None
    return value if all(isinstance(one, dict) and "role" in one for one in value) else text


def read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    number += 1
                    yield as_row(f"{path.name} row {number}", value)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is no readable Parquet file: {excerpt(str(error), quote=False)}.") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def read_folder(path: Path) -> list[Row]:
    """A folder that `datasets` saved, or one of data files, whose names may say their split."""
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return read_saved(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS and not file.name.startswith("."))
    if not files:
        raise UsageError(f"the folder {path} holds no data files ({', '.join(READERS)}) and is no saved dataset.")
    splits = [split_name(file.stem) for file in files]
    if any(splits) and not all(splits):
        unnamed = files[splits.index(None)].name
        raise UsageError(f"{path.name}: some files say their split by their name, but {unnamed} does not. Rename it.")
    return [row._replace(split=split) for file, split in zip(files, splits, strict=True) for row in read_rows(file)]


def split_name(stem: str) -> str | None:
    """The split that a file name begins with: train.jsonl, test-00000-of-00001.parquet."""
    word = stem.lower().replace("-", "_").replace(".", "_").split("_")[0]
    return word if word in SPLIT_WORDS else None


def read_saved(path: Path) -> list[Row]:
    """A folder written by `save_to_disk`."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        reason = excerpt(str(error), 200, quote=False)
        raise UsageError(f"the dataset folder {path} cannot be loaded: {type(error).__name__}: {reason}.") from None
    if isinstance(saved, datasets.Dataset):
        return [as_row(f"{path.name} row {number}", row) for number, row in enumerate(saved, start=1)]
    return [
        as_row(f"{path.name}/{split} row {number}", row, split_name(str(split)) or str(split))
        for split, part in saved.items()
        for number, row in enumerate(part, start=1)
    ]


def decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        where = place if " line " in place else f"{place} line {line}"
        raise UsageError(f"{where} is not UTF-8 (byte {raw[error.start]:#04x}). Save the file as UTF-8.") from None


def parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if " line " in place else f"line {error.lineno} column {error.colno}"
        line = text.splitlines()[error.lineno - 1] if text else ""
        raise UsageError(f"{place} is not JSON: {error.msg} at {where}. It begins {excerpt(line)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{place} is not usable JSON: {error or 'nested too deeply'}. It begins {excerpt(text)}"
        ) from None


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def json_kind(value: Any) -> str:
    kinds = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
