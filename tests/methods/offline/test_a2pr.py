"""Card: offline_imitation.md, a2pr."""

import numpy as np
import pytest
import torch

from upslope import UsageError, diff, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of
from upslope.methods.offline.a2pr import ActionVAE


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def card(q_data, q_rec):
    """The loss beyond -lambda Q for pi = 0.2, a = 0.8, rec = 0.5, V = 1."""
    table = {0.2: 4.0, 0.8: q_data, 0.5: q_rec}
    m = minibatch_of(
        [[0.8]],
        q=lambda x: tensor([[table[round(float(a), 6)] for a in x[:, 1].detach()], [99.0] * len(x)]),
        policy=GivenPolicy(tensor([[0.2]]), tensor([0.0])),
        value=lambda x: tensor([[1.0]]),
    )
    m.networks.proposer = lambda observation, action, generator: (action.detach() + 0.3, None, None)
    recipe = make("a2pr")
    return float(recipe.behavior(m, recipe.actor(m))) + 2.5


@pytest.mark.parametrize(("q_data", "q_rec", "loss"), [(1.5, 2.0, 0.09), (0.5, 0.7, 0.0), (2.0, 1.2, 0.36)])
def test_card_numbers(q_data, q_rec, loss):
    assert card(q_data, q_rec) == pytest.approx(loss)


def test_equal_advantages_take_the_proposal_and_v_itself_counts_for_it_alone():
    assert card(2.0, 2.0) == pytest.approx(0.09)
    assert card(0.5, 1.0) == pytest.approx(0.09)  # A_rec = 0: kept
    assert card(1.0, 0.9) == pytest.approx(0.0)  # A_log = 0: not kept


def smooth(scale, action, value, **settings):
    """(loss, gradient to pi) with Q_1(s, a) = -scale (sum over A of (a - 0.4)^2) + s, rec = 0.7 pi - 0.1."""
    pi = tensor(scale).requires_grad_()
    m = minibatch_of(
        action,
        q=lambda x: torch.stack([x[:, 0] - (x[:, 1:] - 0.4).square().sum(-1), 0.0 * x[:, 0]]),
        policy=GivenPolicy(pi, tensor([0.0] * len(action))),
        value=lambda x: tensor([value]),
    )
    m.networks.proposer = lambda observation, a, generator: (0.7 * a - 0.1, None, None)
    recipe = make("a2pr", **settings)
    loss = recipe.behavior(m, recipe.actor(m))
    return float(loss.detach()), torch.autograd.grad(loss, pi)[0].numpy()


def test_the_loss_against_numpy_in_value_and_gradient():
    rng = np.random.default_rng(4)
    pi, action = rng.uniform(-1, 1, (7, 2)), rng.uniform(-1, 1, (7, 2))
    value = (np.arange(7) - rng.uniform(0, 1.2, 7)).tolist()

    def q(a):
        return np.arange(7) - ((a - 0.4) ** 2).sum(-1)

    scale = 2.5 / np.abs(q(pi)).mean()

    def expected(x):
        rec = 0.7 * x - 0.1
        by_rec, by_log = q(rec) - value, q(action) - value
        target = np.where((by_rec >= by_log)[:, None], rec, action)
        kept = 0.4 * ((by_rec >= 0) | (by_log > 0))
        return -scale * q(x).mean() + (kept[:, None] * (x - target) ** 2).mean()

    loss, gradient = smooth(pi.tolist(), action.tolist(), value, mask=0.4)
    assert loss == pytest.approx(expected(pi))
    step, numeric = 1e-6, np.zeros_like(pi)
    for index in np.ndindex(*pi.shape):
        move = np.zeros_like(pi)
        move[index] = step
        numeric[index] = (expected(pi + move) - expected(pi - move)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)
    rec = 0.7 * pi - 0.1
    chosen = q(rec) >= q(action)
    assert chosen.any()
    assert not chosen.all()


def test_with_the_logged_action_as_proposal_it_is_td3_bc():
    """rec = a and k = 1 (V below everything): the same loss and gradient."""
    found = []
    for method in ("a2pr", "td3_bc"):
        pi = tensor([[0.3, -0.2], [0.9, 0.1]]).requires_grad_()
        action = tensor([[0.5, 0.5], [-0.1, 0.2]])
        m = minibatch_of(
            action,
            q=lambda x: torch.stack([x[:, 1] * x[:, 2] + x[:, 1], x[:, 1]]),
            policy=GivenPolicy(pi, tensor([0.0, 0.0])),
            value=lambda x: tensor([[-100.0] * 2]),
        )
        m.networks.proposer = lambda observation, a, generator, logged=action: (logged, None, None)
        recipe = make(method)
        loss = recipe.behavior(m, recipe.actor(m))
        found.append((float(loss.detach()), torch.autograd.grad(loss, pi)[0]))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_v_regresses_on_the_lower_of_two_targets():
    v = tensor([0.3, 0.1, -0.2]).requires_grad_()
    m = minibatch_of(
        [[0.0]] * 3,
        reward=[1.0, 2.0, 3.0],
        terminated=[0.0, 0.0, 1.0],
        q=lambda x: torch.stack([x[:, 1] + x[:, 0], 2 * x[:, 1] + x[:, 0]]),  # s' is 0.5, 1.5, 2.5
        value=lambda x: v[None],
    )
    m.target, m.target_action = tensor([0.7, 9.0, 3.0]), tensor([[0.5], [-0.5], [0.9]])
    loss = make("a2pr").value(m)
    y2 = np.array([1 + 0.99 * (0.5 + 0.5), 2 + 0.99 * (1.5 - 1.0), 3.0])
    expected = np.array([0.3, 0.1, -0.2]) - np.minimum([0.7, 9.0, 3.0], y2)
    assert float(loss.detach()) == pytest.approx((expected**2).mean())
    np.testing.assert_allclose(torch.autograd.grad(loss, v)[0], 2 * expected / 3)


def test_the_vaes_loss_against_numpy():
    torch.manual_seed(0)
    network = ActionVAE(1, 2, 4, (8,)).double()
    action = [[0.4, -0.3], [0.1, 0.9], [-0.7, 0.2]]
    m = minibatch_of(action, q=lambda x: tensor([[2.0, 0.0, 2.0], [9.0] * 3]), value=lambda x: tensor([[1.0] * 3]))
    m.networks.proposer = network
    loss = make("a2pr", **{"proposer.weight": 1.5}).proposer(m)

    def layers(part, x):
        for layer in part:
            x = (
                np.maximum(x, 0)
                if not hasattr(layer, "weight")
                else x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            )
        return x

    a, s = np.array(action), np.arange(3.0)[:, None]
    out = layers(network.encoder, np.concatenate([s, a], 1))
    mean, sd = out[:, :4], np.exp(out[:, 4:].clip(-4, 15))
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).numpy()
    rec = np.tanh(layers(network.decoder, np.concatenate([s, mean + sd * noise], 1)))
    good = np.array([1.0, 0.0, 1.0])[:, None]
    kl = -0.5 * (1 + np.log(sd**2) - mean**2 - sd**2).mean()
    assert float(loss.detach()) == pytest.approx((1.5 * good * (rec - a) ** 2).mean() + 0.5 * kl, rel=1e-6)


def test_an_update_goes_critic_then_v_then_vae_then_actor():
    order = []
    learner = learner_of(make("a2pr"))
    for name, flat in learner.flats.items():
        step = flat.step
        flat.step = lambda *words, name=name, step=step, **settings: (order.append(name), step(*words, **settings))[1]
    for index in range(2):
        learner.update(transitions(learner.layout, index))
    assert order == ["critic", "value", "proposer", "critic", "value", "proposer", "policy"]
    assert learner.flats["proposer"].lr == 1e-3


def test_what_differs_from_td3_bc():
    found = diff("a2pr", "td3_bc")
    assert [line for line in found.splitlines() if not line.startswith(" ")] == ["value", "proposer", "behavior"]
    plain = make("a2pr").replace(value=None, proposer=None, behavior=make("td3_bc").behavior)
    assert plain.parts() == make("td3_bc").parts()
    with pytest.raises(UsageError, match="no part for proposer"):
        make("a2pr", proposer=None)
    with pytest.raises(UsageError, match="no part for value"):
        make("a2pr", value=None)
