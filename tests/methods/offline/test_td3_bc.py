"""Card: offline_imitation.md, td3-bc."""

import pytest
import torch

from upslope import diff, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def actor(method, q, apart, **settings):
    """The actor's loss with these Q(s, pi(s)) and pi(s) - a, and its gradients to both."""
    value, action = tensor(q).requires_grad_(), tensor([[x] for x in apart]).requires_grad_()
    m = minibatch_of(
        [[0.0]] * len(apart),
        q=lambda x: value + 0.0 * x[:, -1].sum(),
        members=1,
        policy=GivenPolicy(action, tensor([0.0] * len(apart))),
    )
    recipe = make(method, **settings)
    loss = recipe.actor(m)
    loss = recipe.behavior(m, loss) if recipe.behavior is not None else loss
    return float(loss), *torch.autograd.grad(loss, [value, action])


def q_of(values):
    return [values, [100.0] * len(values)]  # the second critic is not asked


def test_card_numbers_in_value_and_gradient():
    loss, by_q, by_action = actor("td3_bc", q_of([2.0, -4.0]), [0.5, 0.1])
    assert loss == pytest.approx(0.963333, abs=5e-7)
    torch.testing.assert_close(by_q[0], tensor([-0.833333 / 2] * 2), atol=5e-7, rtol=0)
    assert not by_q[1].any()
    torch.testing.assert_close(by_action[:, 0], tensor([0.5, 0.1]))  # 2 (pi - a) / B


def test_rewards_times_ten_change_nothing():
    one, _, by_one = actor("td3_bc", q_of([2.0, -4.0]), [0.5, 0.1])
    ten, by_q, by_ten = actor("td3_bc", q_of([20.0, -40.0]), [0.5, 0.1])
    assert one == pytest.approx(ten)
    torch.testing.assert_close(by_q[0], tensor([-0.083333 / 2] * 2), atol=5e-7, rtol=0)
    torch.testing.assert_close(by_one, by_ten)


def test_it_is_td3_with_one_more_term():
    assert diff("td3_bc", "td3").splitlines() == [
        "behavior",
        "  td3_bc: ScaledCloning(alpha=2.5, reduce_actions='mean')",
        "  td3: None",
    ]


def test_a_small_alpha_is_cloning_and_a_large_one_td3():
    few = {"alpha": 1e-12}
    loss, by_q, by_action = actor("td3_bc", q_of([2.0, -4.0]), [0.5, 0.1], **few)
    assert loss == pytest.approx((0.25 + 0.01) / 2)
    assert by_q.abs().max() < 1e-9
    loss, by_q, by_action = actor("td3_bc", q_of([2.0, -4.0]), [0.5, 0.1], alpha=1e12)
    _, by_plain, _ = actor("td3", q_of([2.0, -4.0]), [0.5, 0.1])
    torch.testing.assert_close(by_q / by_q.norm(), by_plain / by_plain.norm())
    assert by_action.norm() / by_q.norm() < 1e-9


@pytest.mark.parametrize(("alpha", "limit"), [(1e-12, "bc"), (1e12, "td3")])
def test_training_in_the_limits(alpha, limit):
    """Adam does not see the loss's scale: a few updates of the actor are those of td3, or of bc with every second step."""
    one, other = learner_of(make("td3_bc", alpha=alpha)), learner_of(make(limit))
    start = one.flats["policy"].values.clone()
    assert torch.equal(start, other.flats["policy"].values)
    for index in range(2):
        one.update(transitions(one.layout, index))
    other.update(transitions(other.layout, 1)) if limit == "bc" else [
        other.update(transitions(other.layout, index)) for index in range(2)
    ]
    step, expected = one.flats["policy"].values - start, other.flats["policy"].values - start
    assert torch.nn.functional.cosine_similarity(step, expected, 0) > 0.999


def test_card_defaults():
    recipe = make("td3_bc")
    assert (recipe.behavior.alpha, recipe.behavior.reduce_actions, recipe.data.standardize) == (2.5, "mean", True)
