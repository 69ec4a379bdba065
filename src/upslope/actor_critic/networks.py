"""Networks of critics: any number of members as one batched product, so that ten cost little more calls than one."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upslope.errors import UsageError

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu, "gelu": nn.functional.gelu}


class EnsembleNetwork(nn.Module):
    """E networks with one output each, over the same inputs: [B, in] -> [E, B].

    Layer i has weights [E, in_i, out_i] and biases [E, 1, out_i]; hidden layers are Linear -> Dropout -> LayerNorm -> activation,
    each of the middle two if asked for. Weights start as torch.nn.Linear's do, uniform within 1 / sqrt(in_i).
    """

    def __init__(
        self,
        size: int,
        members: int = 2,
        widths: tuple[int, ...] = (256, 256),
        *,
        activation: str = "relu",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if members < 1 or not widths or min(widths) < 1:
            raise UsageError(f"an ensemble of {members} networks with widths {list(widths)} has nothing in it.")
        self.members, self.activation, self.dropout = members, ACTIVATIONS[activation], dropout
        sizes = [size, *widths, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(before)
            self.weights.append(nn.Parameter(torch.empty(members, before, after).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, after).uniform_(-bound, bound)))
        self.gains, self.shifts = nn.ParameterList(), nn.ParameterList()
        for width in widths if layer_norm else ():
            self.gains.append(nn.Parameter(torch.ones(members, 1, width)))
            self.shifts.append(nn.Parameter(torch.zeros(members, 1, width)))
        # Reading a ParameterList costs more than a small product, so the pairs are kept in lists.
        self._layers = list(zip(self.weights, self.biases, strict=True))
        self._norms = list(zip(self.gains, self.shifts, strict=True))

    def forward(
        self, inputs: Tensor, *, members: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Values [E, B] of inputs [B, in], or [E, B, in] where each member has its own; of these `members` only, if given.

        Dropout is active wherever a generator is given, and scales what it keeps by 1 / (1 - p).
        """
        chosen = None if members is None or len(members) == self.members else _picked(members)
        count = self.members if members is None else len(members)
        hidden = inputs.expand(count, *inputs.shape[-2:])
        last = len(self._layers) - 1
        for index, (weight, bias) in enumerate(self._layers):
            if chosen is not None:
                weight, bias = weight[chosen], bias[chosen]
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < last:
                if self.dropout and generator is not None:
                    kept = torch.empty_like(hidden).bernoulli_(1.0 - self.dropout, generator=generator)
                    hidden = hidden * kept.div_(1.0 - self.dropout)
                if self._norms:
                    gain, shift = self._norms[index] if chosen is None else (x[chosen] for x in self._norms[index])
                    hidden = torch.addcmul(shift, nn.functional.layer_norm(hidden, hidden.shape[-1:]), gain)
                hidden = self.activation(hidden)
        return hidden.squeeze(-1)


def _picked(members: Sequence[int]) -> slice | list[int]:
    """An index of these members; of neighbours a slice, which copies nothing."""
    chosen = list(members)
    first, count = chosen[0], len(chosen)
    return slice(first, first + count) if chosen == list(range(first, first + count)) else chosen
