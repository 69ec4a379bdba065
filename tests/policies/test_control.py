"""Control policies: shapes for every kind of action, saving bit for bit, normalisation, initialisation."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope.errors import UsageError
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy, Critic
from upslope.policies.distributions import Gaussian, Mixture, SquashedGaussian
from upslope.policies.moments import Moments
from upslope.tasks.spaces import ActionSpec, ObservationSpec

OBSERVATIONS = ObservationSpec.of(spaces.Box(-1, 1, (3,)))
BOX = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, np.inf]), dtype=np.float64)
CASES = [
    (spaces.Discrete(4), MLP(), (5,)),
    (spaces.MultiDiscrete([2, 3]), MLP(shared=True), (5, 2)),
    (BOX, MLP(normalize=True), (5, 2)),
    (BOX, MLP(log_std="state", layer_norm=True, activation="relu", weight_init="torch"), (5, 2)),
    (BOX, MLP(distribution="squashed", log_std="state"), (5, 2)),
    (BOX, MLP(components=3), (5, 2)),
    (BOX, MLP(components=3, log_std="state", distribution="squashed"), (5, 2)),
]


@pytest.mark.parametrize(("space", "settings", "shape"), CASES)
def test_actions_log_probs_and_saving(space, settings, shape, tmp_path):
    torch.manual_seed(0)
    policy = ControlPolicy(OBSERVATIONS, ActionSpec.of(space), settings)
    seen = torch.randn(5, 3) * 3 + 1
    policy.observe(seen)
    action, logp = policy.act(seen.numpy(), torch.Generator().manual_seed(1))
    assert action.shape == shape
    assert logp.shape == (5,)
    assert action.dtype == (np.float32 if space is BOX else np.int64)
    np.testing.assert_allclose(logp, policy.distribution(seen).log_prob(torch.from_numpy(action)).detach(), rtol=1e-6)
    if space is not BOX:
        assert all(space.contains(row) for row in action)
    greedy, _ = policy.act(seen.numpy(), deterministic=True)
    np.testing.assert_array_equal(greedy, policy.distribution(seen).mode().detach())
    draw = policy.sampler(torch.Generator().manual_seed(1), 2)
    first, second = draw(seen.numpy()), draw(seen.numpy())
    assert first.shape == shape
    assert not np.array_equal(first, second) or space is not BOX
    policy.save(tmp_path / "p")
    again = ControlPolicy.load(tmp_path / "p")
    assert again.settings == settings
    assert again.actions == policy.actions
    np.testing.assert_array_equal(again.act(seen.numpy(), deterministic=True)[0], greedy)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"model.safetensors", "policy.json"}


def test_critic_shares_or_does_not():
    actions = ActionSpec.of(spaces.Discrete(2))
    for shared in (False, True):
        policy = ControlPolicy(OBSERVATIONS, actions, MLP(shared=shared, hidden=(8, 4)))
        critic = Critic(policy)
        seen = torch.randn(6, 5, 3)
        assert critic(seen).shape == (6, 5)
        names = [name for name, _ in critic.named_parameters()]
        assert names[-2:] == ["head.weight", "head.bias"]
        assert len(names) == (2 if shared else 6)
        critic(seen).sum().backward()
        assert (policy.body.layers[0].weight.grad is not None) == shared


def test_initialisation_is_orthogonal_with_its_gains():
    policy = ControlPolicy(OBSERVATIONS, ActionSpec.of(BOX), MLP(hidden=(16, 16)))
    weight = policy.body.layers[1].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.head.weight @ policy.head.weight.T, 1e-4 * torch.eye(2), rtol=0, atol=1e-7)
    head = Critic(policy).head
    assert float(head.weight.detach().norm()) == pytest.approx(1, abs=1e-5)
    assert not any(parameter.any() for name, parameter in policy.named_parameters() if name.endswith("bias"))


def test_normalisation_is_that_of_all_observations_so_far():
    policy = ControlPolicy(OBSERVATIONS, ActionSpec.of(BOX), MLP(normalize=True, normalize_clip=2.0))
    rows = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 100.0]) + 7
    assert torch.equal(policy.normalized(rows[:5].float()), rows[:5].float().clamp(-2, 2))
    for part in rows.split([10, 1, 64, 25]):
        policy.observe(part)
    expected = ((rows - rows.mean(0)) / rows.std(0, unbiased=False)).clamp(-2, 2)
    np.testing.assert_allclose(policy.normalized(rows.float()), expected, rtol=1e-4, atol=1e-4)
    whole = Moments(3)
    whole.update(rows)
    np.testing.assert_allclose(policy.moments.variance, whole.variance, rtol=1e-12)


def test_distributions_by_settings():
    actions = ActionSpec.of(BOX)
    kinds = [
        type(ControlPolicy(OBSERVATIONS, actions, settings).distribution(torch.zeros(1, 3)))
        for settings in (MLP(), MLP(distribution="squashed"), MLP(components=2))
    ]
    assert kinds == [Gaussian, SquashedGaussian, Mixture]
    mixture = ControlPolicy(OBSERVATIONS, actions, MLP(components=2, policy_gain=0.0)).distribution(torch.zeros(1, 3))
    assert mixture.components.mean.tolist() == [[[-1.0, -1.0], [1.0, 1.0]]]
    with pytest.raises(UsageError, match="these are discrete"):
        ControlPolicy(OBSERVATIONS, ActionSpec.of(spaces.Discrete(2)), MLP(components=2))


def test_wrong_settings_and_files_are_named(tmp_path):
    for changed, message in (
        ({"hidden": ()}, "needs a width"),
        ({"components": 0}, "at least 1"),
        ({"log_std_low": 3.0}, "must be below"),
        ({"normalize_clip": 0.0}, "above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(MLP(), **changed)
    with pytest.raises(UsageError, match="there is no policy"):
        ControlPolicy.load(tmp_path)
    (tmp_path / "policy.json").write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="there is no policy"):
        ControlPolicy.load(tmp_path)


@pytest.mark.parametrize(
    ("space", "settings", "shape"), [*CASES, (BOX, MLP(activation="relu", distribution="squashed"), (5, 2))]
)
def test_quick_draws_are_those_of_the_distribution(space, settings, shape):
    torch.manual_seed(0)
    policy = ControlPolicy(OBSERVATIONS, ActionSpec.of(space), dataclasses.replace(settings, policy_gain=2.0))
    policy.observe(torch.randn(50, 3) * 3 + 1)
    quick, slow = (getattr(policy, name)(torch.Generator().manual_seed(1), 20) for name in ("sampler", "torch_sampler"))
    for seen in torch.randn(20, 5, 3).numpy():
        one, other = quick(seen), slow(seen)
        assert one.shape == other.shape == shape
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_predict_is_as_the_environment_takes_it():
    torch.manual_seed(0)
    policy = ControlPolicy(OBSERVATIONS, ActionSpec.of(BOX), MLP(distribution="gaussian", log_std_init=2.0))
    several, state = policy.predict(np.zeros((50, 3)), state="kept")
    assert several.shape == (50, 2)
    assert state == "kept"
    assert all(BOX.contains(action.astype(np.float64)) for action in several)
    one, _ = policy.predict([0.1, 0.2, 0.3], deterministic=True)
    assert one.shape == (2,)
    finite = spaces.Box(np.array([-2.0, 1.0]), np.array([2.0, 3.0]))
    squashed = ControlPolicy(OBSERVATIONS, ActionSpec.of(finite), MLP(distribution="squashed", policy_gain=0.0))
    np.testing.assert_allclose(squashed.predict(np.zeros(3), deterministic=True)[0], [0.0, 2.0])
    discrete = ControlPolicy(OBSERVATIONS, ActionSpec.of(spaces.Discrete(3, start=5)), MLP())
    assert discrete.predict(np.zeros(3))[0] in (5, 6, 7)
    rich = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
    named = ControlPolicy(ObservationSpec.of(rich), ActionSpec.of(spaces.MultiDiscrete([2, 2])), MLP())
    assert named.predict({"a": np.zeros(2), "b": 1})[0].shape == (2,)
    with pytest.raises(UsageError, match=r"a\[1\] is nan\. Give finite numbers"):
        named.predict({"a": np.array([0.0, np.nan]), "b": 1})
    with pytest.raises(UsageError, match=r"is inf \(observation 2\)"):
        discrete.predict(np.array([[0.0] * 3, [1.0] * 3, [0.0, np.inf, 0.0]]))
    assert named.predict({"a": np.zeros((4, 2)), "b": np.array([0, 1, 2, 0])})[0].shape == (4, 2)
    with pytest.raises(UsageError, match=r"has shape \(4,\), and its space says \(3,\)"):
        policy.predict(np.zeros(4))


def test_amounts_are_softplus_of_one_more():
    torch.manual_seed(0)
    policy = ControlPolicy(OBSERVATIONS, ActionSpec.of(BOX), MLP(distribution="softplus", activation="elu"))
    seen = torch.randn(5, 3) * 3
    out = policy.head(
        torch.nn.functional.elu(policy.body.layers[1](torch.nn.functional.elu(policy.body.layers[0](seen))))
    )
    expected = np.log1p(np.exp(out.detach().numpy().astype(np.float64) + 1))
    action, logp = policy.act(seen.numpy())
    np.testing.assert_allclose(action, expected, rtol=1e-5)
    np.testing.assert_allclose(policy.sampler(torch.Generator(), 1)(seen.numpy()), expected, rtol=1e-5)
    assert policy.log_std is None
    assert policy.convention == "clip"
    assert not logp.any()
    with pytest.raises(UsageError, match="components=2 is of mixtures"):
        MLP(distribution="softplus", components=2)
