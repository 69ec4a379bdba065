"""The command line: one file per command, found by name; tyro reads a command's options from its function."""

import contextlib
import functools
import importlib
import io
import re
from collections.abc import Callable
from typing import Any

from upslope.errors import UsageError

COMMANDS = {
    "train": "train a model by a method, on a task or your own data",
    "eval": "pass@k of a model on held-out prompts, or its win rate against another",
    "certify": "what a policy for an environment earns at least when its observations are tampered with",
    "data": "make a log of transitions to learn from offline",
    "compare": "several methods over the same seeds and prompts",
    "probe": "what methods would change on a task, without training",
    "diagnose": "which pairs a model ranks right; how often it solves each prompt; a teacher's log-probs; what a log is worth",
    "report": "an HTML report of one or more runs",
    "export": "a policy for an environment as ONNX",
    "methods": "list the methods",
    "show": "a method's objective, parts, settings, paper and page",
    "diff": "the parts in which two methods differ",
    "tasks": "list the tasks",
    "doctor": "check this machine, and a model with a task if given",
    "new": "start the file, the test and the page of a method",
}
ALIASES = {"describe": "show", "list": "methods"}
KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}


def run(arguments: list[str]) -> int:
    """Runs one command. Raises UsageError for a command or an option that does not exist."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from upslope import __version__

        print(f"upslope {__version__}")
        return 0
    name = ALIASES.get(arguments[0], arguments[0])
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(COMMANDS)}."
        raise UsageError(f"no command '{name}'. {hint}")
    command: Callable[..., int | None] = importlib.import_module(f"upslope.cli.{name}").command
    keywords = _parse(name, command, arguments[1:])
    return 0 if keywords is None else command(**keywords) or 0


def _parse(name: str, command: Callable, arguments: list[str]) -> dict[str, Any] | None:
    """The command's keywords, or None where its help was printed. tyro's boxed errors become one line."""
    import tyro

    @functools.wraps(command)
    def keywords(**given: Any) -> dict[str, Any]:
        return given

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(keywords, prog=f"upslope {name}", args=arguments)
    except SystemExit as end:
        if not end.code:
            return None
    raise UsageError(f"{name}: {_one_line(complaint.getvalue())} See `upslope {name} --help`.")


def _one_line(box: str) -> str:
    """What a box of tyro's says, without its frame."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[─╭╮╰╯│|]|-{4,}", " ", box).split())
    if wrong := re.search(r"Error parsing (\S+): .*?'([^']*)'.*? Argument helptext: .*?\b(INT|FLOAT|PATH|STR)\b", text):
        option, value, kind = wrong.groups()
        return f"{option} takes {KINDS[kind]}, not '{value}'."
    if other := re.search(r"nvalid choice '([^']*)' for argument '(\S+)'\. Expected one of \((.*?)\)", text):
        return f"{other[2]} takes {other[3].replace(chr(39), '')}, not '{other[1]}'."
    if needy := re.search(r"Missing value for argument '(\S+)'", text):
        return f"{needy[1]} needs a value."
    if missing := re.search(r"Missing from upslope \S+: (.*?) For full", text):
        return f"missing {re.sub(r'(STR|PATH|INT|FLOAT|.required.) ?', '', missing[1]).strip(' .')}."
    if unknown := re.search(r"Unrecognized options: (.*?)( Perhaps you meant: .*?)? For full", text):
        close = " or ".join(dict.fromkeys(re.findall(r" (--[\w-]+)", unknown[2] or "")))
        return f"does not take {unknown[1]}.{f' Did you mean {close}?' if close else ''}"
    return text


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["upslope COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    lines += [
        "",
        "  upslope COMMAND --help shows a command's options; --debug shows tracebacks; --version the version.",
    ]
    return "\n".join(lines)
