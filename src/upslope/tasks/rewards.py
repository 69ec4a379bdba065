r"""How a reward is written: one verifier, or a weighted sum of several.

    exact               completion equals the reference answer, whitespace normalized (exact:ignore_case)
    math                math-verify finds the final answer equal to the reference
    choices             share of the reference's options that the answer names, 0 with a wrong one: A, C
    ast                 function calls equal to the reference's, in any order; ast:think after reasoning (upslope.tasks.calls)
    regex:PATTERN       the pattern is found; with a group, and a reference in the row, the group equals the reference
    FILE.py:FUNCTION    the user's function, in TRL's or verl's signature (upslope.tasks.user_reward)
    package.module:FUNCTION    the same, imported
    task                the task's own scorer (reasoning-gym tasks)
    A*0.5+B*1.0         a sum; the weight may stand before or after. A regex takes the rest of the text, so it comes last,
                        with its weight before it: math+0.1*regex:<answer>.*</answer>

The reward file is the user's own code, and it is executed, with the user's rights.
"""

import ast
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from upslope.errors import UsageError

RewardSpec = str | Callable[..., Any] | Mapping[str, float] | Sequence["str | Callable[..., Any]"]
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
FORMS = (
    "A reward is exact, exact:ignore_case, math, choices, ast, ast:think, regex:PATTERN, FILE.py:FUNCTION, "
    "package.module:FUNCTION, or a sum such as rewards.py:score*0.5+exact*1.0."
)


@dataclass(frozen=True)
class RewardPart:
    """One verifier of the sum. `settings` is what its worker needs to build it."""

    name: str
    kind: str
    weight: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_reference(self) -> bool:
        return self.kind in ("exact", "math", "choices", "ast")

    @property
    def reads_row(self) -> bool:
        """Whether the whole row has to be sent to the worker, not only completion and reference."""
        return self.kind in ("function", "reasoning_gym")

    def describe(self) -> str:
        label = self.settings.get("source", self.name)
        return label if self.weight == 1 else f"{self.weight:g}*{label}"


def parse_reward(spec: RewardSpec, own: RewardPart | None = None) -> tuple[RewardPart, ...]:
    """The parts of a reward, with distinct names.

    spec    a text as above; a function defined in a file; a list of these, summed; or {text: weight}
    own     what `task` stands for

    Raises UsageError for a text that is no reward, a file that is missing or has a syntax error, a pattern that does not
    compile, a weight that is 0 or not finite.
    """
    if isinstance(spec, Mapping):
        parts = [scale(part, weight) for text, weight in spec.items() for part in parse_terms(text, own)]
    elif isinstance(spec, str) or callable(spec) or not isinstance(spec, Sequence):
        parts = parse_terms(spec, own)
    else:
        parts = [part for one in spec for part in parse_terms(one, own)]
    if not parts:
        raise UsageError(f"the reward is empty. {FORMS}")
    names: dict[str, int] = {}
    for index, part in enumerate(parts):
        names[part.name] = names.get(part.name, 0) + 1
        if names[part.name] > 1:
            parts[index] = replace(part, name=f"{part.name}_{names[part.name]}")
    return tuple(parts)


def parse_terms(spec: str | Callable[..., Any], own: RewardPart | None) -> list[RewardPart]:
    if callable(spec):
        return [from_callable(spec)]
    if not isinstance(spec, str):
        raise UsageError(f"a reward is a text or a function, not {type(spec).__name__}. {FORMS}")
    return [parse_term(term, own) for term in split_terms(spec)]


def split_terms(text: str) -> list[str]:
    """Split at `+`, but neither inside a regex, which runs to the end, nor inside a file name that exists."""
    terms: list[str] = []
    rest = text.strip()
    while rest:
        if re.match(rf"(?:{NUMBER}\*)?regex:", rest) or is_one_file(rest):
            return [*terms, rest]
        term, plus, rest = rest.partition("+")
        # The sign of an exponent or of a weight belongs to its number: exact*1e+2, exact*+2.
        while plus and re.search(r"(?:\*|[\d.][eE])$", term) and re.match(r"\d|\.", rest):
            more, plus, rest = rest.partition("+")
            term += "+" + more
        if not term.strip() or (plus and not rest.strip()):
            raise UsageError(f"the reward '{text}' has an empty term. {FORMS}")
        terms.append(term.strip())
    return terms


def is_one_file(term: str) -> bool:
    """Whether the text is FILE.py:FUNCTION of a file that exists, perhaps with a weight; its name may hold a `+`."""
    source, _, rest = term.rpartition(":")
    return bool(re.fullmatch(rf"[\w.]+(?:\s*\*\s*{NUMBER})?", rest)) and Path(source or " ").is_file()


def parse_term(term: str, own: RewardPart | None) -> RewardPart:
    before = re.match(rf"({NUMBER})\*(?=\S)", term)
    if before:
        return scale(parse_term(term[before.end() :], own), before[1], term)
    if term.startswith("regex:"):
        return regex_part(term.removeprefix("regex:"))
    after = re.search(r"\*\s*([^*/:\\]+)$", term)
    if after:
        return scale(parse_term(term[: after.start()].strip(), own), after[1], term)
    if term == "task":
        if own is None:
            raise UsageError(f"the reward 'task' is the scorer of a reasoning-gym task; a data file has none. {FORMS}")
        return own
    kind, _, option = term.partition(":")
    if kind == "exact" and option in ("", "ignore_case"):
        return RewardPart("exact", "exact", settings={"ignore_case": bool(option), "source": term})
    if kind == "exact" and option:
        raise UsageError(f"the reward 'exact' has no option '{option}'; it has ignore_case.")
    if kind == "ast" and option in ("", "think"):
        return RewardPart("ast", "ast", settings={"think": bool(option), "source": term})
    if kind == "ast" and option:
        raise UsageError(f"the reward 'ast' has no option '{option}'; it has think.")
    if term in ("math", "choices"):
        return RewardPart(term, term)
    if ":" not in term:
        raise no_such_reward(term)
    source, _, function = term.rpartition(":")
    return file_part(source, function) if source.endswith(".py") or "/" in source else module_part(term)


def no_such_reward(term: str) -> UsageError:
    path = Path(term)
    if term.endswith(".py") and path.is_file():
        there = ", ".join(function_names(read_source(path))) or "none"
        return UsageError(f"the reward '{term}' names no function. Write {term}:FUNCTION. Its functions: {there}.")
    return UsageError(f"there is no reward '{term}'. {FORMS}")


def scale(part: RewardPart, weight: str | float, term: str | None = None) -> RewardPart:
    try:
        number = float(weight)
    except (TypeError, ValueError):
        raise UsageError(f"the weight in the reward '{term or part.name}' is no number: '{weight}'. {FORMS}") from None
    if not math.isfinite(number) or number == 0:
        raise UsageError(f"the weight {weight} in the reward '{term or part.name}' must be finite and not 0.")
    return replace(part, weight=part.weight * number)


def regex_part(pattern: str) -> RewardPart:
    if not pattern:
        raise UsageError("the reward 'regex:' has no pattern. Write regex:PATTERN.")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"the pattern of the reward 'regex:{pattern}' does not compile: {error}.") from None
    return RewardPart("regex", "regex", settings={"pattern": pattern, "source": f"regex:{pattern}"})


def file_part(source: str, function: str) -> RewardPart:
    path = Path(source).expanduser().resolve()
    tree = read_source(path, source)
    if not function:
        there = ", ".join(function_names(tree)) or "none"
        raise UsageError(f"the reward '{source}:' names no function. Its functions: {there}.")
    settings = {"path": str(path), "module": None, "function": function, "source": f"{source}:{function}"}
    return RewardPart(function, "function", settings=settings)


def read_source(path: Path, shown: str | None = None) -> ast.Module:
    """Parse the file, for the sake of the error message. Raises UsageError if it is missing, unreadable or wrong."""
    shown = shown or str(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the reward file {shown} cannot be read: {error.strerror or error}.") from None
    try:
        return ast.parse(text, filename=str(path))
    except SyntaxError as error:
        line = f": {error.text.strip()}" if error.text else ""
        raise UsageError(
            f"the reward file {shown} has a syntax error at line {error.lineno}, {error.msg}{line}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the reward file {shown} is no Python source: {error}.") from None


def function_names(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def module_part(term: str) -> RewardPart:
    module, _, function = term.rpartition(":")
    if not re.fullmatch(r"[\w.]+", module) or not re.fullmatch(r"[\w.]+", function):
        raise UsageError(f"there is no reward '{term}'. {FORMS}")
    settings = {"path": None, "module": module, "function": function, "source": term}
    return RewardPart(function, "function", settings=settings)


def from_callable(function: Callable[..., Any]) -> RewardPart:
    """A function given as an object runs in a worker process, so it must be importable from its file by its name."""
    name = getattr(function, "__qualname__", "")
    try:
        path = inspect.getsourcefile(function)
    except TypeError:
        path = None
    if path is None or not Path(path).is_file() or not name or "<" in name:
        raise UsageError(
            f"the reward {function!r} must be a function at the top level of a file, since it runs in another process. "
            "Move it into a file and write FILE.py:FUNCTION."
        )
    return file_part(path, name)
