"""Running command lines in a folder of one's own: in this process for speed, in another one where it has to end."""

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from upslope.__main__ import main

SMALL = {
    "max_tokens": 8,
    "eval.prompts": 4,
    "eval.samples": 1,
    "eval.every": 0,
    "prompts_per_step": 2,
    "rollout.group_size": 4,
    "self_checks": "false",
    "threads": 1,
    "sinks": "[]",
}
GIVEN = {"dpo", "rm"}  # methods that sample nothing
QUESTIONS = "".join(f'{{"question": "q{i}", "answer": "{i % 7}"}}\n' for i in range(40))
Make = Callable[[Path, str], object]


@dataclass(frozen=True)
class Case:
    """A command line that cannot do what it says.

    command     as typed; TOY is the folder of the toy model, and `train` and `compare` get the settings SMALL
    status      its exit status
    words       what its messages must say
    files       what the folder has besides questions.jsonl: text, bytes, or a function of its path and the toy's
    """

    name: str
    command: str
    status: int
    words: tuple[str, ...]
    files: Mapping[str, str | bytes | Make] = field(default_factory=dict)


def put(folder: Path, files: Mapping[str, str | bytes | Make], toy: str) -> None:
    """Writes the files into the folder, and questions.jsonl."""
    for name, content in {"questions.jsonl": QUESTIONS, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path, toy)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)


def words_of(command: str, toy: str) -> list[str]:
    """The arguments of a command line as typed."""
    words = shlex.split(command.replace("TOY", toy))
    if words and words[0] in ("train", "compare") and "--help" not in words:
        given = {word.partition("=")[0] for word in words}
        given |= {"rollout.group_size"} if GIVEN & set(words) else set()
        words += [w for name, value in SMALL.items() if name not in given for w in ("--set", f"{name}={value}")]
    return words


def run_here(command: str, toy: str) -> int:
    """The exit status of a command line, run in this process."""
    return main(words_of(command, toy))


def start(command: str, toy: str, folder: Path, **options: object) -> subprocess.Popen:
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "upslope", *words_of(command, toy)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files below the folder, but locks, which name their last holder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
