"""Upslope: published policy-optimization methods as small recipes over shared parts, one loop for all of them.

    batch = upslope.Batch(logp=..., old_logp=..., mask=..., reward=..., group=...)
    loss, stats = upslope.make("grpo")(batch)

Importing the package is quick: torch is imported by the first name that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from upslope.errors import UsageError
from upslope.registry import describe, diff, find, list_methods, make

if TYPE_CHECKING:
    from upslope.batch import Batch
    from upslope.policies.opening import load
    from upslope.recipe import Part, Recipe, Term
    from upslope.tasks.sb3 import as_sb3
    from upslope.tasks.wrappers import as_gymnasium, as_vector_env
    from upslope.trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Part",
    "Recipe",
    "Term",
    "Trainer",
    "UsageError",
    "as_gymnasium",
    "as_sb3",
    "as_vector_env",
    "describe",
    "diff",
    "find",
    "list_methods",
    "load",
    "make",
]

LAZY = {
    "Batch": "batch",
    "Part": "recipe",
    "Recipe": "recipe",
    "Term": "recipe",
    "Trainer": "trainer",
    "as_gymnasium": "tasks.wrappers",
    "as_sb3": "tasks.sb3",
    "as_vector_env": "tasks.wrappers",
    "load": "policies.opening",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'upslope' has no attribute '{name}'")
    return getattr(importlib.import_module(f"upslope.{LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
