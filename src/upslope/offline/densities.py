"""Log-probs of logged actions, in the units of a log: of a box scaled to [-1, 1]; of one choice its number from 0 on."""

import numpy as np
import torch

from upslope.policies.control import ControlPolicy
from upslope.tasks.spaces import ActionSpec

EDGE = 1.0 - 1e-6
"""Logged actions are cut to +- this: on the bound itself a squashed policy has no density."""


def to_log(action: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Actions [n, ...] of an environment in the log's units: [n, A] float32, or [n] int64 from 0 on; boxes must be finite."""
    if spec.kind == "discrete":
        return action.reshape(len(action)).astype(np.int64) - spec.start[0]
    low, high = spec.box
    return ((action.reshape(len(action), -1) - low) / (high - low) * 2.0 - 1.0).clip(-EDGE, EDGE).astype(np.float32)


def policy_logp(policy: ControlPolicy, observation: np.ndarray, action: np.ndarray) -> np.ndarray | None:
    """log pi(a|s) [n] float64 of actions in the log's units; None for a policy without a density there.

    A policy that is cut to the box puts more than a density on its bounds: NaN for an action on them.
    """
    spec, settings = policy.actions, policy.settings
    if spec.kind == "multi_discrete" or (
        spec.kind == "continuous" and (settings.distribution == "deterministic" or not spec.bounded)
    ):
        return None
    found = [
        _logp(policy, torch.from_numpy(np.ascontiguousarray(observation[rows])), torch.from_numpy(action[rows]))
        for rows in np.array_split(np.arange(len(action)), max(1, len(action) // 8192))
    ]
    logp = np.concatenate(found)
    if spec.kind == "continuous" and settings.distribution != "squashed":
        logp[(np.abs(action) >= EDGE).any(1)] = np.nan
    return logp


@torch.no_grad()
def _logp(policy: ControlPolicy, observation: torch.Tensor, action: torch.Tensor) -> np.ndarray:
    spec, scale = policy.actions, 0.0
    if (
        spec.kind == "continuous" and policy.convention == "clip"
    ):  # a density over the box, of which the log's is a multiple
        low, high = (torch.from_numpy(bound) for bound in spec.box)
        action, scale = low + (action + 1.0) * (0.5 * (high - low)), float((0.5 * (high - low)).log().sum())
    logp: np.ndarray = policy.distribution(observation).log_prob(action).double().numpy() + scale
    return logp


def uniform_logp(spec: ActionSpec) -> float:
    """The log-prob of any action of uniform draws."""
    return -float(np.log(spec.values[0])) if spec.kind == "discrete" else -spec.size * float(np.log(2.0))
