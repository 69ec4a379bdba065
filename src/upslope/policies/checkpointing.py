"""Gradient checkpointing for a model that stays in eval mode."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from upslope.errors import UsageError
from upslope.policies.packing import checkpoint_contexts


def enable(model: Any) -> list[nn.Module]:
    """Switch on transformers' own checkpointing; returns the layers that will be recomputed."""
    settings = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": checkpoint_contexts}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not base.supports_gradient_checkpointing:
        raise UsageError(
            f"{model.config.model_type} does not support gradient checkpointing. "
            "Load it with gradient_checkpointing=False."
        )
    with warnings.catch_warnings():
        # Newer releases call the same switch activation checkpointing; this name is in all that we support.
        warnings.simplefilter("ignore", FutureWarning)
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    base.disable_input_require_grads()  # only reentrant checkpointing needs inputs with gradient
    layers = checkpointed_layers(base)
    for layer in layers:
        for name, value in vars(layer).items():
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, 0.0)  # `active` puts the layer itself into training mode
    return layers


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers recomputes."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def active(layers: list[nn.Module]) -> Iterator[None]:
    """transformers checkpoints only layers in training mode: set that flag on them, and not on what they contain."""
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
