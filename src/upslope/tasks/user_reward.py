"""A user's reward function: found, told apart by its signature, called. Runs inside a reward worker only.

Two signatures are known, told apart by the names of the parameters:

    TRL    def reward(prompts, completions, **columns) -> list[float | None]      once for a whole batch
    verl   def compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict      once per answer

Either may be `async`. What it says of a completion beside the score, for methods that read it (VERDICT_COLUMNS), is in
TRL's signature `log_extra(column, values)`, in verl's a further key of the dict; none of it is reward. The file is the
user's own code and is executed with the user's rights: the worker process protects the training run from its mistakes, not
the machine from its intentions.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from upslope.errors import UsageError
from upslope.tasks.scorers import (
    VERDICT_COLUMNS,
    Channel,
    Columns,
    Judged,
    Report,
    Sample,
    Score,
    Scorer,
    describe_error,
    guarded,
    to_score,
)

TRL_NAMES = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
VERL_NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")
NOT_COLUMNS = frozenset({"prompt", "completion", *TRL_NAMES})
CONCURRENT = 32
SIGNATURES = (
    "Name its parameters as in TRL, where one call judges a batch: `def {name}(prompts, completions, **columns) -> "
    "list[float]`, or as in verl, where a call judges one answer: `def {name}(data_source, solution_str, ground_truth, "
    "extra_info=None) -> float`."
)


def load_function(path: str | None, module: str | None, function: str) -> Callable[..., Any]:
    """The named function of a file or an importable module.

    Raises UsageError if the import fails (naming the line in the file) or there is no such function (naming those that
    there are).
    """
    source = Path(path).name if path else str(module)
    try:
        loaded = import_file(Path(path)) if path else importlib.import_module(str(module))
    except BaseException as error:
        raise UsageError(f"the reward {source} cannot be imported: {describe_error(error, path)}") from None
    found: Any = loaded
    for part in function.split("."):
        found = getattr(found, part, None)
    if callable(found):
        return found
    there = [name for name, value in vars(loaded).items() if is_own_function(loaded, value)]
    listing = ", ".join(there) or "none"
    raise UsageError(f"{source} has no function '{function}'. Its functions: {listing}.")


def import_file(path: Path) -> ModuleType:
    name = f"upslope_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is not a Python file")
    sys.path.insert(0, str(path.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_own_function(module: ModuleType, value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__


def make_user_scorer(channel: Channel, path: str | None, module: str | None, function: str, timeout: float) -> Scorer:
    """The scorer for a function, by its signature; UsageError if the parameters' names do not tell which it is."""
    call = load_function(path, module, function)
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(call).parameters
    except (TypeError, ValueError):
        parameters = {}
    if ("completions" in parameters) == ("solution_str" in parameters):
        shown = f"{function}({', '.join(parameters)})"
        where = Path(path).name if path else module
        raise UsageError(f"{where}: cannot tell how {shown} wants to be called. {SIGNATURES.format(name=function)}")
    scorer = BatchedFunction if "completions" in parameters else SingleFunction
    return scorer(channel, call, parameters, path, timeout)


class UserFunction(Scorer):
    def __init__(
        self,
        channel: Channel,
        call: Callable[..., Any],
        parameters: Mapping[str, inspect.Parameter],
        path: str | None,
        timeout: float,
    ) -> None:
        super().__init__(channel)
        self.call, self.path, self.timeout = call, path, timeout
        self.is_async = any(inspect.iscoroutinefunction(one) for one in (call, getattr(call, "__call__", None)))  # noqa: B004
        self.loop: asyncio.AbstractEventLoop | None = None
        self.names = [name for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        self.takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters.values())
        required = {name for name in self.names if parameters[name].default is inspect.Parameter.empty}
        self.columns = tuple(sorted(required - set(TRL_NAMES) - set(VERL_NAMES)))

    def arguments(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in offered.items() if self.takes_all or name in self.names}

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """One event loop for the worker's life, so that a session opened by one call serves the next."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(coroutine)

    def raised(self, error: BaseException) -> Judged:
        return (None, describe_error(error, self.path)), {}

    def given(self, values: Mapping[str, Any]) -> Columns:
        """The columns among `values`, without those that are None; one that is not of its kind is left out, with a note."""
        found: dict[str, float | str] = {}
        for name in sorted(VERDICT_COLUMNS & values.keys()):
            column, why = to_column(name, values[name])
            if column is not None:
                found[name] = column
            elif why:
                self.channel.note(f"the reward gave '{name}' as {why}; it is left out")
        return found


class BatchedFunction(UserFunction):
    """TRL's signature. If a call fails for a batch, its samples are tried again one by one, so that one bad sample
    does not cost its neighbours; a call that returns the wrong number of rewards is a failure of all its samples."""

    whole_batch = True

    def run(self, samples: Sequence[Sample], alone: bool, step: int, report: Report) -> None:
        if not alone:
            try:
                judged = self.judge(samples, step)
            except BaseException as error:
                judged = [self.raised(error)]
                alone = len(samples) > 1
            if not alone:
                for index, one in enumerate(judged):
                    report(index, *one)
                return
            self.channel.alone()
        for index, sample in enumerate(samples):
            report(index, *self.judge_alone(sample, step))

    def judge_alone(self, sample: Sample, step: int) -> Judged:
        try:
            return self.judge([sample], step)[0]
        except BaseException as error:
            return self.raised(error)

    def judge(self, samples: Sequence[Sample], step: int) -> list[Judged]:
        extra: dict[str, list[Any]] = {}
        result = self.call(**self.arguments(self.offer(samples, step, extra)))
        if inspect.isawaitable(result):
            result = self.wait_for(as_coroutine(result))
        scores = self.scores(result, samples)
        for name, values in extra.items():
            if len(values) != len(samples):
                reason = (
                    f"log_extra('{name}') was given {counted(values, samples)} values for {len(samples)} completions"
                )
                return [((None, reason), {})] * len(samples)
        rows = [{name: values[index] for name, values in extra.items()} for index in range(len(samples))]
        return [(score, self.given(row)) for score, row in zip(scores, rows, strict=True)]

    def scores(self, result: Any, samples: Sequence[Sample]) -> list[Score]:
        if isinstance(result, str | bytes | Mapping) or not hasattr(result, "__iter__"):
            kind = type(result).__name__
            return [(None, f"returned {kind}, not a list of {len(samples)} rewards")] * len(samples)
        values = list(itertools.islice(result, len(samples) + 1))
        if len(values) != len(samples):
            reason = f"returned {counted(values, samples)} rewards for {len(samples)} completions"
            return [(None, reason)] * len(samples)
        return [guarded(partial(to_score, value)) for value in values]

    def offer(self, samples: Sequence[Sample], step: int, extra: dict[str, list[Any]]) -> dict[str, Any]:
        """TRL's arguments. `extra` takes up the columns that the function gives with `log_extra`."""

        def log_extra(column: str, values: Iterable[Any]) -> None:
            if column in VERDICT_COLUMNS:
                extra[column] = list(itertools.islice(values, len(samples) + 1))
            else:
                self.channel.note(f"log_extra({column!r}): no method reads such a column, so it is not recorded")

        columns = dict.fromkeys(name for sample in samples for name in sample.data if name not in NOT_COLUMNS)
        offered: dict[str, Any] = {name: [sample.data.get(name) for sample in samples] for name in columns}
        offered |= {
            "prompts": [sample.prompt for sample in samples],
            "completions": [as_completion(sample) for sample in samples],
            "trainer_state": SimpleNamespace(global_step=step),
            "log_metric": self.log_metric,
            "log_extra": log_extra,
        }
        if all(sample.completion_ids is not None for sample in samples):
            offered["completion_ids"] = [list(sample.completion_ids or ()) for sample in samples]
        return offered

    def log_metric(self, name: str, value: Any) -> None:
        number, failure = to_score(value)
        if number is not None:
            self.channel.metric(str(name), number)
        else:
            self.channel.note(f"log_metric({name!r}) was given {failure or 'None'}")


class SingleFunction(UserFunction):
    """verl's signature. Async functions run up to 32 at a time, each under the time limit."""

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        return self.is_async

    def run(self, samples: Sequence[Sample], alone: bool, step: int, report: Report) -> None:
        if self.is_async and not alone:
            self.wait_for(self.run_together(samples, report))
            return
        for index, sample in enumerate(samples):
            report(index, *self.judge(sample))

    async def run_together(self, samples: Sequence[Sample], report: Report) -> None:
        slots = asyncio.Semaphore(CONCURRENT)

        async def judge(index: int, sample: Sample) -> None:
            async with slots:
                try:
                    result = await asyncio.wait_for(self.call(**self.offer(sample)), self.timeout)
                    report(index, *self.judged(result))
                except TimeoutError:
                    report(index, (None, timed_out(self.timeout)))
                except BaseException as error:
                    report(index, *self.raised(error))

        await asyncio.gather(*(judge(index, sample) for index, sample in enumerate(samples)))

    def judge(self, sample: Sample) -> Judged:
        try:
            result = self.call(**self.offer(sample))
            if inspect.isawaitable(result):
                result = self.wait_for(as_coroutine(result))
            return self.judged(result)
        except BaseException as error:
            return self.raised(error)

    def offer(self, sample: Sample) -> dict[str, Any]:
        """verl's four arguments. A row without `extra_info` gives its other columns instead."""
        rest = {name: value for name, value in sample.data.items() if name not in NOT_COLUMNS}
        offered = {
            "data_source": sample.data.get("data_source", ""),
            "solution_str": sample.completion,
            "ground_truth": sample.reference,
            "extra_info": sample.data.get("extra_info", rest),
        }
        return self.arguments({**{name: rest[name] for name in self.columns if name in rest}, **offered})

    def judged(self, result: Any) -> Judged:
        if not isinstance(result, Mapping):
            return to_score(result), {}
        if "score" not in result:
            return (None, "returned a dict without 'score'"), {}
        for name, value in result.items():
            number, _ = to_score(value) if name != "score" else (None, None)
            if number is not None:
                self.channel.metric(str(name), number)
        return to_score(result["score"]), self.given(result)


def to_column(name: str, value: Any) -> tuple[float | str | None, str | None]:
    """A value as one of VERDICT_COLUMNS: (number or text, None), (None, what is wrong with it), or (None, None) for None.

    An answer may be a text; of a long one, a digest stands for it. A stratum is a whole number.
    """
    if name == "answer" and isinstance(value, str):
        return (value if len(value) <= 200 else hashlib.sha256(value.encode(errors="replace")).hexdigest()), None
    number, failure = to_score(value)
    if failure is not None:
        return None, failure.removeprefix("returned ")
    if name == "stratum" and number is not None and not number.is_integer():
        return None, f"{number:g}, not a whole number"
    return number, None


def as_completion(sample: Sample) -> Any:
    """TRL gives a message list where the prompt is one."""
    if isinstance(sample.prompt, str):
        return sample.completion
    return [{"role": "assistant", "content": sample.completion}]


async def as_coroutine(awaitable: Any) -> Any:
    return await awaitable


def counted(values: Sequence[Any], samples: Sequence[Sample]) -> int | str:
    return len(values) if len(values) < len(samples) else f"more than {len(samples)}"


def timed_out(seconds: float) -> str:
    return f"timed out after {seconds:g} s"
