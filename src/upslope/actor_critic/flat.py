"""A network's parameters as one flat vector: one call for an Adam step, one for a target's average, one for a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Flat:
    """A network whose parameters are views of the vector `values` [P], with Adam's moments beside it.

    The gradient is asked of autograd for these parameters alone: a loss of the actor costs no gradient of the critic's weights.
    """

    def __init__(self, network: nn.Module, lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.network, self.lr, self.betas, self.eps = network, lr, betas, eps
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.values = flatten(self.parameters)
        self.mean = torch.zeros_like(self.values)
        self.square = torch.zeros_like(self.values)
        self.steps = torch.zeros(())

    def step(self, loss: Tensor, *, lr: float | None = None, clip: float | None = None) -> float | None:
        """One Adam step down the loss; returns the gradient's norm where `clip` bounds it."""
        found = torch.autograd.grad(loss, self.parameters)
        gradient = torch.cat([part.reshape(-1) for part in found])
        norm = None
        if clip is not None:
            norm = float(gradient.norm())
            if norm > clip:
                gradient.mul_(clip / (norm + 1e-6))
        self.apply(gradient, self.lr if lr is None else lr)
        return norm

    @torch.no_grad()
    def apply(self, gradient: Tensor, lr: float) -> None:
        """Adam (Kingma and Ba 2015) as torch.optim.Adam, in one pass over the vector where torch has the kernel."""
        beta1, beta2 = self.betas
        self.steps += 1
        if hasattr(torch, "_fused_adam_"):
            torch._fused_adam_(
                [self.values], [gradient], [self.mean], [self.square], [], [self.steps],
                lr=lr, beta1=beta1, beta2=beta2, weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        count = float(self.steps)
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (self.square / (1 - beta2**count)).sqrt_().add_(self.eps)
        self.values.addcdiv_(self.mean, root, value=-lr / (1 - beta1**count))

    def state_dict(self) -> dict[str, Tensor]:
        """Values, moments and the number of steps."""
        return {"values": self.values, "mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


@torch.no_grad()
def flatten(parameters: list[nn.Parameter]) -> Tensor:
    """One vector [P] with the parameters' values, of which they are views from now on."""
    values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    place = 0
    for parameter in parameters:
        count = parameter.numel()
        parameter.data = values[place : place + count].view_as(parameter)
        place += count
    return values


class Target:
    """A copy of a network that follows it: values <- (1 - rate) values + rate online."""

    def __init__(self, online: Flat, copy: nn.Module) -> None:
        self.online, self.network = online, copy
        parameters = list(copy.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        self.values = flatten(parameters)
        self.values.copy_(online.values)

    def follow(self, rate: float) -> None:
        """One step towards the online network."""
        self.values.lerp_(self.online.values, rate)
