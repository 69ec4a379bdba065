"""Overriding by name: a stage by the method that has the part, a setting by its field."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from upslope.assembly import Assembly, as_tuple
from upslope.errors import UsageError
from upslope.recipe import Part, Parts, Term

PartNamed = Callable[[str, str], Parts]
Kind = TypeVar("Kind", bound=Assembly)


def with_settings(recipe: Kind, settings: Mapping[str, Any], part_named: PartNamed) -> Kind:
    """`recipe` with stages and settings overridden.

    A key is a stage (its value a Part, None, or a method's name, whose part `part_named(stage, name)` finds), a setting that
    exactly one part has, or `stage.setting` (`stage.ClassName.setting` where a stage holds two alike). What a further term is
    multiplied by is its setting `coefficient`, unless one of its parts has a setting of that name.
    Raises UsageError for a key that no part reads, that several read, or whose value is of the wrong kind.
    """
    for key, value in settings.items():
        if key in recipe.STAGES:
            if not all(isinstance(part, Part | str) for part in as_tuple(value)):
                raise UsageError(
                    f"{key} is a stage of '{recipe.name}', so it takes a part, the name of a method that has one, or none, and "
                    f"not {value!r}. A setting of its part is {key}.SETTING; upslope show {recipe.name} lists them."
                )
            recipe = recipe.replace(**{key: part_named(key, value) if isinstance(value, str) else value})
    changes: dict[int, tuple[str, Part | Term, dict[str, Any]]] = {}
    for key, value in settings.items():
        if key not in recipe.STAGES:
            stage, owner, setting = _owner(recipe, key)
            changes.setdefault(id(owner), (stage, owner, {}))[2][setting] = converted(owner, setting, value)
    for stage, owner, changed in changes.values():  # all of a part's at once: it may check one against another
        if isinstance(owner, Term):
            recipe = _with_term(recipe, stage, changed)
        else:
            recipe = _with_part(recipe, stage, owner, replace(owner, **changed))
    return recipe.check()


def known_settings(recipe: Assembly) -> list[str]:
    """Every `stage.setting` of the recipe, sorted."""
    return sorted(f"{stage}.{setting}" for stage, _, settings in _owners(recipe) for setting in settings)


def _owners(recipe: Assembly) -> Iterator[tuple[str, Part | Term, list[str]]]:
    """Whatever has settings: its stage, itself, and their names."""
    named = [(stage, part, [f.name for f in fields(part)]) for stage, part in recipe.stages()]
    yield from named
    for index, term in enumerate(recipe.terms):
        stage = f"terms[{index}]"
        if not any("coefficient" in settings for place, _, settings in named if place == stage):
            yield stage, term, ["coefficient"]


def _owner(recipe: Assembly, key: str) -> tuple[str, Part | Term, str]:
    """The stage, the part or term, and the field that a key names."""
    wanted, _, setting = key.rpartition(".")
    found = [
        (stage, owner)
        for stage, owner, settings in _owners(recipe)
        if setting in settings and wanted in ("", stage, f"{stage}.{type(owner).__name__}")
    ]
    if not found:
        known = known_settings(recipe)
        close = difflib.get_close_matches(key, [*known, *(name.rpartition(".")[2] for name in known)], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"no part of '{recipe.name}' reads '{key}'.{hint} It has: {', '.join(known)}.")
    if len(found) > 1:
        names = [f"{stage}.{setting}" for stage, _ in found]
        if len(set(names)) < len(names):
            names = [f"{stage}.{type(owner).__name__}.{setting}" for stage, owner in found]
        raise UsageError(f"several parts of '{recipe.name}' read '{key}'. Say which: {', '.join(names)}.")
    return *found[0], setting


def _with_part(recipe: Kind, stage: str, part: Part, changed: Part) -> Kind:
    """The recipe with `changed` in the place of `part`."""
    if not stage.startswith("terms["):
        return recipe.replace(**{stage: _swap(getattr(recipe, stage), part, changed)})
    term = recipe.terms[_index(stage)]
    return _with_term(recipe, stage, {f.name: _swap(getattr(term, f.name), part, changed) for f in fields(term)})


def _with_term(recipe: Kind, stage: str, changed: Mapping[str, Any]) -> Kind:
    """The recipe with some fields of the term at `stage` changed."""
    index, terms = _index(stage), list(recipe.terms)
    terms[index] = replace(terms[index], **changed)
    return recipe.replace(terms=tuple(terms))


def _index(stage: str) -> int:
    """0 of "terms[0]"."""
    return int(stage.removeprefix("terms[").removesuffix("]"))


def _swap(held: Any, old: Part, new: Part) -> Any:
    if isinstance(held, tuple):
        return tuple(new if part is old else part for part in held)
    return new if held is old else held


def converted(owner: object, setting: str, value: Any) -> Any:
    """`value` as the field's annotation wants it (1 becomes 1.0 for a float); UsageError where it cannot be."""
    hint = get_type_hints(type(owner))[setting]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        found = _as(kind, value)
        if found is not MISFIT:
            return found
    wanted = ", ".join(
        " or ".join(map(repr, get_args(k)))
        if get_origin(k) is Literal
        else (k.__name__ if isinstance(k, type) and not get_args(k) else str(k))
        for k in kinds
    )
    raise UsageError(f"{type(owner).__name__}.{setting} takes {wanted}, not {value!r}.")


MISFIT = object()


def _as(kind: Any, value: Any) -> Any:
    """`value` as `kind`, one member of an annotation; MISFIT where it is of another kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in inner):
        return value
    if kind in (int, float):
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return kind(value) if fits else MISFIT
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return MISFIT
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        items = [_as(*pair) for pair in zip(each, value, strict=False)]
        return tuple(items) if len(each) == len(value) and MISFIT not in items else MISFIT
    plain = origin or kind
    return value if isinstance(plain, type) and isinstance(value, plain) else MISFIT
