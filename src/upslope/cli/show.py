"""upslope show METHOD [SETTING=VALUE ...]"""

from typing import Annotated, Any

import tyro

from upslope.config import parse_value
from upslope.errors import UsageError
from upslope.registry import describe, find


def command(
    method: tyro.conf.Positional[str],
    settings: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    page: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Show a method's assembled objective, its parts with their settings, the paper and the known deviations.

    Example: `upslope show grpo advantage=rloo surrogate.ratio_high=1.28`

    Args:
        method: a name that `upslope methods` lists, `grpo@trl` for a system's preset, or the path of a method's file.
        settings: changes to look at, each NAME=VALUE.
        page: the whole page: formula with shapes, limits, sources.
    """
    print(describe(method, **_parsed(settings)))
    if page:
        print(f"\n{find(method).page}")


def _parsed(settings: tuple[str, ...]) -> dict[str, Any]:
    """Settings of the recipe, by name. Raises UsageError where there is no `=`."""
    found = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise UsageError(f"show takes NAME=VALUE, not '{setting}'. Example: upslope show grpo ratio_high=1.28")
        found[path.removeprefix("settings.")] = parse_value(text)
    return found
