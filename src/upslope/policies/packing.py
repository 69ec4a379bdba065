"""Packed prefix trees inside any transformers model that goes through its attention interface.

`packed_attention(model, tree)` switches the model to tree attention for as long as the block runs; outside of it the
model is untouched, so that generation with caches shares it. Layers recomputed by gradient checkpointing switch again
by themselves (`checkpoint_contexts`).
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv

from upslope.errors import UsageError
from upslope.policies.attention import Backend, TreeAttention, attend

NAME = "upslope_prefix_trees"

# What a model may hand to its attention function that changes nothing here: positions are in the rotated queries and
# keys, and there is no cache. Anything else that is set would change the result, so it is refused.
HARMLESS = frozenset(
    {
        "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "layer_idx", "logits_to_keep", "max_length_k",
        "max_length_q", "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits",
        "past_key_value", "past_key_values", "position_embeddings", "position_ids", "return_dict", "use_cache",
    }
)  # fmt: skip


@dataclass(frozen=True)
class _Active:
    configs: tuple[PretrainedConfig, ...]
    tree: TreeAttention
    backend: Backend


_state = threading.local()


def attention_configs(model: nn.Module) -> tuple[PretrainedConfig, ...]:
    """The configurations in which the modules of `model` look up their attention implementation."""
    configs = {id(c): c for m in model.modules() if isinstance(c := getattr(m, "config", None), PretrainedConfig)}
    return tuple(configs.values())


@contextmanager
def packed_attention(configs: tuple[PretrainedConfig, ...], tree: TreeAttention, backend: Backend) -> Iterator[None]:
    """Make the models that read `configs` attend over `tree` inside the block."""
    with _activate(_Active(configs, tree, backend)):
        yield


@contextmanager
def _activate(active: _Active) -> Iterator[None]:
    before = [config._attn_implementation_internal for config in active.configs]
    outer = getattr(_state, "active", None)
    _state.active = active
    try:
        for config in active.configs:
            config._attn_implementation_internal = NAME
        yield
    finally:
        _state.active = outer
        for config, name in zip(active.configs, before, strict=True):
            config._attn_implementation_internal = name


def checkpoint_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of torch's checkpoint: a layer recomputed in backward sees the trees it saw in forward."""
    active = getattr(_state, "active", None)
    return nullcontext(), nullcontext() if active is None else _activate(active)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    active: _Active = _state.active
    unknown = sorted(name for name, given in others.items() if given is not None and name not in HARMLESS)
    if unknown or dropout or attention_mask is not None or is_causal is False:
        cause = unknown or [
            "dropout" if dropout else "attention_mask" if attention_mask is not None else "is_causal=False"
        ]
        raise NotImplementedError(f"its attention asks for {', '.join(cause)}")
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return attend(query, key, value, active.tree, scaling, active.backend), None


AttentionInterface.register(NAME, _attention)


def choose_backend(wanted: Backend | Literal["auto"], device: torch.device) -> Backend:
    """ "auto" is `segments` on CPU; elsewhere its kernel does not exist, and a mask per tree does the work.

    Raises:
        UsageError: the back end does not run, or not in backward, on that device.
    """
    on_cpu = device.type == "cpu"
    if wanted == "auto":
        return "segments" if on_cpu else "mask"
    if wanted != "mask" and (wanted == "segments") != on_cpu:
        raise UsageError(f"attention='{wanted}' does not run on {device.type}. Use 'auto' or 'mask'.")
    return wanted
