"""Which rows are decoded together, so that their keys and values fit into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CPU_BYTES = 2**30  # a constant, so that a call makes the same batches, hence the same bits, on every machine
MOST_ROWS = 1024
LOGIT_BYTES = 16  # per word of the vocabulary and row: the logits and what sampling makes of them


@dataclass(frozen=True)
class Budget:
    """What one wave may hold: `rows` of them, and `bytes` of keys, values and logits (None: no bound)."""

    rows: int
    bytes: int | None
    bytes_per_token: int
    bytes_per_row: int

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device, max_rows: int | None) -> "Budget":
        """`max_rows` rows if given, else what 1 GiB (CPU) or a quarter of the device's memory holds, at most 1024."""
        text = config.get_text_config()
        heads = getattr(text, "num_attention_heads", 1)
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        heads = getattr(text, "num_key_value_heads", None) or heads
        per_token = 2 * text.num_hidden_layers * heads * size * dtype.itemsize
        if max_rows is not None:
            return cls(max_rows, None, per_token, 0)
        limit = CPU_BYTES if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // 4
        return cls(MOST_ROWS, limit, per_token, LOGIT_BYTES * text.vocab_size)


def waves(
    lengths: Sequence[int], counts: Sequence[int], max_tokens: int, budget: Budget, *, shared: bool, equal_lengths: bool
) -> Iterator[list[int]]:
    """Split sum(counts) rows, numbered by prompt, into waves; yields the rows of each.

    Prompts of similar length come together, and the rows of a prompt unless they exceed `budget.rows`.

    Args:
        lengths, counts: tokens and rows of each prompt.
        max_tokens: tokens that a row may add.
        budget: what a wave may hold.
        shared: a prompt is stored once per wave, not once per row.
        equal_lengths: all prompts of a wave must have the same length.
    """
    first = [sum(counts[:prompt]) for prompt in range(len(counts))]
    wave: list[int] = []
    used, length = 0, 0
    for prompt in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = range(first[prompt], first[prompt] + counts[prompt])
        for start in range(0, len(rows), budget.rows):
            group = rows[start : start + budget.rows]
            copies = 1 if shared else len(group)
            cost = copies * lengths[prompt] * budget.bytes_per_token
            cost += len(group) * (max_tokens * budget.bytes_per_token + budget.bytes_per_row)
            full = len(wave) + len(group) > budget.rows or (budget.bytes is not None and used + cost > budget.bytes)
            if wave and (full or (equal_lengths and lengths[prompt] != length)):
                yield wave
                wave, used = [], 0
            wave.extend(group)
            used, length = used + cost, lengths[prompt]
    if wave:
        yield wave
