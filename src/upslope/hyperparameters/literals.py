"""Python expressions that are data: numbers, strings, lists, dict(...), names such as nn.ReLU. Parsed, never evaluated."""

import ast
from typing import Any

from upslope.errors import UsageError

LONGEST = 10_000  # characters of an expression


class Name(str):
    """A dotted name such as nn.ReLU: only its text; nothing is looked up."""

    __slots__ = ()


def parse_literal(text: str, where: str) -> Any:
    """The value of an expression: numbers, strings, True, False, None, lists, tuples, dicts, `dict(key=value)`, dotted names.

    `where` is named in errors. Raises UsageError for anything else, such as another call: text from a file is never run.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{where} is an expression of {len(text)} characters; at most {LONGEST} are read.")
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval")
        return _value(tree.body, where)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{where} is {_short(text)}, which is no value: {error}. Write it as dict(name=value, ...)."
        ) from None


def _value(node: ast.expr, where: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _value(node.operand, where)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List | ast.Tuple):
        items = [_value(item, where) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            _key(_value(key, where), where): _value(value, where)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        named = {word.arg: word.value for word in node.keywords if word.arg is not None}
        if len(named) == len(node.keywords):
            return {name: _value(value, where) for name, value in named.items()}
    if isinstance(node, ast.Name):
        return Name(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, where)
        if isinstance(owner, Name):
            return Name(f"{owner}.{node.attr}")
    raise UsageError(
        f"{where} has {_short(ast.unparse(node))}, which would have to be run to be known, and nothing in a file is run. Numbers, "
        "strings, lists, dict(name=value) and names such as nn.ReLU are read."
    )


def _key(value: Any, where: str) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    raise UsageError(f"{where} has {_short(repr(value))} as a key; keys are names or numbers.")


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 80 else f"{plain[:77]}..."
