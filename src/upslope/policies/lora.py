"""Low-rank adapters through peft."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import UsageError


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: `W + alpha / rank * B A`, with A and B trained and W fixed.

    rank      of the update
    alpha     its scale, times the rank
    dropout   on the adapter's input; the policy stays in eval mode, so only 0 is accepted
    targets   "all-linear" (all but the output layer), or names of the layers to adapt
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"LoRA's rank is {self.rank}: it must be at least 1.")
        if self.dropout:
            raise UsageError(
                f"LoRA's dropout is {self.dropout}, but policies are scored without dropout, so that ratios are exact. "
                "Set it to 0."
            )


def add_adapters(model: Any, settings: LoraSettings, *, score: bool = False) -> Any:
    """Wrap `model` by peft, so that only adapters are trained; with `score`, of a model with a score, also that layer.

    Raises:
        UsageError: `targets` names no layer of the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=0.0,
        target_modules=targets,
        task_type=TaskType.SEQ_CLS if score else TaskType.CAUSAL_LM,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft still uses names that transformers renames
            return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"LoRA cannot adapt {settings.targets} of {model.config.model_type}: {error}") from error


def has_adapters(model: Any) -> bool:
    return hasattr(model, "peft_config")


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Switch adapters off inside the block."""
    if not has_adapters(model):
        raise UsageError("The policy has no adapters to switch off. Use FrozenScorer(policy) for a reference.")
    with model.disable_adapter():
        yield


def save_merged(model: Any, path: Path) -> None:
    """Write the model with adapters merged in, and adapters beside it."""
    if has_adapters(model):
        model.save_pretrained(path / "adapter")
        # Merging and unmerging in place would round the trained model's own weights, hence a copy.
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(path)
