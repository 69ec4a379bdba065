"""The batched ensemble is what its members would be one by one."""

import pytest
import torch

from upslope import UsageError
from upslope.actor_critic.networks import EnsembleNetwork


def reference(network, member, inputs):
    """One member, layer by layer, by torch's own functions."""
    hidden = inputs
    for index, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        hidden = torch.nn.functional.linear(hidden, weight[member].T, bias[member, 0])
        if index < len(network.weights) - 1:
            if len(network.gains):
                gain, shift = network.gains[index][member, 0], network.shifts[index][member, 0]
                hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], gain, shift)
            hidden = network.activation(hidden)
    return hidden[:, 0]


def random_network(**settings):
    torch.manual_seed(0)
    network = EnsembleNetwork(5, 4, (7, 6), **settings).double()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)
    network._layers = list(zip(network.weights, network.biases, strict=True))
    network._norms = list(zip(network.gains, network.shifts, strict=True))
    return network


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_members_one_by_one(layer_norm, activation):
    network = random_network(layer_norm=layer_norm, activation=activation)
    inputs = torch.randn(3, 5, dtype=torch.float64)
    together = network(inputs)
    assert together.shape == (4, 3)
    for member in range(4):
        torch.testing.assert_close(together[member], reference(network, member, inputs))
    torch.testing.assert_close(network(inputs, members=(2, 0)), together[[2, 0]])
    torch.testing.assert_close(network(inputs.expand(4, 3, 5)), together)


def test_members_that_are_not_asked_get_no_gradient():
    network = random_network()
    network(torch.randn(3, 5, dtype=torch.float64), members=(1,)).sum().backward()
    for weight in network.weights:
        assert weight.grad[1].abs().sum() > 0
        assert not weight.grad[[0, 2, 3]].any()


def test_dropout_keeps_the_mean_and_acts_only_with_a_generator():
    network = EnsembleNetwork(5, 2, (400, 1), dropout=0.25).double()
    network._layers[-1][0].data.fill_(1.0)
    inputs = torch.randn(2, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(network(inputs), network(inputs))
    one, other = network(inputs, generator=generator), network(inputs, generator=generator)
    assert not torch.equal(one, other)
    wide = EnsembleNetwork(5, 1, (5000,), dropout=0.25).double()
    mean = torch.stack([wide(inputs, generator=generator)[0] for _ in range(200)]).mean(0)
    torch.testing.assert_close(mean, wide(inputs)[0], atol=0.02, rtol=0.05)


def test_layer_norm_bounds_what_is_extrapolated():
    network = EnsembleNetwork(5, 1, (64, 64), layer_norm=True)
    far = 1e6 * torch.randn(100, 5)
    bound = network.weights[-1][0, :, 0].norm() * 64**0.5 + network.biases[-1].abs().sum()
    assert (network(far).abs() <= bound).all()


def test_weights_start_as_those_of_linear_layers():
    torch.manual_seed(0)
    network = EnsembleNetwork(100, 50, (30,))
    for weight, bias in zip(network.weights, network.biases, strict=True):
        bound = weight.shape[1] ** -0.5
        assert weight.abs().max() <= bound
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert bias.abs().max() <= bound


def test_an_empty_ensemble_is_refused():
    with pytest.raises(UsageError, match="0 networks"):
        EnsembleNetwork(5, 0)
