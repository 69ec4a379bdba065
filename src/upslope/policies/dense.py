"""Outputs and gradients of plain networks without autograd: half the time of it for mini-batches this small.

A network of linear layers and one activation has a gradient of a few lines, and NumPy's tanh takes a tenth of the time of
torch's. Both are exact to rounding. What is more than that (layer norm, other activations) is left to autograd.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from upslope.policies.control import Body

ACTIVATIONS = ("tanh", "relu")


class Dense:
    """Hidden layers and a last one. `outputs` gives a leaf of the loss's graph; `pull` takes the gradient at that leaf on to the
    parameters, in the order of `parameters`.
    """

    def __init__(self, body: "Body", head: nn.Linear, activation: str) -> None:
        layers: list[Any] = [*body.layers, head]
        self.parameters: list[nn.Parameter] = [one for layer in layers for one in (layer.weight, layer.bias)]
        self.activation = activation
        self.leaf: Tensor | None = None
        self._inputs: list[Tensor] = []

    @torch.no_grad()
    def outputs(self, seen: Tensor) -> Tensor:
        """[..., D] as the network sees it to [..., K], the leaf; held until the next call."""
        x = seen.reshape(-1, seen.shape[-1])
        self._inputs = [x]
        weights, biases = self.parameters[::2], self.parameters[1::2]
        last = len(weights) - 1
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = torch.addmm(bias, x, weight.t())
            if index < last:
                self._activate(x)
                self._inputs.append(x)
        self.leaf = x.view(*seen.shape[:-1], x.shape[-1]).requires_grad_()
        return self.leaf

    @torch.no_grad()
    def pull(self, gradient: Tensor, into: Sequence[Tensor]) -> None:
        """Writes the gradient by every parameter, given that by the leaf [..., K]; once for each call of `outputs`."""
        d = gradient.reshape(-1, gradient.shape[-1])
        for index in reversed(range(len(self._inputs))):
            x = self._inputs[index]
            torch.mm(d.t(), x, out=into[2 * index])
            torch.sum(d, 0, out=into[2 * index + 1])
            if index:
                d = torch.mm(d, self.parameters[2 * index])
                d = torch.ops.aten.tanh_backward(d, x) if self.activation == "tanh" else d.mul_(x > 0)
        self.leaf, self._inputs = None, []

    def _activate(self, x: Tensor) -> None:
        if self.activation == "tanh":
            values = x.numpy()
            np.tanh(values, out=values)
        else:
            x.relu_()


def dense(body: "Body", head: nn.Linear) -> Dense | None:
    """The network, if it is plain: float32 layers on the CPU with one of ACTIVATIONS and nothing between them."""
    if not hasattr(body, "layers") or len(body.norms) or body.settings.activation not in ACTIVATIONS:
        return None
    made = Dense(body, head, body.settings.activation)
    plain = all(one.dtype == torch.float32 and one.device.type == "cpu" for one in made.parameters)
    return made if plain else None
