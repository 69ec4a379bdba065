"""Environments by registered id, by "module:Class" or "file.py:function", or from Python."""

import copy
import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from upslope.environments.dynamics import Dynamics
from upslope.errors import UsageError
from upslope.tasks.base import list_tasks
from upslope.tasks.batched import BatchedCartPole, Vectorized
from upslope.tasks.classic import CLASSIC
from upslope.tasks.environments import Actions, Copies, Environments
from upslope.tasks.simulated import Simulated
from upslope.tasks.vec_env import FromVecEnv, is_vec_env


def open_environments(
    what: Any,
    count: int,
    seed: int,
    *,
    settings: Mapping[str, Any] | None = None,
    convention: Actions = "clip",
) -> Environments:
    """`count` copies of an environment.

    what      an id that is registered with Gymnasium, or by a module ("module:Id-v0"); "module:Class", "module:function",
              "file.py:Class"; a class or function that makes one; an environment, which is copied; a vector environment, which has
              its own count. Modules are looked for in the current folder, too
    settings  keywords of the environment; `max_episode_steps` is read here: the time limit, in place of the registered one
    Raises UsageError naming what is wrong with `what` or with the settings.
    """
    values = dict(settings or {})
    limit = values.pop("max_episode_steps", None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise UsageError(f"max_episode_steps is {limit!r}; it must be a whole number of steps, e.g. 1000.")
    if isinstance(what, str) and _is_registered(what):
        return _registered(what, count, seed, values, limit, convention)
    if isinstance(what, str):
        what = _load(what)
    if hasattr(what, "num_envs") and not isinstance(what, type):
        _refuse(values, "a vector environment")
        return Vectorized(_vector(what), seed, convention=convention, limit=limit)
    if callable(what):
        name = getattr(what, "__name__", type(what).__name__)
        make: Callable[[], Any] = lambda: _made(what, name, values)  # noqa: E731
        first = make()
        _check_complete(first, f"what {name} makes")
        if hasattr(first, "num_envs"):
            return Vectorized(_vector(first), seed, name=name, convention=convention, limit=limit)
        made = [first]
        return _several(lambda: made.pop() if made else make(), count, seed, name, convention, limit)
    _check_complete(what, f"{what!r}" if isinstance(what, (int, float)) else type(what).__name__)
    _refuse(values, "an environment that has been made")
    return _copied(what, count, seed, limit, convention)


def _vector(what: Any) -> Any:
    """A vector environment as it is; a VecEnv of Stable-Baselines3's as one."""
    return FromVecEnv(what) if is_vec_env(what) else what


def _check_complete(what: Any, name: str) -> None:
    """Raises UsageError where something of an environment is missing."""
    lacking = [
        part for part in ("reset", "step", "observation_space", "action_space") if getattr(what, part, None) is None
    ]
    if lacking:
        raise UsageError(
            f"an environment must have reset, step, observation_space and action_space, and {name} has no "
            f"{' and no '.join(lacking)}."
        )


def _refuse(values: Mapping[str, Any], what: str) -> None:
    if values:
        raise UsageError(
            f"{what} takes no settings any more: {', '.join(values)}. Pass the class or a function instead."
        )


def maker_of(what: str) -> tuple[Callable[..., Any], int | None]:
    """What makes one environment that `what` names, from its keywords, and the time limit that is registered for it.

    An environment that is registered is made without Gymnasium's wrappers for checking and time limits, which are dealt with
    here: half the time of a step. Raises UsageError as `open_environments`.
    """
    import gymnasium

    if not _is_registered(what):
        return _load(what), None
    spec = gymnasium.spec(what.rpartition(":")[2])
    bare = dataclasses.replace(spec, order_enforce=False, max_episode_steps=None)
    return lambda **keywords: gymnasium.make(bare, disable_env_checker=True, **keywords), spec.max_episode_steps


def _registered(
    name: str, count: int, seed: int, values: dict[str, Any], limit: int | None, convention: Actions
) -> Environments:
    make, own = maker_of(name)
    name = name.rpartition(":")[2]
    limit = own if limit is None else limit
    if name in ("CartPole-v0", "CartPole-v1") and count >= 8 and not set(values) - {"sutton_barto_reward"}:
        return BatchedCartPole(count, seed, name=name, convention=convention, limit=limit, **values)
    if name in CLASSIC and count >= 8 and not values:
        return CLASSIC[name](count, seed, name=name, convention=convention, limit=limit)
    return _several(lambda: _made(make, name, values), count, seed, name, convention, limit)


def _several(
    make: Callable[[], Any], count: int, seed: int, name: str, convention: Actions, limit: int | None
) -> Environments:
    """Copies that are stepped in turn; or, where the dynamics of the environment are known, as one tensor."""
    first = make()
    dynamics = getattr(first, "dynamics", None)
    if isinstance(dynamics, Dynamics):
        return Simulated(dynamics, count, seed, name=name, convention=convention, limit=limit)
    made = [first]
    return Copies(lambda: made.pop() if made else make(), count, seed, name=name, convention=convention, limit=limit)


def _made(what: Callable[..., Any], name: str, values: Mapping[str, Any]) -> Any:
    try:
        return what(**values)
    except UsageError:
        raise
    except Exception as error:
        given = f" with {', '.join(f'{key}={value!r}' for key, value in values.items())}" if values else ""
        remedy = " Its keywords are the settings task_settings.NAME=VALUE." if isinstance(error, TypeError) else ""
        said = str(error).rstrip(".")
        raise UsageError(
            f"the environment {name} cannot be made{given}: {type(error).__name__}: {said}.{remedy}"
        ) from error


def _copied(first: Any, count: int, seed: int, limit: int | None, convention: Actions) -> Environments:
    made = [first]

    def make() -> Any:
        if made:
            return made.pop()
        try:
            return copy.deepcopy(first)
        except Exception as error:
            raise UsageError(
                f"{type(first).__name__} cannot be copied ({type(error).__name__}: {error}), and {count} copies are needed. Pass "
                "its class or a function that makes one."
            ) from error

    return Copies(make, count, seed, convention=convention, limit=limit)


def _is_registered(name: str) -> bool:
    """Whether Gymnasium knows the name; that of "module:Id-v0" once the module, which registers it, has been imported."""
    import gymnasium

    importlib.import_module("upslope.environments")  # registers our own
    source, _, plain = name.rpartition(":")
    if source and not hasattr(_module(source, name), plain):
        return plain in gymnasium.registry
    return not source and plain in gymnasium.registry


def _unknown(name: str) -> str:
    import gymnasium

    if name in {row["name"] for row in list_tasks()}:
        return (
            f"'{name}' is a task for language models, and this method plays in environments, such as CartPole-v1. For the task "
            "take grpo or another method for language models: `upslope methods` lists them."
        )
    close = difflib.get_close_matches(name, gymnasium.registry.keys(), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"no environment '{name}' is registered with Gymnasium.{hint} One that a package registers: package:{name or 'Id-v0'}. "
        "Your own: module:Class or file.py:Class."
    )


def _load(what: str) -> Any:
    """The class or function that "module:name" or "file.py:name" names."""
    if ":" not in what:
        raise UsageError(_unknown(what))
    source, _, name = what.rpartition(":")
    module = _module(source, what)
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UsageError(
            f"{source} has no class or function '{name}', and registers no environment of that name. It has: "
            f"{', '.join(own) or 'none'}."
        )
    return found


def _module(source: str, what: str) -> ModuleType:
    """The module or file that `what` names before its colon. Raises UsageError where it cannot be imported."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # behind all else: a console script does not look where it is called
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = Path(source).resolve()
        return _file(path, path.stat().st_mtime_ns)
    except Exception as error:
        remedy = f" Files are looked for from {here} on." if isinstance(error, FileNotFoundError) else ""
        raise UsageError(
            f"the environment {what}: {source} cannot be imported: {type(error).__name__}: {error}.{remedy}"
        ) from error


@cache
def _file(path: Path, changed: int) -> ModuleType:
    """A file's module, which is run once: a second time would register its environments again."""
    from upslope.tasks.user_reward import import_file

    return import_file(path)
