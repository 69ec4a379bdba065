"""Attention to a prompt that a group of rows shares, and to each row's own tokens.

The keys and values of a prompt are stored once. Every row of its group reads them in one matrix product per prompt, so
that a 512-token prompt with 16 completions costs the memory and the traffic of one prompt, not of 16.

It enters a Hugging Face model through two doors that the library offers: a `Cache` that hands back a row's own keys and
values, and an attention function, registered under a name, that adds the prompt's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from upslope.policies.packing import HARMLESS

ATTENTION = "upslope_shared_prefix"
FIRST_CAPACITY = 64  # own tokens that a row has room for before its buffers grow

_active: ContextVar["PrefixCache"] = ContextVar("upslope_prefix_cache")


@dataclass
class Groups:
    """Which prompt each row reads.

    prompt      prompt of each row, ascending                                                     [r] int64
    slot        place of each row in the padded layout of P prompts x W rows; None if r = P * W   [r] int64
    row         row in each place of that layout, 0 in the empty ones; None if r = P * W          [P * W] int64
    prompts, width      P, W
    """

    prompt: Tensor
    slot: Tensor | None
    row: Tensor | None
    prompts: int
    width: int

    @classmethod
    def of(cls, prompt: Tensor) -> "Groups":
        counts = torch.bincount(prompt)
        prompts, width = len(counts), int(counts.max())
        if prompts * width == len(prompt):
            return cls(prompt, None, None, prompts, width)
        first = counts.cumsum(0) - counts
        slot = prompt * width + torch.arange(len(prompt), device=prompt.device) - first[prompt]
        row = torch.zeros(prompts * width, dtype=torch.int64, device=prompt.device)
        row[slot] = torch.arange(len(prompt), device=prompt.device)
        return cls(prompt, slot, row, prompts, width)


class PrefixLayer(CacheLayerMixin):
    """One layer's keys and values: `prefix_*` [P, H, L, D] of the prompts, `keys`, `values` [r, H, capacity, D] of the rows."""

    is_sliding = False

    def __init__(self, prefix_keys: Tensor, prefix_values: Tensor, rows: int, limit: int) -> None:
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values
        self.keys: Tensor
        self.values: Tensor
        self.limit, self.length = limit, 0
        heads = prefix_keys.shape[1]
        capacity = min(limit, FIRST_CAPACITY)
        self.keys = prefix_keys.new_empty(rows, heads, capacity, prefix_keys.shape[-1])
        self.values = prefix_values.new_empty(rows, heads, capacity, prefix_values.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append one token per row, [r, H, 1, D]; the rows' own keys and values so far, [r, H, t, D]."""
        if self.length == self.keys.shape[2]:
            self._grow(min(2 * self.length, self.limit))
        self.keys[:, :, self.length : self.length + 1] = key_states
        self.values[:, :, self.length : self.length + 1] = value_states
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Keep these rows [k], and these prompts unless None."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        if prompts is not None:
            self.prefix_keys, self.prefix_values = self.prefix_keys[prompts], self.prefix_values[prompts]

    def _grow(self, capacity: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[-1])
            new[:, :, : self.length] = old
            setattr(self, name, new)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the prompts' keys are there from the start."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.limit


class PrefixCache(Cache):
    """The layers, who reads which prompt, and how long each prompt is.

    Args:
        prefixes: keys and values of every layer, each [P, H, L, D], right-padded.
        lengths: tokens of each prompt, [P] int64.
        prompt: prompt of each row, ascending, [r] int64.
        limit: the most tokens that a row will add.
    """

    def __init__(self, prefixes: Sequence[tuple[Tensor, Tensor]], lengths: Tensor, prompt: Tensor, limit: int) -> None:
        self.parts = [PrefixLayer(keys, values, len(prompt), limit) for keys, values in prefixes]
        super().__init__(layers=list(self.parts))
        self.lengths = lengths
        self.groups = Groups.of(prompt)
        self.bias = self._padding_bias()

    def positions(self) -> Tensor:
        """Position of the next token of each row, [r, 1]."""
        return (self.lengths[self.groups.prompt] + self.parts[0].length)[:, None]

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these [k] int64 (ascending), and the prompts that nobody reads any more."""
        alive, prompt = self.groups.prompt[rows].unique(return_inverse=True)
        prompts = alive if len(alive) < self.groups.prompts else None
        for layer in self.parts:
            layer.keep(rows, prompts)
        self.lengths = self.lengths[alive]
        self.groups = Groups.of(prompt)
        self.bias = self._padding_bias()

    def _padding_bias(self) -> Tensor | None:
        """0 on a prompt's tokens and -inf on its padding, [P, 1, 1, L]; None if nothing is padded."""
        keys = self.parts[0].prefix_keys
        width = keys.shape[2]
        if bool((self.lengths == width).all()):
            return None
        padding = torch.arange(width, device=keys.device) >= self.lengths[:, None]
        return torch.zeros(padding.shape, dtype=keys.dtype, device=keys.device).masked_fill_(padding, float("-inf"))[
            :, None, None
        ]


@contextmanager
def shared_prefix_attention(configs: Sequence[Any], cache: PrefixCache) -> Iterator[None]:
    """Within it, the models of these configs attend through `attend_shared_prefix` to `cache`."""
    before = [config._attn_implementation_internal for config in configs]
    token = _active.set(cache)
    try:
        for config in configs:
            config._attn_implementation_internal = ATTENTION
        yield
    finally:
        _active.reset(token)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


def attend_shared_prefix(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row to its prompt and to its own tokens.

    Args:
        query: [r, Hq, 1, D]; key, value: the rows' own, [r, H, t, D], Hq a multiple of H.

    Returns:
        [r, 1, Hq, D], and None for the weights.

    Raises:
        NotImplementedError: the model asks for a sliding window, a soft cap, attention sinks or the like.
    """
    cache = _active.get()
    unknown = [name for name, setting in others.items() if name not in HARMLESS and setting is not None]
    if attention_mask is not None or dropout or query.shape[2] != 1 or unknown:
        raise NotImplementedError(", ".join(unknown) or "an attention mask, dropout or several tokens at once")
    index = cast("int", module.layer_idx)
    output = attend(cache, index, query[:, :, 0], key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return output.view(len(query), 1, query.shape[1], -1), None


def attend(cache: PrefixCache, index: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention of one token per row to its prompt in layer `index` of the cache, and to the row's own tokens.

    Args:
        query: [r, Hq, D]; key, value: the rows' own, [r, H, t, D], Hq a multiple of H.

    Returns:
        The heads' outputs side by side, [r, Hq * D].
    """
    layer, groups, bias = cache.parts[index], cache.groups, cache.bias
    rows, heads = key.shape[:2]
    repeats, size = query.shape[1] // heads, query.shape[-1]
    shape = (groups.prompts, groups.width, heads, repeats)
    query = query.reshape(rows, heads, repeats, size) * scaling

    # Scores stay in the prompts' layout, where they are large; only what concerns the rows' own tokens changes layout.
    to_prompt = _by_prompt(query, groups, shape) @ layer.prefix_keys.transpose(2, 3)
    if bias is not None:
        to_prompt += bias
    to_own = _by_prompt(query @ key.transpose(2, 3), groups, shape)
    weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1, dtype=torch.float32).to(value.dtype)

    length = to_prompt.shape[-1]
    shared = weights[..., :length] @ layer.prefix_values
    output = _by_row(weights[..., length:], groups, shape) @ value + _by_row(shared, groups, shape)
    return output.reshape(rows, -1)


def _by_prompt(x: Tensor, groups: Groups, shape: tuple[int, int, int, int]) -> Tensor:
    """[r, H, q, n] to [P, H, W * q, n]: all rows of a prompt in one matrix per head."""
    x = x if groups.row is None else x[groups.row]
    prompts, width, heads, repeats = shape
    return x.reshape(*shape, -1).transpose(1, 2).reshape(prompts, heads, width * repeats, -1)


def _by_row(x: Tensor, groups: Groups, shape: tuple[int, int, int, int]) -> Tensor:
    """The way back, [P, H, W * q, n] to [r, H, q, n]."""
    x = x.unflatten(2, (shape[1], shape[3])).transpose(1, 2).flatten(0, 1)
    return x if groups.slot is None else x[groups.slot]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend_shared_prefix)
