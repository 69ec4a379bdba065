"""The output layer of a language model, applied only where something is predicted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@contextmanager
def only_states(head: nn.Module, states: Tensor, logits: bool = True) -> Iterator[list[Tensor]]:
    """Let `head` see only the given states (flat indices [n]) of its input; yields a list that gets them, [n, H].

    The model's own forward then returns logits [1, n, V], with whatever it does to logits done; [1, 0, V] where not
    `logits`.
    """
    seen: list[Tensor] = []

    def select(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        chosen = args[0].flatten(0, -2).index_select(0, states)
        seen.append(chosen)
        return (chosen[None] if logits else chosen[None, :0], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True)
class LogitFinish:
    """What a model does to the logits after its output layer: `cap * tanh(scale * z / cap)`, with no cap where None."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitFinish":
        """From the settings under which transformers' models keep them (Cohere, Granite, Gemma)."""
        text = config.get_text_config()
        scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(scale, getattr(text, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap
