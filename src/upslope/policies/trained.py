"""What language policies and reward models share: a transformers model over rollouts, its tokenizer, its trained parameters."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upslope.policies import loading, plans, support
from upslope.policies.lora import save_merged
from upslope.policies.network import Network
from upslope.rollout import Message, Rollouts

Packing = Literal["auto", "tree", "padded"]


class TrainedModel:
    """A model that is trained on rollouts.

    network     how the model runs over rollouts
    tokenizer   its tokenizer, with a padding token (the end token where it had none)
    """

    network: Network
    tokenizer: Any

    @property
    def model(self) -> Any:
        return self.network.model

    @property
    def packing(self) -> Literal["tree", "padded"]:
        return self.network.packing

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return support.model_dtype(self.model)

    @property
    def context_length(self) -> int:
        """The most tokens, prompt and completion together, that the model was made for."""
        return self.network.context_length

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters: all, or the adapters (of a reward model, and the score)."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt: messages through the tokenizer's chat template, a string as it is."""
        return loading.encode(self.tokenizer, prompt)

    def encode_completion(
        self, prompt: str | Sequence[Message], completion: str | Sequence[Message]
    ) -> tuple[list[int], str]:
        """Token ids of a given completion of a prompt, with its end token, and its text. Raises UsageError as `encode`."""
        return loading.encode_completion(self.tokenizer, prompt, completion)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, path: str | Path) -> None:
        """Write an ordinary Hugging Face folder: config, safetensors, tokenizer.

        Adapters are merged into the weights, and also written on their own to `adapter/` inside the folder.
        """
        with loading.quiet():
            save_merged(self.model, Path(path))
            self.tokenizer.save_pretrained(path)

    def state_dict(self) -> dict[str, Tensor]:
        """The trained parameters by name, not copied: what a checkpoint needs beside the model it started from."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned. Raises UsageError where names or shapes differ."""
        loading.copy_parameters(state, dict(self.model.named_parameters()), set(self.state_dict()))

    def plan(
        self,
        rollouts: Rollouts,
        *,
        tokens_per_pass: int,
        keep_groups: bool = False,
        rows: Tensor | None = None,
    ) -> list[Tensor]:
        """Micro-batches: disjoint row indices [r] int64 that together are all `rows` (all rollouts, where None).

        Each costs at most `tokens_per_pass` token passes, padding included. Rows of a prompt stay together where they
        fit; a prompt whose rows do not fit is split, unless `keep_groups`. A row beyond the budget is a micro-batch.
        """
        return plans.plan(
            rollouts, tokens_per_pass=tokens_per_pass, keep_groups=keep_groups, rows=rows, packing=self.packing
        )
