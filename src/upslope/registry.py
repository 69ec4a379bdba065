"""The methods: found as files, described without importing them, made by name.

A method is a file `methods/<family>/<name>.py`: module docstring = its page, one function decorated with `@method`, and
presets of the same formula in other systems' conventions, decorated with `@preset`.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import UsageError

if TYPE_CHECKING:
    from typing import TypeVar

    from upslope.assembly import Assembly
    from upslope.recipe import Part, Parts

    Kind = TypeVar("Kind", bound=Assembly)

METHODS = Path(__file__).parent / "methods"
HEADINGS = ("Differs from", "Limits", "Expects", "Source", "Deviations", "Not this")


def method(*, paper: str, title: str, parent: str | None = None, aliases: tuple[str, ...] = ()) -> Callable:
    """Marks a function without arguments as the recipe of the file it stands in.

    `paper` is an arXiv number (or a citation where there is none), `title` the paper's, `parent` the method it differs from,
    `aliases` further names by which it is found.
    """
    return _marked("method", {"paper": paper, "title": title, "parent": parent, "aliases": aliases})


def preset(system: str, *, version: str) -> Callable:
    """Marks a function as the file's method in another system's convention, made as `name@system`."""
    return _marked("preset", {"system": system, "version": version})


def _marked(kind: str, facts: dict[str, Any]) -> Callable:
    def decorate(function: "Callable[[], Kind]") -> "Callable[[], Kind]":
        @functools.wraps(function)
        def build() -> "Kind":
            recipe = function()
            name = (
                function.__name__
                if kind == "method"
                else f"{Path(function.__code__.co_filename).stem}@{facts['system']}"
            )
            return recipe.replace(name=name).check()

        return build

    return decorate


@dataclass(frozen=True)
class Method:
    """What a method's file says about it, read without importing it. `presets` maps a system to (function, version)."""

    name: str
    family: str
    title: str
    paper: str
    parent: str | None
    page: str
    file: Path
    function: str
    presets: dict[str, tuple[str, str]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the page."""
        return self.page.strip().splitlines()[0]

    @property
    def url(self) -> str | None:
        """The paper on arXiv, if `paper` is an arXiv number."""
        return f"https://arxiv.org/abs/{self.paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", self.paper) else None

    def tests(self) -> str | None:
        """The method's test file relative to the repository, where it can be seen (a checkout)."""
        test = Path("tests", "methods", self.family, f"test_{self.name}.py")
        return str(test) if (METHODS.parents[2] / test).exists() else None

    def claim(self) -> str:
        """What became of the paper's claim at our scale: what the page says under `Claim`, or "not tested"."""
        return " ".join(self.sections().get("Claim", "not tested").split())

    def section(self, heading: str) -> str | None:
        """The text under one of HEADINGS in the page, or None."""
        return self.sections().get(heading)

    def sections(self) -> dict[str, str]:
        """Heading -> text, in the order of the page; "Formula" is what stands before the first heading."""
        found = {"Formula": ""}
        current = "Formula"
        for line in self.page.strip().splitlines()[1:]:
            match = re.match(rf"({'|'.join((*HEADINGS, 'Claim'))})([^:]*):\s*(.*)", line)
            if match:
                current = match[1]
                found[current] = f"{match[2].strip()}: {match[3]}" if match[2].strip() else match[3]
            else:
                found[current] += "\n" + (line if current == "Formula" else line.strip())
        return {heading: text.strip("\n") for heading, text in found.items()}


@functools.cache
def read_method(file: Path) -> Method:
    """The facts of a method's file, by parsing it. Raises UsageError if it is not the file of a method."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise UsageError(f"cannot read a method from {file}: {error}.") from None
    calls = [
        (function.name, call)
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for call in function.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("method", "preset")
    ]
    marks = [(name, call.func.id, *_facts(call, file)) for name, call in calls]  # type: ignore[attr-defined]
    methods = [(name, facts) for name, mark, _, facts in marks if mark == "method"]
    if len(methods) != 1:
        raise UsageError(f"{file} has {len(methods)} functions marked @method; the file of a method has one.")
    name, facts = methods[0]
    if name != file.stem:
        raise UsageError(f"{file}: the function marked @method is '{name}'; name it '{file.stem}', as the file.")
    if not {"paper", "title"} <= facts.keys():
        raise UsageError(
            f'{file}: write @method(paper="0000.00000", title="...", parent="..."); paper and title are needed.'
        )
    presets = {of[0]: (function, facts["version"]) for function, mark, of, facts in marks if mark == "preset"}
    return Method(
        name=name,
        family=file.parent.name,
        title=facts["title"],
        paper=facts["paper"],
        parent=facts.get("parent"),
        page=ast.get_docstring(tree) or "",
        file=file,
        function=name,
        presets=presets,
        aliases=tuple(facts.get("aliases", ())),
    )


def _facts(call: ast.Call, file: Path) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a mark, read without running the file. Raises UsageError where they are computed or missing."""
    try:
        facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        positional = [ast.literal_eval(value) for value in call.args]
    except ValueError:
        raise UsageError(
            f"{file}, line {call.lineno}: paper, title, parent, system and version are read without running the file, so "
            "each must be a plain text."
        ) from None
    if call.func.id == "preset" and not (positional and "version" in facts):  # type: ignore[attr-defined]
        raise UsageError(f'{file}, line {call.lineno}: write @preset("system", version="...").')
    return positional, facts


@functools.cache
def _files() -> dict[str, Path]:
    return {file.stem: file for file in sorted(METHODS.glob("*/*.py")) if not file.stem.startswith("_")}


def list_methods(query: str = "", *, family: str | None = None) -> list[str]:
    """Names of the methods whose name, title or summary holds every word of `query`, sorted; no method is imported.

    Raises UsageError for a family that does not exist.
    """
    files = _files()
    families = sorted({file.parent.name for file in files.values()})
    if family is not None and family not in families:
        raise UsageError(f"no family '{family}'. There is: {', '.join(families)}.")
    chosen = [name for name, file in sorted(files.items()) if family in (None, file.parent.name)]
    words = query.lower().split()
    if not words:
        return chosen
    found = [(name, read_method(files[name])) for name in chosen]
    return [name for name, m in found if all(w in f"{name} {m.title} {m.summary} {m.paper}".lower() for w in words)]


def find(name: str) -> Method:
    """The method of this name (a preset's `name@system`, or a path to a method's file). UsageError names near misses."""
    base, system = _split(name)
    files = _files()
    plain = base.lower().replace("-", "_").replace(".", "_")
    if base.endswith(".py"):
        found = read_method(Path(base).resolve())
    elif plain in files:
        found = read_method(files[plain])
    else:
        known = {alias: read_method(file) for file in files.values() for alias in read_method(file).aliases}
        if plain not in known:
            close = difflib.get_close_matches(base.lower(), [*files, *known], n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(close)}?" if close else " `upslope methods` lists them."
            raise UsageError(f"no method '{base}'.{hint}")
        found = known[plain]
    if system and system not in found.presets:
        there = ", ".join(f"{found.name}@{s}" for s in found.presets) or "none"
        raise UsageError(f"'{found.name}' has no preset '@{system}'. Presets: {there}.")
    return found


def _split(name: str) -> tuple[str, str]:
    """("grpo", "trl") of "grpo@trl"; an @ in a folder's name is no preset."""
    match = re.fullmatch(r"(.+?)@(\w+)", name)
    return (match[1], match[2]) if match else (name, "")


def make(name: str, **settings: Any) -> Any:
    """The recipe of a method, a preset (`grpo@trl`) or a method's file, with settings overridden by name.

    A Recipe, or an ActorCritic for a method that learns from stored transitions.

        make("grpo", ratio_high=1.28)             a setting, by its field
        make("grpo", advantage="rloo")            a stage, by the method that has the part (or a Part, or None)
        make("ppo_llm", **{"advantage.eps": 0})   stage.setting, where two parts share the name

    Raises UsageError for an unknown name, and for a setting that no part reads.
    """
    from upslope.settings import with_settings

    recipe = _build(name)
    return with_settings(recipe, settings, lambda stage, other: _part_named(recipe, stage, other))


def _build(name: str) -> "Assembly":
    found = find(name)
    system = _split(name)[1]
    module = _import(found)
    return getattr(module, found.presets[system][0] if system else found.function)()


def _import(found: Method) -> Any:
    if METHODS in found.file.parents:
        return importlib.import_module(f"upslope.methods.{found.family}.{found.name}")
    key = f"upslope_method_{found.name}_{abs(hash(found.file))}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, found.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UsageError(f"{found.file} fails on import: {type(error).__name__}: {error}.") from error
        sys.modules[key] = module
    return sys.modules[key]


def _part_named(recipe: "Assembly", stage: str, name: str) -> "Parts":
    other = _build(name)
    if type(other) is not type(recipe):
        raise UsageError(
            f"'{recipe.name}' cannot take its {stage} from '{name}': one is of kind {type(recipe).__name__}, the other of kind "
            f"{type(other).__name__}, whose parts read other things."
        )
    found: Parts = getattr(other, stage)
    return found


def describe(name: str, **settings: Any) -> str:
    """The assembled objective as a formula, the parts with their settings, the paper and the known deviations."""
    found, recipe = find(name), make(name, **settings)
    width = max(len(key) for key in recipe.parts())
    lines = [f"{recipe.name}: {found.title}", f"{found.url or found.paper}", "", *recipe.objective(), "", "parts"]
    lines += [f"  {key:<{width}}  {part}" for key, part in recipe.parts().items()]
    lines += [recipe.reading()]
    for heading in ("Expects", "Deviations", "Not this", "Claim"):
        text = found.section(heading)
        if text:
            lines += ["", f"{heading}: " + " ".join(text.split())]
    return "\n".join(lines)


def diff(one: str, other: str) -> str:
    """The parts and settings in which two methods differ, one line each; "" where there is no difference."""
    recipes = make(one), make(other)
    several = {key.partition(".")[0] for recipe in recipes for key in recipe.parts() if "." in key}
    first, second = (_by_class(recipe, several) for recipe in recipes)
    lines = []
    for key in sorted({*first, *second}, key=list({**first, **second}).index):
        a, b = first.get(key), second.get(key)
        if a != b:
            lines.append(f"{key}\n  {one}: {a}\n  {other}: {b}")
    return "\n".join(lines)


def _by_class(recipe: "Assembly", several: set[str]) -> "dict[str, Part | float]":
    """Parts by stage, and by `stage.ClassName` in the stages where one of two recipes holds several; factors of terms."""
    parts = {f"{key}.{type(part).__name__}" if key in several else key: part for key, part in recipe.parts().items()}
    factors = {f"terms[{i}].coefficient": t.coefficient for i, t in enumerate(recipe.terms) if t.coefficient != 1}
    return {**parts, **factors}
