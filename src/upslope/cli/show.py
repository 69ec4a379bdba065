"""upslope show METHOD [SETTING=VALUE ...]"""

from typing import Annotated

import tyro

from upslope.config import merge_overrides
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
    print(describe(method, **merge_overrides({}, settings).get("settings", {})))
    if page:
        print(f"\n{find(method).page}")
