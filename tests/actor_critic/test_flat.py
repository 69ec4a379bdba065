"""A flat vector learns as torch's own Adam on the parts of it."""

import copy

import pytest
import torch

from upslope.actor_critic.flat import Flat, Target
from upslope.actor_critic.networks import EnsembleNetwork


def networks():
    torch.manual_seed(0)
    one = EnsembleNetwork(3, 2, (5,), layer_norm=True)
    return one, copy.deepcopy(one)


def loss(network, inputs):
    return network(inputs).square().sum()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_adam(monkeypatch, fused, clip):
    if not fused:
        monkeypatch.delattr(torch, "_fused_adam_")
    one, other = networks()
    flat = Flat(one, 0.01)
    adam = torch.optim.Adam(other.parameters(), 0.01)
    for index in range(5):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
        norm = flat.step(loss(one, inputs), clip=clip)
        adam.zero_grad()
        loss(other, inputs).backward()
        if clip is not None:
            assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(other.parameters(), clip)), rel=1e-5)
        adam.step()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_parameters_are_views_of_the_vector():
    one, _ = networks()
    flat = Flat(one, 0.01)
    before = one(torch.ones(1, 3)).clone()
    flat.values.zero_()
    assert not one(torch.ones(1, 3)).any()
    assert before.any()
    assert all(
        parameter.untyped_storage().data_ptr() == flat.values.untyped_storage().data_ptr()
        for parameter in one.parameters()
    )


def test_a_loss_of_the_actor_leaves_the_critic_alone():
    critic, _ = networks()
    flat = Flat(critic, 0.01)
    actor = torch.nn.Linear(3, 3)
    policy = Flat(actor, 0.01)
    before, own = flat.values.clone(), policy.values.clone()
    policy.step(loss(critic, actor(torch.ones(2, 3))))
    assert torch.equal(flat.values, before)
    assert not torch.equal(policy.values, own)
    assert all(parameter.grad is None for parameter in critic.parameters())


@pytest.mark.parametrize("rate", [0.005, 1.0])
def test_a_target_follows(rate):
    one, _ = networks()
    flat = Flat(one, 0.01)
    target = Target(flat, copy.deepcopy(one))
    start = target.values.clone()
    flat.step(loss(one, torch.ones(2, 3)))
    target.follow(rate)
    torch.testing.assert_close(target.values, (1 - rate) * start + rate * flat.values)
    assert (target.network(torch.ones(1, 3)) == one(torch.ones(1, 3))).all() == (rate == 1.0)


def test_state_comes_back_to_the_bit():
    one, other = networks()
    a, b = Flat(one, 0.01), Flat(other, 0.01)
    a.step(loss(one, torch.ones(2, 3)))
    b.load_state_dict(a.state_dict())
    for flat, network in ((a, one), (b, other)):
        flat.step(loss(network, torch.ones(2, 3)))
    assert torch.equal(a.values, b.values)
