"""Token by token through a Hugging Face model: two ways to keep what has been read so far.

    decoder = SharedPrefixDecoder(model)
    logits = decoder.start(prompts, row_prompt, limit)    # [r, V]: the first completion token of every row
    logits = decoder.step(tokens)                         # [r, V] after one more token per row
    decoder.keep(rows)                                    # forget the others

`SharedPrefixDecoder` keeps the keys of a prompt once for its whole group; it needs full attention in every layer.
`CacheDecoder` keeps what the model itself keeps (sliding windows, recurrent states), once per row.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from upslope.engines.llama import LlamaStep
from upslope.engines.prefix import PrefixCache, shared_prefix_attention
from upslope.policies.heads import only_states
from upslope.policies.packing import attention_configs

KeysValues = tuple[Tensor, Tensor]
PREFILL_TOKENS = 2048  # per forward pass over prompts, padding included: bounds the memory of the activations


class Decoder(Protocol):
    """Rows that read prompts and grow by one token per step. All under `torch.inference_mode`; good for one `start`."""

    shares_prompts: bool  # a prompt is stored once, however many rows read it
    equal_lengths: bool  # the prompts given to `start` must all have the same length

    def start(self, prompts: Sequence[Sequence[int]], row_prompt: Tensor, limit: int) -> Tensor:
        """Read P prompts; logits [r, V] for rows that continue the prompts `row_prompt` [r] int64 (ascending, each of
        the P at least once). Rows will grow by at most `limit` tokens."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [r] int64; logits [r, V] for what follows."""

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows [k] int64, ascending."""


class SharedPrefixDecoder:
    """Keys and values of a prompt stored once, whatever the number of its rows.

    Steps go through the model's own forward pass, or `direct`ly through the weights of a model of the Llama family.
    """

    shares_prompts = True
    equal_lengths = False

    def __init__(self, model: Any, context_length: int, direct: bool) -> None:
        self.model = model
        self.last_position = context_length - 1
        self.device = next(model.parameters()).device
        self.direct = LlamaStep(model) if direct else None
        self.configs = () if direct else attention_configs(model)

    def start(self, prompts: Sequence[Sequence[int]], row_prompt: Tensor, limit: int) -> Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = int(lengths.max())
        logits, prefixes = self._read(prompts, width)
        self.cache = PrefixCache(prefixes, lengths, row_prompt.to(self.device), limit)
        self.clamp = width + limit > self.last_position
        return logits[self.cache.groups.prompt]

    def step(self, tokens: Tensor) -> Tensor:
        positions = self.cache.positions()
        if self.clamp:  # rows that have ended but are still in the batch may run past the context
            positions = positions.clamp(max=self.last_position)
        if self.direct is not None:
            return self.direct(tokens, positions, self.cache)
        with shared_prefix_attention(self.configs, self.cache):
            output = self.model(
                input_ids=tokens[:, None], position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.keep(rows.to(self.device))

    def _read(self, prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, list[KeysValues]]:
        """Logits after each prompt [P, V], and every layer's keys and values [P, H, width, D]."""
        passes = _prefill_passes(prompts)
        if len(passes) == 1:
            return self._prefill(prompts)
        logits: list[Tensor] = [torch.empty(0)] * len(prompts)
        prefixes: list[KeysValues] = []
        for members in passes:
            last, layers = self._prefill([prompts[index] for index in members])
            if not prefixes:
                prefixes = [
                    (
                        keys.new_zeros(len(prompts), keys.shape[1], width, keys.shape[3]),
                        values.new_zeros(len(prompts), values.shape[1], width, values.shape[3]),
                    )
                    for keys, values in layers
                ]
            for index, row in zip(members, last, strict=True):
                logits[index] = row
            for whole, part in zip(prefixes, layers, strict=True):
                for target, source in zip(whole, part, strict=True):
                    target[members, :, : source.shape[2]] = source
        return torch.stack(logits), prefixes

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[KeysValues]]:
        """Logits after each prompt [P, V], and every layer's keys and values [P, H, L, D].

        Padding stands on the right, where causal attention never looks, so no mask is needed.
        """
        width = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        last = torch.tensor([row * width + len(prompt) - 1 for row, prompt in enumerate(prompts)], device=self.device)
        cache = DynamicCache(config=self.model.config)
        positions = torch.arange(width, device=self.device)[None]
        with only_states(self.model.get_output_embeddings(), last):
            logits = self.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True).logits
        layers: list[Any] = cache.layers
        return logits[0], [(layer.keys, layer.values) for layer in layers]


class CacheDecoder:
    """The model's own cache, one entry per row; prompts padded on the left, or all of one length (`equal_lengths`)."""

    shares_prompts = False

    def __init__(self, model: Any, context_length: int, equal_lengths: bool) -> None:
        self.model = model
        self.equal_lengths = equal_lengths
        self.last_position = context_length - 1
        self.device = next(model.parameters()).device
        self.accepted = set(inspect.signature(model.forward).parameters)
        self.cache_name = "cache_params" if "cache_params" in self.accepted else "past_key_values"

    def start(self, prompts: Sequence[Sequence[int]], row_prompt: Tensor, limit: int) -> Tensor:
        row_prompt = row_prompt.to(self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = int(lengths.max())
        ids = torch.tensor([[*[0] * (width - len(prompt)), *prompt] for prompt in prompts], device=self.device)
        padding = width - lengths
        slots = torch.arange(width, device=self.device)
        self.mask = None if not padding.any() else (slots >= padding[:, None]).long()
        self.length = lengths
        self.cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, (slots - padding[:, None]).clamp(min=0))
        self._take(row_prompt)
        return logits[row_prompt]

    def step(self, tokens: Tensor) -> Tensor:
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        logits = self._forward(tokens[:, None], self.length.clamp(max=self.last_position)[:, None])
        self.length = self.length + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self._take(rows.to(self.device))

    def _take(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]  # int64 is what it wants
        self.length = self.length[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"attention_mask": self.mask, "position_ids": positions, "logits_to_keep": 1}
        accepted = {name: value for name, value in inputs.items() if name in self.accepted and value is not None}
        output = self.model(input_ids=ids, use_cache=True, **{self.cache_name: self.cache}, **accepted)
        return output.logits[:, -1]


def _prefill_passes(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts per forward pass: similar lengths together, at most PREFILL_TOKENS with padding."""
    lengths = [len(prompt) for prompt in prompts]
    if max(lengths) * len(prompts) <= PREFILL_TOKENS:
        return [list(range(len(prompts)))]
    passes: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lengths.__getitem__):
        if passes and (len(passes[-1]) + 1) * lengths[index] <= PREFILL_TOKENS:
            passes[-1].append(index)
        else:
            passes.append([index])
    return passes
