"""A transformers model that reads rollouts: on packed prefix trees, or on padded rows."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from upslope.errors import UsageError
from upslope.policies import checkpointing, loading
from upslope.policies.attention import Backend
from upslope.policies.heads import only_states
from upslope.policies.packing import attention_configs, choose_backend, packed_attention
from upslope.policies.passes import Pass, packed_pass, padded_pass, sequences
from upslope.rollout import Rollouts


@dataclass
class Network:
    """How to run `model` over rollouts.

    model          a transformers causal language model in eval mode, perhaps wrapped by peft
    packing        "tree": every shared prefix once; "padded": each row with its prompt
    backend        how attention over trees is computed, see `upslope.policies.attention`
    pad            the token that fills padded rows
    checkpointed   the layers that are recomputed in backward
    """

    model: Any
    packing: Literal["tree", "padded"] = "padded"
    backend: Backend = "mask"
    pad: int = 0
    checkpointed: list[nn.Module] = field(default_factory=list)
    _configs: tuple[PretrainedConfig, ...] = ()

    @classmethod
    def of(
        cls,
        model: Any,
        pad: int | None,
        attention: Backend | Literal["auto"] = "auto",
        gradient_checkpointing: bool = False,
    ) -> Self:
        model.eval()
        cls.check(model)
        embedded = model.get_input_embeddings().weight.shape[0]
        return cls(
            model,
            backend=choose_backend(attention, next(model.parameters()).device),
            pad=0 if pad is None or pad >= embedded else pad,
            checkpointed=checkpointing.enable(model) if gradient_checkpointing else [],
            _configs=attention_configs(model),
        )

    @staticmethod
    def check(model: Any) -> None:
        """Raises UsageError for a model without the layer that `forward` ends with."""
        if model.get_output_embeddings() is None:
            kind = type(model).__name__
            raise UsageError(f"{kind} has no output layer over a vocabulary: load it as a causal language model.")

    def twin(self, model: Any) -> Self:
        """The same way to run another model of the same architecture, a copy of this one."""
        layers = checkpointing.checkpointed_layers(model) if self.checkpointed else []
        return replace(self, model=model, checkpointed=layers, _configs=attention_configs(model))

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def context_length(self) -> int:
        return loading.context_length(self.model.config)

    def prepare(self, rollouts: Rollouts, rows: Tensor | None) -> Pass | None:
        """The pass that scores the given rows (all, where None); None if they have no scored token."""
        found = sequences(rollouts, rows, self.context_length)
        shape = (len(rollouts) if rows is None else len(rows), rollouts.tokens.shape[1])
        if not len(found.kept):
            return None
        if self.packing == "tree":
            return packed_pass(found, shape, self.device)
        return padded_pass(found, shape, self.device, self.pad)

    def forward(self, scored: Pass, logits: bool) -> tuple[Tensor, Tensor]:
        """Hidden states [n, H] and logits [n, V] ([0, V] where not asked for) at the states of the pass."""
        head = self.model.get_output_embeddings()
        with self.running(scored) as inputs, only_states(head, scored.states, logits) as seen:
            output = self.model(**inputs, use_cache=False)
        return seen[0], output.logits[0]

    @contextmanager
    def running(self, scored: Pass) -> Iterator[dict[str, Tensor]]:
        """The model's inputs for the pass; inside the block it attends over the trees of the pass."""
        inputs = {"input_ids": scored.ids}
        if scored.positions is not None:
            inputs["position_ids"] = scored.positions
        if scored.attended is not None:
            inputs["attention_mask"] = scored.attended
        trees = nullcontext() if scored.tree is None else packed_attention(self._configs, scored.tree, self.backend)
        with trees, checkpointing.active(self.checkpointed):
            yield inputs
