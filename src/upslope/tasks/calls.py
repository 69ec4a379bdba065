"""Function calls in Python's syntax, compared by their syntax trees. Nothing that a completion says is ever executed."""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Hashable
from typing import Any

from upslope.tasks.scorers import (
    REFERENCE_MISSING,
    RIGHT,
    WRONG,
    Channel,
    Sample,
    Score,
    Scorer,
    excerpt,
    final_answer,
)

Calls = Counter[Hashable]
LONGEST = 20_000
"""Characters of a text that are parsed; a longer one is no list of calls."""


class FunctionCalls(Scorer):
    """1 if the completion's answer is calls, and they are the reference's, in any order; a list of references: any of them.

    The answer is what follows the reasoning, `<think>...</think>`; of that the last <answer> element, if there is one. It is
    calls one after the other, on lines of their own, or in brackets: `f(x=3)` or `[f(x=3), pkg.g("a", y=[1, 2])]`, and no other
    text. `think`: a completion without that reasoning at its beginning is wrong; its opening tag may stand in the prompt.
    """

    def __init__(self, channel: Channel, think: bool = False) -> None:
        super().__init__(channel)
        self.think = think

    def score(self, sample: Sample) -> Score:
        if sample.reference is None:
            return REFERENCE_MISSING
        given = sample.reference if isinstance(sample.reference, list | tuple) else [sample.reference]
        wanted = [parse_calls(str(text)) for text in given]
        if None in wanted or not wanted:
            return None, f"the reference answer is no function call: {excerpt(str(sample.reference))}"
        answer = after_reasoning(sample.completion, required=self.think)
        calls = None if answer is None else parse_calls(final_answer(answer))
        return RIGHT if calls is not None and calls in wanted else WRONG


def after_reasoning(completion: str, *, required: bool) -> str | None:
    """What follows the reasoning; the whole completion where there is none, or None if it is required."""
    found = re.fullmatch(r"\s*(?:<think>)?((?:(?!</?think>).)*)</think>(.*)", completion, re.DOTALL)
    if found is not None:
        return found[2]
    return None if required else completion


def parse_calls(text: str) -> Calls | None:
    """The calls that a text consists of, each as often as it occurs; None if it is anything else."""
    if len(text) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as: an invalid escape sequence
            tree = ast.parse(text.strip())
        values = [node.value if isinstance(node, ast.Expr) else node for node in tree.body]
        if len(values) == 1 and isinstance(values[0], ast.List | ast.Tuple):
            values = list(values[0].elts)
        if not values or not all(isinstance(value, ast.Call) and is_name(value.func) for value in values):
            return None
        return Counter(canonical(value) for value in values)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_name(node: ast.AST) -> bool:
    """Whether a node is a name, perhaps with dots."""
    return is_name(node.value) if isinstance(node, ast.Attribute) else isinstance(node, ast.Name)


def canonical(node: Any) -> Hashable:
    """A syntax tree as nested tuples, equal for equal trees; the order of named arguments, of dict and of set items is left out.

    Numbers are equal if type and value are: 3 and 3.0 differ, and so do 1 and True; 1000 and 1_000, "a" and 'a' do not.
    """
    if isinstance(node, list):
        return tuple(canonical(item) for item in node)
    if isinstance(node, ast.Constant):
        return type(node.value).__name__, node.value
    if isinstance(node, ast.Dict):
        return "Dict", unordered((canonical(k), canonical(v)) for k, v in zip(node.keys, node.values, strict=True))
    if isinstance(node, ast.Set):
        return "Set", unordered(canonical(item) for item in node.elts)
    if isinstance(node, ast.Call):
        named = unordered((keyword.arg, canonical(keyword.value)) for keyword in node.keywords)
        return "Call", canonical(node.func), canonical(node.args), named
    if isinstance(node, ast.AST):
        return type(node).__name__, *(canonical(getattr(node, name)) for name in node._fields)
    return node


def unordered(items: Any) -> frozenset[tuple[Hashable, int]]:
    """The items with how often each occurs."""
    return frozenset(Counter(items).items())
