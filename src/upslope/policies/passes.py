"""From rollouts to one forward pass: which tokens go in, which states come out, which tokens they predict."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.policies.attention import TreeAttention
from upslope.policies.tree import Ints, pack
from upslope.rollout import Rollouts


@dataclass(frozen=True)
class Pass:
    """One forward pass over tokens [B, L], and where the M scored response tokens of r rows are in it.

    ids         input tokens                                                         [B, L] int64
    positions   their positions where the trees restart them (tree path), else None  [B, L] int64
    attended    True for tokens, False for padding (padded path), else None          [B, L] int64
    tree        the trees to attend over; None on the padded path
    states      flat index into [B * L] of the n states that predict something       [n] int64
    state       for each scored token, which of the states predicts it               [M] int64
    target      the scored tokens                                                    [M] int64
    slot        flat index of each scored token into the columns [r * T]             [M] int64
    shape       (r, T)
    """

    ids: Tensor
    positions: Tensor | None
    attended: Tensor | None
    tree: TreeAttention | None
    states: Tensor
    state: Tensor
    target: Tensor
    slot: Tensor
    shape: tuple[int, int]

    def column(self, values: Tensor) -> Tensor:
        """Values [M, ...] of the scored tokens as a column [r, T, ...] with 0 elsewhere."""
        rows, width = self.shape
        empty = values.new_zeros((rows * width, *values.shape[1:]))
        return empty.index_copy(0, self.slot, values).unflatten(0, (rows, width))


@dataclass(frozen=True)
class Sequences:
    """Prompt and response of the rows that have a scored token, cut before their last one, which predicts nothing.

    tokens   [k, L]; length [k]; prompt (length of it) [k]; kept: which of the r rows they are [k]; mask: scored [k, T]
    """

    tokens: Ints
    length: Ints
    prompt: Ints
    kept: Ints
    mask: np.ndarray
    response: Ints


def sequences(rollouts: Rollouts, rows: Tensor | None, context: int) -> Sequences:
    """The token sequences of the given rows (all, where None).

    Raises:
        UsageError: a prompt is empty, or a row is longer than `context` tokens.
    """
    chosen = np.arange(len(rollouts)) if rows is None else rows.cpu().numpy()
    response = rollouts.tokens.cpu().numpy()[chosen]
    mask = rollouts.mask.cpu().numpy()[chosen]
    prompt_of = rollouts.prompt.cpu().numpy()[chosen]
    lengths = np.array([len(ids) for ids in rollouts.prompts], dtype=np.int64)
    kept = np.flatnonzero(mask.any(axis=1))
    response, mask, prompt_of = response[kept], mask[kept], prompt_of[kept]
    prompt = lengths[prompt_of]
    _check_lengths(chosen[kept], prompt_of, prompt, rollouts.length.cpu().numpy()[chosen[kept]], context)
    width = mask.shape[1]
    length = prompt + (width - 1 - mask[:, ::-1].argmax(axis=1)) if len(kept) else prompt
    tokens = np.zeros((len(kept), int(prompt.max(initial=0)) + width), dtype=np.int64)
    for index in np.unique(prompt_of).tolist():
        of_prompt = np.flatnonzero(prompt_of == index)
        size = int(lengths[index])
        tokens[of_prompt, :size] = np.asarray(rollouts.prompts[index])
        tokens[of_prompt, size : size + width] = response[of_prompt]
    return Sequences(tokens[:, : int(length.max(initial=0))], length, prompt, kept, mask, response)


def _check_lengths(rows: Ints, prompt_of: Ints, prompt: Ints, response: Ints, context: int) -> None:
    if (prompt == 0).any():
        index = int(prompt_of[np.flatnonzero(prompt == 0)[0]])
        raise UsageError(f"prompt {index} is empty: the first response token needs at least one token before it.")
    too_long = np.flatnonzero(prompt + response > context)
    if len(too_long):
        first = too_long[0]
        raise UsageError(
            f"row {rows[first]} (prompt {prompt_of[first]}) has {prompt[first]} prompt and {response[first]} response "
            f"tokens, but the model's context is {context}; {len(too_long)} of {len(rows)} rows are too long. "
            "Shorten the prompts, lower max_tokens, or use a model with a longer context."
        )


def packed_pass(found: Sequences, shape: tuple[int, int], device: torch.device) -> Pass:
    """Every shared prefix once, all trees in one sequence [1, N]."""
    trees = pack(found.tokens, found.length)
    row, time = np.nonzero(found.mask)
    before = trees.where[row, found.prompt[row] + time - 1]
    states, state = np.unique(before, return_inverse=True)
    return _pass(
        found, shape, device, row, time, states, state, trees.ids[None],
        positions=torch.from_numpy(trees.position[None]).to(device), tree=TreeAttention.of(trees, device),
    )  # fmt: skip


def padded_pass(found: Sequences, shape: tuple[int, int], device: torch.device, pad: int) -> Pass:
    """Each row with its prompt, padded on the right to the longest [k, L]."""
    inside = np.arange(found.tokens.shape[1]) < found.length[:, None]
    row, time = np.nonzero(found.mask)
    states = row * found.tokens.shape[1] + found.prompt[row] + time - 1
    return _pass(
        found, shape, device, row, time, states, np.arange(len(states)), np.where(inside, found.tokens, pad),
        attended=torch.from_numpy(inside.astype(np.int64)).to(device),
    )  # fmt: skip


def _pass(
    found: Sequences,
    shape: tuple[int, int],
    device: torch.device,
    row: Ints,
    time: Ints,
    states: Ints,
    state: Ints,
    ids: Ints,
    positions: Tensor | None = None,
    attended: Tensor | None = None,
    tree: TreeAttention | None = None,
) -> Pass:
    arrays = (ids, states, state, found.response[row, time], found.kept[row] * shape[1] + time)
    ids_, states_, state_, target, slot = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in arrays)
    return Pass(ids_, positions, attended, tree, states_, state_, target, slot, shape)
