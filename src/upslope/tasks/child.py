"""One reward worker process, seen from the trainer's side: start, send, receive with a deadline, kill."""

import contextlib
import fcntl
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from upslope.tasks.scorers import excerpt
from upslope.tasks.worker import HEADER

OUTPUT_KEPT = 2048
PIPE_SIZE = 1 << 20
LINE_LIMIT = 1 << 20
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from upslope.tasks.worker import main; main()"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
WORKER_VARIABLE = "UPSLOPE_REWARD_WORKER"


class ChildLostError(Exception):
    """The worker is gone or was killed; the text is the reason."""


class ChildTimeoutError(Exception):
    """Nothing came before the deadline."""


class Output:
    """What workers printed: the first 2 kB since it was last taken, and how much it was in all."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept, self.total = b"", 0

    def add(self, data: bytes) -> None:
        with self.lock:
            self.total += len(data)
            self.kept += data[: OUTPUT_KEPT - len(self.kept)]

    def take(self) -> str:
        with self.lock:
            text = self.kept.decode("utf-8", errors="replace").strip()
            if self.total > len(self.kept):
                text += f"\n... ({self.total:,} bytes in all, the rest was thrown away)"
            self.kept, self.total = b"", 0
        return text


class Child:
    """A running worker. It must be started by a thread that outlives it: Linux ends it with that thread."""

    def __init__(self, settings: Mapping[str, Any], output: Output) -> None:
        environment = {"PYTHONHASHSEED": "0", **os.environ, **ONE_THREAD, WORKER_VARIABLE: "1"}
        path = [entry or os.getcwd() for entry in sys.path]
        path += [] if os.getcwd() in path else [os.getcwd()]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps(path), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.to_child, self.from_child = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.buffer = b""
        os.set_blocking(self.to_child, False)
        threading.Thread(target=drain, args=(self.process.stderr, output), daemon=True).start()
        self.send(pickle.dumps(dict(settings)), time.monotonic() + 30)

    def send(self, body: bytes, deadline: float) -> None:
        """Write one frame. Raises ChildLostError, or ChildTimeoutError if the worker does not take it."""
        frame = memoryview(HEADER.pack(len(body)) + body)
        while frame:
            _, ready, _ = select.select([], [self.to_child], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise ChildTimeoutError
            try:
                frame = frame[os.write(self.to_child, frame) :]
            except BlockingIOError:
                continue
            except OSError:
                raise ChildLostError(self.end()) from None

    def receive(self, deadline: float) -> list[list[Any]]:
        """At least one message. Raises ChildLostError, or ChildTimeoutError at the deadline (time.monotonic)."""
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.from_child], [], [], min(max(left, 0), 0.25))
            # A process that the worker left behind may hold the pipe open, so the end of the pipe is not waited for.
            if not ready and self.process.poll() is not None:
                raise ChildLostError(self.end())
            if not ready and left <= 0:
                raise ChildTimeoutError
            if ready:
                data = os.read(self.from_child, 1 << 16)
                self.buffer += data
                if not data or len(self.buffer) > LINE_LIMIT:
                    raise ChildLostError(self.end())
        lines, _, self.buffer = self.buffer.rpartition(b"\n")
        try:
            return [json.loads(line) for line in lines.split(b"\n")]
        except ValueError:
            raise ChildLostError(f"worker's reply was overwritten: {excerpt(repr(lines))}") from None

    def end(self) -> str:
        """Make sure that it has ended, and say how it did."""
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "worker closed its connection"
        if code >= 0:
            return f"worker exited with code {code}"
        name = signal.Signals(-code).name if -code in [one.value for one in signal.Signals] else f"signal {-code}"
        return f"worker was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def kill(self) -> None:
        """End the worker and whatever it started in its process group. Any thread may call this."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Kill it and give back its pipes. Only for the thread that reads from them."""
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def drain(stream: Any, output: Output) -> None:
    """Empty what the worker prints, so that it never blocks and never fills memory or disk."""
    with stream:
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        while data := os.read(stream.fileno(), PIPE_SIZE):
            output.add(data)
