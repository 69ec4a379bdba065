"""upslope methods [QUERY] [--family F] [--json]"""

import json
from dataclasses import fields
from typing import Annotated, Any

import tyro

from upslope.registry import find, list_methods, make


def command(
    query: tyro.conf.Positional[str] = "",
    *,
    family: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the methods.

    Args:
        query: words that the name, the title or the summary must have.
        family: only this family.
        as_json: one JSON object per method, in a list.
    """
    names = list_methods(query, family=family)
    if as_json:
        print(json.dumps([facts(name) for name in names], indent=2))
        return
    if not names:
        print(f"no method matches '{query}'. `upslope methods` lists all.")
        return
    width = max(map(len, names))
    for name in names:
        found = find(name)
        presets = f"   [{', '.join('@' + system for system in found.presets)}]" if found.presets else ""
        print(f"{name:<{width}}  {found.summary.partition(': ')[2] or found.summary}{presets}")


def facts(name: str) -> dict[str, Any]:
    """What `--json` prints of a method."""
    found, recipe = find(name), make(name)
    return {
        "name": found.name,
        "title": found.title,
        "paper": found.paper,
        "family": found.family,
        "parent": found.parent,
        "presets": list(found.presets),
        "aliases": list(found.aliases),
        "parts": {
            key: {"part": type(part).__name__, **{f.name: getattr(part, f.name) for f in fields(part)}}
            for key, part in recipe.parts().items()
        },
        "needs": sorted(recipe.needs),
        "tests": found.tests(),
        "claim": found.claim(),
    }
