"""Reward workers: a pool of killable processes with a time limit per call.

per sample      `timeout` seconds for each sample
whole batch     `timeout` seconds for every 16 samples begun; if that runs out or the process dies, the samples are
                judged again one by one, with `timeout` seconds each
after a hang    the worker is killed and replaced; after 4 hangs (or 16 deaths) in a row without a score between them
                the rest of the job is given up, each sample a failure of its own
"""

import pickle
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upslope.errors import UsageError
from upslope.tasks.child import Child, ChildLostError, ChildTimeoutError, Output
from upslope.tasks.scorers import Columns, Sample, Score
from upslope.tasks.user_reward import timed_out

START_TIMEOUT = 120.0
SAMPLES_PER_TIMEOUT = 16
HANGS_IN_A_ROW, DEATHS_IN_A_ROW = 4, 16
CONCURRENCY_GRACE = 2.0


@dataclass
class Job:
    """Samples for one part of the reward; `scores` and `columns` fill up as they come, `error` is for the caller to raise."""

    part: int
    samples: Sequence[Sample]
    step: int = 0
    alone: bool = False
    scores: list[Score | None] = field(default_factory=list)
    columns: list[Columns] = field(default_factory=list)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.scores = [None] * len(self.samples)
        self.columns = [{}] * len(self.samples)

    def pending(self) -> list[int]:
        return [index for index, score in enumerate(self.scores) if score is None]


class Pool:
    """`count` workers that share a queue of jobs. Workers start when they are first needed, the first with `start`."""

    def __init__(self, parts: Sequence[Mapping[str, Any]], timeout: float, count: int) -> None:
        self.settings = {"parts": [dict(part) for part in parts], "timeout": timeout}
        self.timeout, self.count = timeout, count
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.output = Output()
        self.lock = threading.Lock()
        self.metrics: dict[str, tuple[float, int]] = {}
        self.notes: list[str] = []
        self.seen_notes: set[str] = set()
        self.workers: list[Worker] = []
        self.ready = threading.Event()
        self.refusal: Exception | None = None
        self.descriptions: list[dict[str, Any]] = []
        self.closed = False

    def start(self, count: int = 1) -> None:
        if self.closed:
            raise RuntimeError("the judge was closed")
        while len(self.workers) < min(count, self.count):
            self.workers.append(Worker(self))
            self.workers[-1].start()

    def describe(self) -> list[dict[str, Any]]:
        """What the first worker says about each part (`whole_batch`, `columns`). Raises UsageError if it refuses."""
        self.start()
        self.ready.wait()
        if self.refusal is not None:
            raise self.refusal
        return self.descriptions

    def run(self, jobs: Sequence[Job]) -> None:
        """Fill in the scores of all jobs. Raises the UsageError of a worker that cannot start."""
        self.start(len(jobs))
        for job in jobs:
            self.jobs.put(job)
        for job in jobs:
            job.done.wait()
        for job in jobs:
            if job.error is not None:
                raise job.error

    def close(self) -> None:
        self.closed = True
        for _ in self.workers:
            self.jobs.put(None)
        for worker in self.workers:
            worker.stop()


class Worker(threading.Thread):
    """The thread that owns one worker process, restarts it, and feeds it jobs."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(daemon=True, name="upslope-reward")
        self.pool = pool
        self.child: Child | None = None

    def run(self) -> None:
        try:
            self.ensure_child()
        except Exception as error:
            self.pool.refusal = error
        self.pool.ready.set()
        while (job := self.pool.jobs.get()) is not None:
            try:
                self.process(job)
            except Exception as error:
                job.error = error
            job.done.set()
        self.drop_child()

    def ensure_child(self) -> Child:
        """The running worker, or a new one. Raises UsageError if it does not come up."""
        if self.child is None or self.child.process.poll() is not None:
            self.drop_child()
            self.child = Child(self.pool.settings, self.pool.output)
            try:
                self.greet(self.child)
            except BaseException:
                self.drop_child()
                raise
        return self.child

    def greet(self, child: Child) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                messages = child.receive(deadline)
            except ChildTimeoutError:
                raise UsageError(f"the reward did not finish importing within {START_TIMEOUT:g} s") from None
            except ChildLostError as lost:
                printed = self.pool.output.take()
                raise UsageError(f"the reward cannot be imported: {lost}. It printed: {printed or 'nothing'}") from None
            for kind, *rest in messages:
                if kind == "refused":
                    raise UsageError(rest[0])
                if kind == "ready":
                    self.pool.descriptions = rest[0]
                    return
                self.take_aside(kind, rest)

    def take_aside(self, kind: str, rest: Sequence[Any]) -> None:
        with self.pool.lock:
            if kind == "metric":
                total, count = self.pool.metrics.get(rest[0], (0.0, 0))
                self.pool.metrics[rest[0]] = (total + rest[1], count + 1)
            elif kind == "note" and rest[0] not in self.pool.seen_notes:
                self.pool.seen_notes.add(rest[0])
                self.pool.notes.append(rest[0])

    def process(self, job: Job) -> None:
        hangs = deaths = 0
        while pending := job.pending():
            if self.pool.closed or hangs == HANGS_IN_A_ROW or deaths == DEATHS_IN_A_ROW:
                reason = "the judge was closed" if self.pool.closed else f"not judged: {hangs + deaths} in a row failed"
                give_up(job, pending, reason + (f" ({timed_out(self.pool.timeout)})" if hangs else ""))
                return
            try:
                self.attempt(job, pending, self.ensure_child())
            except (ChildTimeoutError, ChildLostError) as error:
                self.drop_child()
                scored = len(job.pending()) < len(pending)
                hung = isinstance(error, ChildTimeoutError)
                if self.together(job) and len(job.pending()) > 1:
                    job.alone = True
                    continue
                hangs, deaths = (0, 0) if scored else (hangs, deaths)
                hangs, deaths = hangs + hung, deaths + (not hung)
                job.scores[job.pending()[0]] = (None, timed_out(self.pool.timeout) if hung else str(error))

    def together(self, job: Job) -> bool:
        return bool(self.pool.descriptions[job.part]["whole_batch"]) and not job.alone

    def attempt(self, job: Job, pending: Sequence[int], child: Child) -> None:
        """Have the pending samples judged. Raises ChildTimeoutError or ChildLostError with the scores so far filled in."""
        limit = self.pool.timeout
        if self.together(job):
            limit = limit * -(-len(pending) // SAMPLES_PER_TIMEOUT) + CONCURRENCY_GRACE
        try:
            frame = pickle.dumps((job.part, [job.samples[index] for index in pending], job.alone, job.step))
        except Exception as error:
            raise UsageError(f"the data cannot be sent to the reward's process: {error}. Use plain values.") from None
        deadline = time.monotonic() + limit
        child.send(frame, deadline)
        left = len(pending)
        while left:
            for kind, *rest in child.receive(deadline):
                if kind == "score":
                    index, score, columns = rest
                    job.scores[pending[index]], job.columns[pending[index]] = tuple(score), columns
                    left -= 1
                elif kind == "alone":
                    job.alone = True
                else:
                    self.take_aside(kind, rest)
            deadline = time.monotonic() + (limit if self.together(job) else self.pool.timeout)

    def drop_child(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None

    def stop(self) -> None:
        child = self.child
        if child is not None:
            child.kill()
        self.join(timeout=5)


def give_up(job: Job, pending: Sequence[int], reason: str) -> None:
    for index in pending:
        job.scores[index] = (None, reason)
