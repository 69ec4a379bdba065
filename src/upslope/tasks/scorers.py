"""What runs inside a reward worker: the sample it is given, and the verifiers that Upslope brings along.

Nothing here imports torch: a worker starts in a few tenths of a second, and starts again after each hang.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

Score = tuple[float | None, str | None]  # (value, None), (None, failure), or (None, None): not applicable
Columns = Mapping[str, float | str]
Judged = tuple[Score, Columns]

VERDICT_COLUMNS = frozenset({"answer", "prediction", "stratum"})
"""What a reward may say of a completion beside its score, for methods that read it; none of it is reward."""

WRONG, RIGHT = (0.0, None), (1.0, None)
REFERENCE_MISSING = (None, "the row has no reference answer")


class Sample(NamedTuple):
    """One completion to be judged, with what its row says about it."""

    prompt: Any
    completion: str
    data: Mapping[str, Any]
    reference: Any
    completion_ids: Sequence[int] | None = None


class Report(Protocol):
    """Takes the score of a sample by its index, with the columns that are known of it."""

    def __call__(self, index: int, score: Score, columns: Columns | None = None, /) -> None: ...


class Channel(Protocol):
    """What a scorer may say to the trainer's process besides its scores."""

    def metric(self, name: str, value: float) -> None: ...

    def note(self, text: str) -> None: ...

    def alone(self) -> None: ...


class Scorer:
    """Judges samples one by one; a subclass says how to judge one."""

    whole_batch = False
    """Whether one call judges all samples of a job, so that its time limit is that of many."""

    columns: tuple[str, ...] = ()
    """Columns that every row must have."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def score(self, sample: Sample) -> Score:
        raise NotImplementedError

    def run(self, samples: Sequence[Sample], alone: bool, step: int, report: Report) -> None:
        """Report the score of each sample, in order. `alone`: never judge two samples in one call."""
        for index, sample in enumerate(samples):
            report(index, guarded(partial(self.score, sample)))


class Exact(Scorer):
    """1 if completion and reference are equal after whitespace is normalized; a list of references: any of them."""

    def __init__(self, channel: Channel, ignore_case: bool = False) -> None:
        super().__init__(channel)
        self.ignore_case = ignore_case

    def score(self, sample: Sample) -> Score:
        if sample.reference is None:
            return REFERENCE_MISSING
        return RIGHT if same_text(sample.completion, sample.reference, self.ignore_case) else WRONG


class Pattern(Scorer):
    """1 if the pattern is found. If it has a group and the row a reference answer, the group must equal that answer."""

    def __init__(self, channel: Channel, pattern: str) -> None:
        super().__init__(channel)
        self.pattern = re.compile(pattern)

    def score(self, sample: Sample) -> Score:
        found = self.pattern.search(sample.completion)
        if found is None:
            return WRONG
        if not self.pattern.groups or sample.reference is None:
            return RIGHT
        return RIGHT if same_text(found.group(1) or "", sample.reference) else WRONG


class Choices(Scorer):
    """The share of the right options that the answer names; 0 if it names a wrong one, or none (TW-GRPO, arXiv:2505.24718).

    Options stand in the last <answer> element, or make up the whole completion: `A, C`, `(a) (c)` or `B`. They are
    separated by white space, commas or semicolons; case and the punctuation around them do not matter. The reference is
    such a text, or a list of options.
    """

    def score(self, sample: Sample) -> Score:
        if sample.reference is None:
            return REFERENCE_MISSING
        reference = sample.reference if isinstance(sample.reference, list | tuple) else [sample.reference]
        right = {option for one in reference for option in options(str(one))}
        if not right:
            return None, f"the reference answer names no option: {excerpt(str(sample.reference))}"
        named = options(final_answer(sample.completion))
        return (len(named) / len(right), None) if named <= right else WRONG


class Math(Scorer):
    r"""1 if math-verify finds the completion's final answer equal to the reference.

    The reference may be LaTeX with or without `$`, a plain expression, or a GSM8K solution that ends in `#### 72`.
    A reference that cannot be parsed is a failure, not a wrong answer. The time limit is the worker's: math-verify's
    own would turn a slow comparison into a wrong answer.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        import logging

        import math_verify

        for name in ("math_verify.parser", "math_verify.grader"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.library = math_verify
        self.references: dict[str, list] = {}

    def parse(self, text: str) -> list:
        return self.library.parse(text, parsing_timeout=None, raise_on_error=False)

    def parse_reference(self, reference: str) -> list:
        if reference not in self.references:
            final = reference.rsplit("####", 1)[-1].strip()
            self.references[reference] = self.parse(f"${final}$") or self.parse(final)
        return self.references[reference]

    def score(self, sample: Sample) -> Score:
        if sample.reference is None:
            return REFERENCE_MISSING
        reference = self.parse_reference(str(sample.reference))
        if not reference:
            return None, f"the reference answer cannot be parsed: {excerpt(str(sample.reference))}"
        answer = self.parse(sample.completion)
        return RIGHT if answer and self.library.verify(reference, answer, timeout_seconds=None) else WRONG


class Procedural(Scorer):
    """The scorer that a reasoning-gym dataset brings along, in [0, 1].

    A few of these scorers raise on an answer that is not even of the right form (`int("abc")`); that is a wrong answer,
    so it counts 0, and the exception is named once in the notes.
    """

    def __init__(self, channel: Channel, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(channel)
        from upslope.tasks.procedural import make_dataset

        self.name = name
        self.dataset = make_dataset(name, settings, seed=0, size=100)
        self.noted = False

    def score(self, sample: Sample) -> Score:
        try:
            return to_score(self.dataset.score_answer(final_answer(sample.completion), entry=sample.data))
        except Exception as error:
            if not self.noted:
                answer = excerpt(final_answer(sample.completion))
                self.channel.note(f"{self.name}'s scorer raised {describe_error(error)} on {answer}; counted as wrong")
                self.noted = True
            return WRONG


def final_answer(completion: str) -> str:
    """What stands in the last <answer> element, or the whole completion, without surrounding whitespace."""
    found = re.findall(r"<answer>(.*?)</answer>", completion, flags=re.DOTALL)
    return (found[-1] if found else completion).strip()


def options(text: str) -> set[str]:
    """What is separated by white space, commas or semicolons, without the punctuation around it, in lower case."""
    return {option.casefold() for word in re.split(r"[\s,;]+", text) if (option := word.strip("()[]{}.:!?*\"'`"))}


def same_text(text: str, reference: Any, ignore_case: bool = False) -> bool:
    if isinstance(reference, list | tuple):
        return any(same_text(text, one, ignore_case) for one in reference)
    left, right = (" ".join(str(side).split()) for side in (text, reference))
    return left.casefold() == right.casefold() if ignore_case else left == right


def guarded(call: Callable[[], Score]) -> Score:
    """The call's score, or what it raised (SystemExit included) as a failure."""
    try:
        return call()
    except BaseException as error:
        return None, describe_error(error)


def to_score(value: Any) -> Score:
    """A returned number as a score. True and False count as 1 and 0, NumPy and torch scalars as their number."""
    if value is None:
        return None, None
    if hasattr(value, "item") and not isinstance(value, int | float):
        try:
            value = value.item()
        except Exception:
            return None, f"returned {type(value).__name__} of several values, not a number"
    if not isinstance(value, int | float):
        return None, f"returned {type(value).__name__}, not a number"
    try:
        number = float(value)
    except OverflowError:
        return None, "returned a number too large for a float"
    return (number, None) if math.isfinite(number) else (None, f"returned {number}, not a finite number")


def describe_error(error: BaseException, path: str | None = None) -> str:
    """`ValueError at my.py:3: message`; the line is the deepest one in the file `path`, if it was passed through."""
    place, trace = "", error.__traceback__
    while trace is not None and path is not None:
        if trace.tb_frame.f_code.co_filename == path:
            place = f" at {path.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be printed)"
    return f"{type(error).__name__}{place}: {excerpt(message, 300, quote=False)}".rstrip(": ")


def excerpt(text: str, width: int = 80, quote: bool = True) -> str:
    """The beginning of a text, in one line."""
    short = text if len(text) <= width else text[: width - 1] + "…"
    return repr(short) if quote else " ".join(short.split())
