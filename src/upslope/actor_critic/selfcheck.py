"""Checks of the actual environment and networks before the first step of the second loop."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope.actor_critic.contract import transitions
from upslope.policies.control import ControlPolicy
from upslope.selfcheck import Check
from upslope.tasks.environments import Environments

ACTIONS = 20  # played to see whether the environment repeats itself


def run_checks(parts: Any) -> list[Check]:
    """The environment from its seed and actions, the policy saved and loaded, an update resumed. What is trained stays as it is."""
    found = [_policy_saved(parts), _update_resumed(parts)]
    if parts.evaluation is not None:
        found.insert(0, _environment_repeats(parts.evaluation, parts.layout.action))
    return found


def _environment_repeats(environments: Environments, size: int) -> Check:
    actions = np.random.default_rng(0).uniform(-1, 1, (ACTIONS, environments.count, size)).astype(np.float32)
    seen = []
    for _ in range(2):
        environments.rewind()
        first = environments.reset()
        steps = [environments.step(action) for action in actions]
        seen.append(np.concatenate([first, *(step.next_observation for step in steps)]))
    apart = float(np.abs(seen[0] - seen[1]).max())
    message = (
        f"largest difference of an observation when {ACTIONS} actions are played again from the same seed: {apart:.3g}"
    )
    return Check("environment repeats", apart == 0.0, apart, 0.0, message)


def _policy_saved(parts: Any) -> Check:
    observation = np.random.default_rng(0).normal(size=(8, parts.layout.observation)).astype(np.float32)
    before, _ = parts.policy.act(observation, deterministic=True)
    with tempfile.TemporaryDirectory() as folder:
        parts.policy.save(Path(folder))
        after, _ = ControlPolicy.load(folder).act(observation, deterministic=True)
    apart = float(np.abs(before - after).max())
    return Check(
        "policy saved",
        apart == 0.0,
        apart,
        0.0,
        f"largest difference of an action after saving and loading: {apart:.3g}",
    )


def _update_resumed(parts: Any) -> Check:
    """Two updates from the same state give the same weights."""
    learner = parts.learner
    state = copy.deepcopy(learner.state_dict())
    rows = transitions(parts.layout)
    after = []
    for _ in range(2):
        for _ in range(2):
            learner.update(rows)
        after.append({name: flat.values.clone() for name, flat in learner.flats.items()})
        learner.load_state_dict(copy.deepcopy(state))
    apart = max(float((after[0][name] - after[1][name]).abs().max()) for name in after[0])
    whole = all(torch.equal(learner.flats[name].values, state["flats"][name]["values"]) for name in learner.flats)
    message = f"largest difference of a weight when two updates are done again from a saved state: {apart:.3g}"
    return Check("update resumed", apart == 0.0 and whole, apart, 0.0, message)
