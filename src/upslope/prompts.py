"""Which prompts come next: the stream of training examples, or a draw by weight."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.outcomes import Event
from upslope.rollout import Example

Encode = Callable[[Any], list[int]]


@dataclass(frozen=True)
class PromptStream:
    """Training examples, epoch after epoch, each in an order that depends on the seed and the epoch only."""

    examples: Sequence[Example]
    seed: int

    def places(self, cursor: int, count: int) -> list[int]:
        """Which examples stand at the `count` positions from `cursor` on."""
        size = len(self.examples)
        positions = [divmod(position, size) for position in range(cursor, cursor + count)]
        return [int(_permutation(self.seed, epoch, size)[index]) for epoch, index in positions]

    def take(self, cursor: int, count: int) -> list[Example]:
        """The `count` examples from position `cursor` on."""
        return [self.examples[place] for place in self.places(cursor, count)]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


class Prompts:
    """Training examples whose prompt has at most `limit` tokens, in the order of the stream or in one that is given."""

    def __init__(self, stream: PromptStream, encode: Encode, limit: int) -> None:
        self.stream, self.encode, self.limit = stream, encode, limit
        self._encoded: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.stream.examples)

    def draw(
        self, cursor: int, count: int, order: Iterator[int] | None = None
    ) -> tuple[list[tuple[int, Example]], int, list[Event]]:
        """Examples with their places, the next position in the stream, and what was passed over because it is too long.

        With an `order` of places, the stream stays where it is, and there may be fewer than `count`.
        Raises UsageError where no prompt is short enough.
        """
        chosen: list[tuple[int, Example]] = []
        long: list[Example] = []
        while len(chosen) < count:
            if order is None:
                (place,) = self.stream.places(cursor, 1)
                cursor += 1
                ended = len(long) > max(1000, len(self))
            else:
                place = next(order, -1)
                ended = place < 0
            if ended and not chosen:
                self._none_fits(long[0])
            if ended and order is not None:
                break
            example = self.stream.examples[place]
            if len(self.ids(example)) <= self.limit:
                chosen.append((place, example))
            else:
                long.append(example)
        events = []
        if long:
            message = f"longer than {self.limit} tokens, e.g. '{long[0].key}' with {len(self.ids(long[0]))}"
            events = [Event("prompt too long", message, len(long))]
        return chosen, cursor, events

    def ids(self, example: Example) -> list[int]:
        """Tokens of the example's prompt."""
        if example.key not in self._encoded:
            if len(self._encoded) > 100_000:
                self._encoded.clear()
            self._encoded[example.key] = self.encode(example.prompt)
        return self._encoded[example.key]

    def _none_fits(self, example: Example) -> None:
        raise UsageError(
            f"every prompt is longer than the {self.limit} tokens that the model's context leaves beside max_tokens; "
            f"'{example.key}' has {len(self.ids(example))}. Lower max_tokens, shorten the prompts or take another model."
        )


def weighted_order(weights: Tensor, generator: torch.Generator) -> Iterator[int]:
    """Places drawn one after the other without replacement, each in proportion to its weight among those left.

    Source: Efraimidis and Spirakis 2006: sorted by log(u) / weight.
    """
    uniform = torch.rand(len(weights), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    keys = torch.where(weights > 0, uniform.log() / weights, -torch.inf)
    return iter(keys.argsort(descending=True, stable=True)[: int((weights > 0).sum())].tolist())
