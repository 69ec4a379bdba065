"""Overriding by name: a stage by the method that has the part, a setting by its field."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from upslope.errors import UsageError
from upslope.recipe import STAGES, Part, Parts, Recipe

PartNamed = Callable[[str, str], Parts]


def with_settings(recipe: Recipe, settings: Mapping[str, Any], part_named: PartNamed) -> Recipe:
    """`recipe` with stages and settings overridden.

    A key is a stage (its value a Part, None, or a method's name, whose part `part_named(stage, name)` finds), a setting that
    exactly one part has, or `stage.setting` (`stage.ClassName.setting` where a stage holds two alike).
    Raises UsageError for a key that no part reads, that several read, or whose value is of the wrong kind.
    """
    for key, value in settings.items():
        if key in STAGES:
            recipe = recipe.replace(**{key: part_named(key, value) if isinstance(value, str) else value})
    changes: dict[int, tuple[str, Part, dict[str, Any]]] = {}
    for key, value in settings.items():
        if key not in STAGES:
            stage, part, setting = _owner(recipe, key)
            changes.setdefault(id(part), (stage, part, {}))[2][setting] = converted(part, setting, value)
    for stage, part, changed in changes.values():  # all of a part's at once: it may check one against another
        recipe = _with_part(recipe, stage, part, replace(part, **changed))
    return recipe.check()


def known_settings(recipe: Recipe) -> list[str]:
    """Every `stage.setting` of the recipe, sorted."""
    return sorted(f"{stage}.{f.name}" for stage, part in recipe.stages() for f in fields(part))


def _owner(recipe: Recipe, key: str) -> tuple[str, Part, str]:
    """The stage, the part and the field that a key names."""
    wanted, _, setting = key.rpartition(".")
    found = [
        (stage, part)
        for stage, part in recipe.stages()
        if setting in {f.name for f in fields(part)} and wanted in ("", stage, f"{stage}.{type(part).__name__}")
    ]
    if not found:
        known = known_settings(recipe)
        close = difflib.get_close_matches(key, [*known, *(name.rpartition(".")[2] for name in known)], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"no part of '{recipe.name}' reads '{key}'.{hint} It has: {', '.join(known)}.")
    if len(found) > 1:
        names = [f"{stage}.{setting}" for stage, _ in found]
        if len(set(names)) < len(names):
            names = [f"{stage}.{type(part).__name__}.{setting}" for stage, part in found]
        raise UsageError(f"several parts of '{recipe.name}' read '{key}'. Say which: {', '.join(names)}.")
    return *found[0], setting


def _with_part(recipe: Recipe, stage: str, part: Part, changed: Part) -> Recipe:
    """The recipe with `changed` in the place of `part`."""
    if not stage.startswith("terms["):
        return recipe.replace(**{stage: _swap(getattr(recipe, stage), part, changed)})
    index = int(stage.removeprefix("terms[").removesuffix("]"))
    terms = list(recipe.terms)
    terms[index] = replace(
        terms[index], **{f.name: _swap(getattr(terms[index], f.name), part, changed) for f in fields(terms[index])}
    )
    return recipe.replace(terms=tuple(terms))


def _swap(held: Any, old: Part, new: Part) -> Any:
    if isinstance(held, tuple):
        return tuple(new if part is old else part for part in held)
    return new if held is old else held


def converted(owner: object, setting: str, value: Any) -> Any:
    """`value` as the field's annotation wants it (1 becomes 1.0 for a float); UsageError where it cannot be."""
    hint = get_type_hints(type(owner))[setting]
    kinds = [hint] if get_origin(hint) is Literal or not get_args(hint) else list(get_args(hint))
    for kind in kinds:
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if kind is NoneType and value is None:
            return None
        if kind in (bool, str) and isinstance(value, kind):
            return value
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and isinstance(value, kind) and kind not in (int, float):
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if kind is Ellipsis or get_origin(hint) is tuple:
            return tuple(value) if isinstance(value, list | tuple) else value
    wanted = ", ".join(
        " or ".join(map(repr, get_args(k))) if get_origin(k) is Literal else getattr(k, "__name__", str(k))
        for k in kinds
    )
    raise UsageError(f"{type(owner).__name__}.{setting} takes {wanted}, not {value!r}.")
