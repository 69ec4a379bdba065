"""One decoding step of the Llama family, straight from the modules' weights.

It computes what the model's own forward pass computes for one new token per row, without what that spends on masks,
output containers and keyword arguments: in small models that is a third of the time. Engines use it for the model types
below, after it has reproduced the plain forward pass in numbers (`upslope.engines.choice`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.engines.prefix import PrefixCache, attend

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})

Layer = Callable[[Tensor], Tensor]


class LlamaStep:
    """logits [r, V] = step(tokens [r], positions [r, 1], cache). Adapters (LoRA) are used where the model has them."""

    def __init__(self, model: Any) -> None:
        self.rotary = model.model.rotary_emb
        self.embed = model.model.embed_tokens
        self.blocks = [_Block(layer) for layer in model.model.layers]
        self.norm = _norm(model.model.norm)
        self.head = _linear(model.lm_head)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        hidden = self.embed(tokens)
        cos, sin = self.rotary(hidden, position_ids=positions)  # [r, 1, D]: one position, any number of heads
        sin = _signed(sin)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, cos, sin, cache, index)
        return self.head(self.norm(hidden))


class _Block:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.size, self.scaling = attention.head_dim, attention.scaling
        self.attention_norm, self.mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.query, self.key, self.value, self.output = (
            _linear(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        self.query_norm, self.key_norm = (
            _norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")
        )
        self.gate, self.up, self.down = (_linear(getattr(mlp, name)) for name in ("gate_proj", "up_proj", "down_proj"))
        self.activation = mlp.act_fn

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, cache: PrefixCache, index: int) -> Tensor:
        shape = (len(hidden), -1, self.size)
        inputs = self.attention_norm(hidden)
        query, key, value = (linear(inputs).view(shape) for linear in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        attended = attend(cache, index, query, *cache.update(key[:, :, None], value[:, :, None], index), self.scaling)
        hidden = hidden + self.output(attended)
        inputs = self.mlp_norm(hidden)
        return hidden + self.down(self.activation(self.gate(inputs)).mul_(self.up(inputs)))


def _signed(sin: Tensor) -> Tensor:
    """`sin` [r, 1, D] with its first half negated, so that swapping the halves of a vector is all that is left."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [r, H, D]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((second, first), dim=-1), sin)


def _linear(module: nn.Module) -> Layer:
    # `type`, not `isinstance`: adapters and quantized layers are subclasses with a forward pass of their own.
    return partial(F.linear, weight=module.weight, bias=module.bias) if type(module) is nn.Linear else module


def _norm(module: Any) -> Layer:
    # The fused kernel rounds like the module in float32 only.
    if module.weight.dtype != torch.float32:
        return module
    return partial(F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=module.variance_epsilon)
