"""ONNX: what ONNX Runtime computes of raw observations is what the policy does."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from upslope.errors import UsageError
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.policies.exporting import export_onnx
from upslope.tasks.spaces import ActionSpec, ObservationSpec

SEEN = ObservationSpec.of(spaces.Dict({"speed": spaces.Box(-9, 9, (2,)), "gear": spaces.Discrete(3)}))
BOX = spaces.Box(np.array([-2.0, 0.0], dtype=np.float32), np.array([2.0, 5.0], dtype=np.float32))
HALF_OPEN = spaces.Box(np.array([-2.0], dtype=np.float32), np.array([np.inf], dtype=np.float32))


@pytest.mark.parametrize(
    ("space", "settings", "outputs"),
    [
        (spaces.Discrete(4, start=2), MLP(), ["action", "logits"]),
        (spaces.MultiDiscrete([2, 3]), MLP(shared=True, layer_norm=True), ["action", "logits"]),
        (HALF_OPEN, MLP(normalize=True, activation="silu"), ["action", "mean", "log_std"]),
        (BOX, MLP(distribution="squashed", log_std="state", activation="relu"), ["action", "mean", "log_std"]),
        (BOX, MLP(distribution="deterministic"), ["action"]),
        (BOX, MLP(distribution="softplus", activation="elu"), ["action"]),
    ],
)
def test_same_actions_for_any_number_of_rows(space, settings, outputs, tmp_path):
    torch.manual_seed(0)
    policy = ControlPolicy(SEEN, ActionSpec.of(space), settings)
    policy.observe(torch.randn(100, 5) * 3 + 1)
    assert export_onnx(policy, tmp_path / "p.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    assert [output.name for output in session.get_outputs()] == outputs
    for rows in (1, 7):
        seen = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32) * 5
        action = session.run(["action"], {"observation": seen})[0]
        expected = policy.actions.to_environment(policy.act(seen, deterministic=True)[0], policy.convention)
        np.testing.assert_allclose(action.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
        assert all(space.contains(row.astype(space.dtype)) for row in action.reshape(expected.shape))
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "p.onnx").metadata_props}
    assert ActionSpec.from_dict(found["upslope.actions"]) == policy.actions
    assert found["upslope.observations"] == list(SEEN.names)


def test_a_mixture_is_refused(tmp_path):
    with pytest.raises(UsageError, match="mixture"):
        export_onnx(ControlPolicy(SEEN, ActionSpec.of(BOX), MLP(components=2)), tmp_path / "p.onnx")
    assert not list(tmp_path.iterdir())
