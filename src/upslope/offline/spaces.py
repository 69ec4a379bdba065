"""Minari's JSON of a Gymnasium space, both ways."""

import json
from typing import Any

import numpy as np


def space_of(text: str | dict[str, Any]) -> Any:
    """The Gymnasium space of Minari's JSON. Raises ValueError for one that is not known."""
    from gymnasium import spaces

    about: dict[str, Any] = json.loads(text) if isinstance(text, str) else text
    if not isinstance(about, dict):
        raise ValueError(f"{about!r} describes no space")
    kind = about.get("type")
    if kind == "Box":
        low, high = (np.array(about[name], dtype=about["dtype"]).reshape(about["shape"]) for name in ("low", "high"))
        return spaces.Box(low, high, dtype=np.dtype(about["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(about["n"], start=about.get("start", 0))
    if kind == "MultiDiscrete":
        start = about.get("start")
        return spaces.MultiDiscrete(about["nvec"], start=None if start is None else np.array(start))
    if kind == "MultiBinary":
        return spaces.MultiBinary(about["n"])
    if kind == "Dict":
        return spaces.Dict({name: space_of(inner) for name, inner in about["subspaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_of(inner) for inner in about["subspaces"]])
    raise ValueError(f"the space {kind!r} is not read (Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple are)")


def json_of(space: Any) -> dict[str, Any]:
    """Minari's JSON object of a Box or Discrete space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
    raise ValueError(f"the space {space} is not written")
