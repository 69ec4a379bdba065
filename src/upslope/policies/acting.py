"""Drawing actions step by step in NumPy, where the network is plain: a third of the time of torch for rows this few."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from upslope.policies.distributions import Categorical, Gaussian

if TYPE_CHECKING:
    from upslope.policies.control import ControlPolicy

IN_PLACE: dict[str, Callable[[np.ndarray], object]] = {
    "tanh": lambda x: np.tanh(x, out=x),
    "relu": lambda x: np.maximum(x, 0, out=x),
}


@torch.no_grad()
def numpy_sampler(
    policy: "ControlPolicy", generator: torch.Generator, steps: int
) -> Callable[[np.ndarray], np.ndarray] | None:
    """What `ControlPolicy.sampler` returns, from the same noise; None where there is more than layers and one distribution.

    Weights are read at every call, so it follows a policy whose parameters are changed in place; moments are those of now.
    Log-probs are not made here: the policy scores what was drawn.
    """
    settings, kind = policy.settings, policy.actions.kind
    plain = settings.activation in IN_PLACE and not settings.layer_norm and settings.components == 1
    if not plain or kind == "multi_discrete" or (kind == "continuous" and policy.log_std is None):
        return None
    body: Iterable[Any] = policy.body.layers
    layers = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in body]
    head, bias = policy.head.weight.detach().numpy().T, policy.head.bias.detach().numpy()
    activate = IN_PLACE[settings.activation]
    log_std = None if policy.log_std is None else policy.log_std.detach().numpy()
    squashed = settings.distribution == "squashed"
    clip, moments = settings.normalize_clip, policy.scaling()
    noise: np.ndarray | None = None
    taken = 0

    def draw(observation: np.ndarray) -> np.ndarray:
        nonlocal noise, taken
        x = observation
        if moments is not None:
            x = np.clip((x - moments[0]) * moments[1], -clip, clip)
        for weight, shift in layers:
            x = x @ weight
            x += shift
            activate(x)
        out = x @ head
        out += bias
        if noise is None:
            like = torch.from_numpy(out)
            one = Categorical(like) if log_std is None else Gaussian(like, like)
            noise = one.noise(generator, (steps,)).numpy()
        taken += 1
        if log_std is None:
            found: np.ndarray = (out + noise[taken - 1]).argmax(-1)
            return found
        out += np.exp(log_std) * noise[taken - 1]
        return np.tanh(out, out=out) if squashed else out

    return draw
