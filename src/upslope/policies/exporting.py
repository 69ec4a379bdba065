"""A control policy as ONNX, for machines without PyTorch."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.errors import UsageError
from upslope.parts.assignment import PairScores
from upslope.parts.network import POINTS
from upslope.policies.control import ControlPolicy
from upslope.policies.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian

TOLERANCE = 1e-4  # what other kernels may differ by in float32, relative to the largest number where that is above 1


class Deployed(nn.Module):
    """What is exported: observations [N, D] to the likeliest actions as the environment takes them, and what they are drawn from.

    outputs   names of the numbers that `forward` returns, in order: action; logits, or mean and log_std (before squashing)
    """

    low: Tensor
    high: Tensor
    start: Tensor

    def __init__(self, policy: ControlPolicy) -> None:
        super().__init__()
        self.policy = policy
        actions = policy.actions
        if policy.settings.components > 1:
            raise UsageError(
                "a policy that is a mixture is not exported: its likeliest action has no closed form in ONNX. Use `predict`."
            )
        low, high = actions.box
        self.register_buffer("low", torch.from_numpy(low))
        self.register_buffer("high", torch.from_numpy(high))
        self.register_buffer("start", torch.tensor(actions.start))
        continuous = actions.kind == "continuous"
        spread = policy.settings.distribution not in POINTS
        self.outputs = ["action", *(["mean", "log_std"] if continuous and spread else [] if continuous else ["logits"])]

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        """[N, D] float32 as the environment gives it, flat."""
        found = self.policy.distribution(observation)
        match found:
            case Categorical() | MultiCategorical():
                return found.mode() + self.start, found.logits
            case Gaussian() | SquashedGaussian():
                return self._placed(found.mode()), found.mean, found.log_std.expand_as(found.mean)
        return (self._placed(found.mode()),)

    def _placed(self, action: Tensor) -> Tensor:
        """In the bounds, by the policy's convention."""
        if self.policy.convention == "scale":
            action = self.low + (action.clamp(-1, 1) + 1) * (0.5 * (self.high - self.low))
        return torch.maximum(torch.minimum(action, self.high), self.low)


def export_onnx(policy: ControlPolicy, file: Path) -> float:
    """Writes the policy and returns by how much ONNX Runtime's actions differ from PyTorch's, at most, on 64 observations.

    Input `observation` [N, D] float32, raw: normalisation is part of the graph. Outputs `action`, as the environment takes it
    (the likeliest one), and `logits`, or `mean` and `log_std` before squashing. The file's metadata names the columns.
    Raises UsageError where a package is missing, for a mixture, or where the two disagree; nothing is left behind then.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx needs
    except ImportError as error:
        raise UsageError(f"the export needs {error.name}: pip install 'upslope[onnx]'.") from None
    if isinstance(policy.settings, PairScores):
        raise UsageError("this policy settles all agents' choices by an assignment, which is no graph of ONNX.")
    deployed = Deployed(policy).eval()
    size = policy.observations.size
    example = torch.randn(64, size, generator=torch.Generator().manual_seed(0))
    expected = deployed(example)
    model = _graph(deployed, example)
    facts = {"observations": policy.observations.names, "actions": policy.actions.to_dict()}
    onnx.helper.set_model_props(model, {f"upslope.{name}": json.dumps(value) for name, value in facts.items()})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"observation": example.numpy()})
    gap = max(_gap(np.asarray(one), other.detach().numpy()) for one, other in zip(found, expected, strict=True))
    if not gap <= TOLERANCE:
        raise UsageError(f"ONNX Runtime's outputs differ from PyTorch's by {gap:.1e}: nothing was written.")
    onnx.save(model, str(file))
    return gap


def _graph(deployed: Deployed, example: Tensor) -> Any:
    """The ONNX model for any number of rows, without the exporter's talk of packages that nobody needs here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                deployed,
                (example,),
                input_names=["observation"],
                output_names=deployed.outputs,
                dynamic_shapes={"observation": {0: torch.export.Dim("rows", min=1)}},
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    return program.model_proto


def _gap(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
