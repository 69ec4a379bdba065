"""What an environment shows and what it takes, as flat arrays: observations [N, D] float32, actions [N] int64 or [N, A].

Dict and Tuple observations are flattened with their names in a fixed order, discrete ones are one-hot. Both specifications
are plain JSON (`to_dict`), so that a policy is saved without its environment.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from upslope.errors import UsageError

ActionKind = Literal["discrete", "continuous", "multi_discrete"]


@dataclass(frozen=True)
class Leaf:
    """One entry of an observation: where it stands, its shape, and for a discrete one its number of values and first value."""

    name: str
    shape: tuple[int, ...]
    values: tuple[int, ...] = ()
    start: int = 0

    @property
    def size(self) -> int:
        """Numbers that it takes in the flat observation."""
        return sum(self.values) if self.values else int(np.prod(self.shape, dtype=int))


@dataclass(frozen=True)
class ObservationSpec:
    """The flat observation [size] and what it is made of, in order."""

    leaves: tuple[Leaf, ...]
    nested: bool = False

    @cached_property
    def size(self) -> int:
        """Numbers in a flat observation."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def names(self) -> list[str]:
        """A name for each number, such as `position[0]`."""
        return [
            leaf.name if leaf.size == 1 else f"{leaf.name}[{index}]"
            for leaf in self.leaves
            for index in range(leaf.size)
        ]

    @classmethod
    def of(cls, space: Any) -> "ObservationSpec":
        """From a Gymnasium space. Raises UsageError naming an entry that cannot be flattened."""
        from gymnasium import spaces

        leaves = tuple(_leaves(space, ""))
        if not sum(leaf.size for leaf in leaves):
            raise UsageError(f"the observation space {space} has no numbers. Give it at least one, if only a constant.")
        return cls(leaves, nested=isinstance(space, spaces.Dict | spaces.Tuple))

    def flatten(self, observation: Any, out: np.ndarray) -> None:
        """Writes one observation into out [size] float32. Raises ValueError with what differs from the declared space."""
        if not self.nested:
            self._write(self.leaves[0], observation, out)
            return
        place = 0
        for leaf in self.leaves:
            self._write(leaf, _at(observation, leaf.name), out[place : place + leaf.size])
            place += leaf.size

    def rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Flat observations [N, D] of one, or of several [N, *shape], and whether it was several.

        Raises UsageError for what is no observation of the space.
        """
        first = self.leaves[0]
        try:
            value = _at(observation, first.name) if self.nested else observation
            shape = () if first.values and len(first.values) == 1 and not first.shape else first.shape
            several = np.ndim(value) == len(shape) + 1
            out = np.empty((len(value) if several else 1, self.size), dtype=np.float32)
            for row in range(len(out)):
                self.flatten(of_row(observation, row) if several else observation, out[row])
        except (ValueError, TypeError, IndexError) as error:
            raise UsageError(
                f"{error}. Give an observation as the environment gives it, or several of them, stacked."
            ) from None
        return out, several

    @staticmethod
    def _write(leaf: Leaf, value: Any, out: np.ndarray) -> None:
        if leaf.values:
            chosen = np.asarray(value).reshape(-1)
            if chosen.shape != (len(leaf.values),) or chosen.dtype.kind not in "iub":
                raise ValueError(f"{leaf.name} is {value!r}, not {len(leaf.values)} whole number(s)")
            out[:] = 0.0
            place = 0
            for number, count in zip(chosen.tolist(), leaf.values, strict=True):
                if not 0 <= number - leaf.start < count:
                    raise ValueError(f"{leaf.name} is {number}, not one of {leaf.start} to {leaf.start + count - 1}")
                out[place + int(number) - leaf.start] = 1.0
                place += count
            return
        shape = getattr(value, "shape", None)
        if shape is None:
            value = np.asarray(value, dtype=np.float32)
            shape = value.shape
        if shape != leaf.shape:
            raise ValueError(f"{leaf.name} has shape {tuple(shape)}, and its space says {leaf.shape}")
        out[:] = value if len(shape) == 1 else value.reshape(-1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"leaves": [asdict(leaf) for leaf in self.leaves], "nested": self.nested}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ObservationSpec":
        """The inverse of `to_dict`."""
        leaves = [
            Leaf(leaf["name"], tuple(leaf["shape"]), tuple(leaf["values"]), leaf["start"]) for leaf in values["leaves"]
        ]
        return cls(tuple(leaves), values["nested"])


def _leaves(space: Any, name: str) -> list[Leaf]:
    from gymnasium import spaces

    own = name or "observation"
    if isinstance(space, spaces.Dict):
        return [
            leaf for key, inner in sorted(space.spaces.items()) for leaf in _leaves(inner, f"{name}/{key}".lstrip("/"))
        ]
    if isinstance(space, spaces.Tuple):
        return [leaf for key, inner in enumerate(space.spaces) for leaf in _leaves(inner, f"{name}/{key}".lstrip("/"))]
    if isinstance(space, spaces.Discrete):
        return [Leaf(own, (), (int(space.n),), int(space.start))]
    if isinstance(space, spaces.MultiDiscrete):
        if np.any(space.start):
            raise UsageError(
                f"{own} is {space}: only MultiDiscrete spaces that start at 0 are read. Subtract its start."
            )
        return [Leaf(own, tuple(space.shape), tuple(int(n) for n in space.nvec.reshape(-1)))]
    if isinstance(space, spaces.MultiBinary):
        return [Leaf(own, tuple(space.shape))]
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) >= 3:
            raise UsageError(
                f"{own} is an image {space.shape}, and policies here are networks of flat observations. Wrap the environment so "
                "that it gives features."
            )
        return [Leaf(own, tuple(space.shape))]
    raise UsageError(
        f"{own} is {space}; Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these are read. Wrap the "
        "environment so that it gives one of them, such as with gymnasium.wrappers.TransformObservation."
    )


def of_row(observations: Any, row: int) -> Any:
    """The observation of one row of several."""
    if isinstance(observations, Mapping):
        return {key: of_row(value, row) for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(of_row(value, row) for value in observations)
    return observations[row]


def _at(observation: Any, name: str) -> Any:
    """The entry of a nested observation. Keys of a dict may have slashes of their own, so the longest that is there counts."""
    keys = name.split("/")
    while keys:
        try:
            if isinstance(observation, tuple | list):
                used = 1
                observation = observation[int(keys[0])]
            else:
                used = next(n for n in range(len(keys), 0, -1) if "/".join(keys[:n]) in observation)
                observation = observation["/".join(keys[:used])]
        except (StopIteration, IndexError, TypeError, ValueError):
            raise ValueError(f"the observation has no entry {name}") from None
        keys = keys[used:]
    return observation


@dataclass(frozen=True)
class ActionSpec:
    """discrete: one of `values[0]` from `start` on, [N] int64. multi_discrete: one of each of `values`, [N, A] int64.
    continuous: [N, A] float32 within [low, high], the bounds flat; `shape` is what the environment takes.
    """

    kind: ActionKind
    shape: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    start: tuple[int, ...] = (0,)
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @cached_property
    def size(self) -> int:
        """Numbers in an action; 1 for a discrete one."""
        return 1 if self.kind == "discrete" else int(np.prod(self.shape, dtype=int))

    @cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of a continuous action, each [A] float32, within those of the environment where these are more exact."""
        low, high = np.asarray(self.low, dtype=np.float32), np.asarray(self.high, dtype=np.float32)
        inner_low = np.where(low < np.asarray(self.low), np.nextafter(low, np.float32(np.inf)), low)
        inner_high = np.where(high > np.asarray(self.high), np.nextafter(high, np.float32(-np.inf)), high)
        return inner_low, inner_high

    @property
    def bounded(self) -> bool:
        """Whether every bound of a continuous action is finite."""
        return self.kind == "continuous" and bool(np.isfinite([*self.low, *self.high]).all())

    @classmethod
    def of(cls, space: Any) -> "ActionSpec":
        """From a Gymnasium space. Raises UsageError for one that no policy here draws from."""
        from gymnasium import spaces

        if isinstance(space, spaces.Discrete):
            return cls("discrete", (), (int(space.n),), (int(space.start),))
        if isinstance(space, spaces.MultiDiscrete):
            start = tuple(int(n) for n in np.broadcast_to(space.start, space.nvec.shape).reshape(-1))
            return cls("multi_discrete", tuple(space.shape), tuple(int(n) for n in space.nvec.reshape(-1)), start)
        if isinstance(space, spaces.MultiBinary):
            count = int(np.prod(space.shape))
            return cls("multi_discrete", tuple(space.shape), (2,) * count, (0,) * count)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            low, high = (tuple(float(x) for x in bound.reshape(-1)) for bound in (space.low, space.high))
            return cls("continuous", tuple(space.shape), (), (), low, high)
        raise UsageError(
            f"the actions are {space}; Discrete, MultiDiscrete, MultiBinary and Box of floats are drawn from. Wrap the "
            "environment so that it takes one of them (gymnasium.ActionWrapper)."
        )

    def to_environment(self, action: np.ndarray, convention: str) -> np.ndarray:
        """Actions [N] or [N, A] of a policy as the environment takes them, [N, *shape]: "clip" cuts those of a box to it,
        "scale" maps [-1, 1] onto it.
        """
        if self.kind != "continuous":
            start = np.asarray(self.start if self.kind == "multi_discrete" else self.start[0])
            return (action + start).reshape(len(action), *self.shape)
        low, high = self.box
        action = action.reshape(len(action), -1).astype(np.float32, copy=False)
        if convention == "scale":
            action = low + (action.clip(-1.0, 1.0) + 1.0) * (0.5 * (high - low))
        return np.clip(action, low, high).reshape(len(action), *self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; an infinite bound is None."""
        values = asdict(self)
        for name in ("low", "high"):
            values[name] = [bound if np.isfinite(bound) else None for bound in values[name]]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ActionSpec":
        """The inverse of `to_dict`."""
        low = tuple(-np.inf if bound is None else bound for bound in values["low"])
        high = tuple(np.inf if bound is None else bound for bound in values["high"])
        shape, counts, start = (tuple(values[name]) for name in ("shape", "values", "start"))
        return cls(values["kind"], shape, counts, start, low, high)
