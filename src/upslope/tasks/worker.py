"""The program of a reward worker process. It is started by upslope.tasks.workers, never by hand.

Jobs come in on standard input as length-prefixed pickles (they were made by the process that started this one);
scores go out on what was standard output as lines of JSON, so that nothing a reward returns is ever unpickled. What the
reward prints goes, with its standard error, into a pipe that the other side empties and mostly throws away.
"""

import json
import os
import pickle
import queue
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from upslope.errors import UsageError
from upslope.parent import die_with_parent
from upslope.tasks.calls import FunctionCalls
from upslope.tasks.scorers import Choices, Columns, Exact, Math, Pattern, Procedural, Score, Scorer
from upslope.tasks.user_reward import make_user_scorer

HEADER = struct.Struct("<Q")


class Line:
    """The way back: one line of JSON per message."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lock = threading.Lock()
        self.notes: set[str] = set()

    def send(self, *message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self.lock:
            while line:
                line = line[os.write(self.descriptor, line) :]

    def metric(self, name: str, value: float) -> None:
        self.send("metric", name[:100], value)

    def note(self, text: str) -> None:
        """Said once, and only the first hundred: a note with a changing number in it must not flood the log."""
        if text not in self.notes and len(self.notes) < 100:
            self.notes.add(text)
            self.send("note", text[:500])

    def alone(self) -> None:
        self.send("alone")


def main() -> None:
    """Serve jobs until standard input ends or the parent process dies."""
    die_with_parent(int(sys.argv[2]))
    jobs_in, line = take_over_descriptors()
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=read_frames, args=(jobs_in, received.put), daemon=True).start()
    settings = received.get()
    try:
        scorers = [make_scorer(line, part, settings["timeout"]) for part in settings["parts"]]
    except UsageError as error:
        line.send("refused", str(error))
        os._exit(0)
    line.send("ready", [{"whole_batch": one.whole_batch, "columns": list(one.columns)} for one in scorers])
    while True:
        part, samples, alone, step = received.get()

        def report(index: int, score: Score, columns: Columns | None = None, /) -> None:
            line.send("score", index, score, columns or {})

        scorers[part].run(samples, alone, step, report)
        sys.stdout.flush()
        sys.stderr.flush()


def make_scorer(line: Line, part: Mapping[str, Any], timeout: float) -> Scorer:
    makers: dict[str, Callable[[], Scorer]] = {
        "exact": lambda: Exact(line, ignore_case=part["ignore_case"]),
        "ast": lambda: FunctionCalls(line, think=part["think"]),
        "choices": lambda: Choices(line),
        "regex": lambda: Pattern(line, part["pattern"]),
        "math": lambda: Math(line),
        "reasoning_gym": lambda: Procedural(line, part["name"], part["settings"]),
        "function": lambda: make_user_scorer(line, part["path"], part["module"], part["function"], timeout),
    }
    return makers[part["kind"]]()


def take_over_descriptors() -> tuple[BinaryIO, Line]:
    """Move the two pipes out of reach of `input` and `print`, which get nothing and the drained pipe instead."""
    jobs_in = os.fdopen(os.dup(0), "rb")
    line = Line(os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    return jobs_in, line


def read_frames(stream: BinaryIO, handle: Callable[[Any], None]) -> None:
    """Hand on one object per frame. The end of the stream is the end of the parent: leave at once, mid-call or not."""
    try:
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            handle(pickle.loads(stream.read(HEADER.unpack(header)[0])))
    except Exception as error:
        os.write(2, f"the data cannot be read in the reward's process: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)
