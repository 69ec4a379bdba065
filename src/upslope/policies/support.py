"""Which models can be computed on packed prefix trees: read from their configuration, then checked in numbers."""

from typing import Any

import torch
from torch import nn

from upslope.rollout import Rollouts

# Largest difference between a log-prob from packed trees and from padded rows that rounding explains.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


def why_not_packed(model: Any) -> str | None:
    """The reason why `model` needs the padded path, as far as its configuration tells; None if there is none."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    layers = kinds - {"full_attention", "attention"}
    if getattr(model, "_is_stateful", False):
        return "it carries a recurrent state"
    if layers:
        return f"it has layers of type {', '.join(sorted(layers))}"
    window = getattr(config, "sliding_window", None)
    if window is not None and not kinds and getattr(config, "use_sliding_window", True):
        return f"its attention slides over a window of {window} tokens"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores"
    if getattr(config, "alibi", False):
        return "it adds position biases to its attention scores"
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' attention interface"
    return None


def probe(vocabulary: int, context: int, device: torch.device) -> Rollouts:
    """Rollouts of a few random tokens: two prompts with a shared start, three responses each, of different lengths."""
    prompt = min(20, max(context - 8, 1))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (48,), generator=draw).tolist()
    tokens = torch.randint(0, vocabulary, (6, 6), generator=draw)
    tokens[1, :3] = tokens[0, :3]
    length = torch.tensor([6, 5, 2, 6, 1, 4]).clamp(max=max(context - prompt - 1, 1))
    mask = torch.arange(6) < length[:, None]
    zeros = torch.zeros(6, 6)
    return Rollouts(
        prompts=[ids[:prompt], ids[: prompt * 3 // 4] + ids[-(prompt // 4 + 1) :]],
        prompt=torch.tensor([0, 0, 0, 1, 1, 1], device=device),
        tokens=(tokens * mask).to(device),
        mask=mask.to(device),
        length=length.to(device),
        logp=zeros.to(device),
        behavior_logp=zeros.to(device),
        finish=["length"] * 6,
        text=[""] * 6,
    )


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's weights, adapters and norms aside: that of its largest parameter."""
    return max(model.parameters(), key=lambda parameter: parameter.numel()).dtype
