"""Card: offline_imitation.md, cql. The gap of discrete actions: tests/actor_critic/test_losses.py."""

import math

import numpy as np
import pytest
import torch

from upslope import diff, make
from upslope.actor_critic.contract import check_actor_critic, learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(scale, logp=(0.4, -0.2), action=((0.3, 0.1), (-0.2, 0.6))):
    """Q_j(s, a) = scale_j times the sum of a, at two states; the policy's actions and log-probs are given."""
    return minibatch_of(
        [[0.5, 0.5], [0.1, -0.3]],
        q=lambda x: torch.stack([scale[0] * x[..., 1:].sum(-1), scale[1] * x[..., 1:].sum(-1)]),
        policy=GivenPolicy(tensor(action), tensor(logp)),
    )


def test_the_penalty_against_numpy_in_value_and_gradient():
    scale = tensor([1.5, -0.7]).requires_grad_()
    part = make("cql", samples=3).penalty
    loss = part(batch(scale))
    (found,) = torch.autograd.grad(loss, scale)

    uniform = (torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1).numpy().reshape(2, 3, 2)
    policy, logp = np.array([[0.3, 0.1], [-0.2, 0.6]]), np.array([0.4, -0.2])
    logged = np.array([[0.5, 0.5], [0.1, -0.3]])

    def expected(s):
        total = 0.0
        for j in range(2):
            for b in range(2):
                cat = [s[j] * uniform[b, k].sum() - 2 * math.log(0.5) for k in range(3)]
                cat += [s[j] * policy[b].sum() - logp[b]] * 6
                total += np.log(np.exp(cat).sum()) - s[j] * logged[b].sum()
        return 10.0 * total / 2

    at = np.array([1.5, -0.7])
    assert float(loss.detach()) == pytest.approx(expected(at), rel=1e-6)
    step = 1e-5
    numeric = [(expected(at + step * e) - expected(at - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(found, numeric, rtol=1e-5)


def test_states_and_samples_are_not_mixed_up():
    """With Q the state's own number the gap is the logarithm of a sum of inverse densities alone."""
    m = minibatch_of(
        [[0.0], [0.0], [0.0]],
        q=lambda x: x[..., 0][None],
        members=1,
        policy=GivenPolicy(tensor([[0.0]] * 3), tensor([0.0, 1.0, 2.0])),
    )
    sampled = make("cql", samples=4).penalty.sampled(m)
    assert sampled.shape == (1, 3, 12)
    state, logp = np.arange(3.0)[:, None], np.arange(3.0)[:, None]
    np.testing.assert_allclose(sampled[0, :, :4], np.broadcast_to(state - math.log(0.5), (3, 4)), rtol=1e-6)
    np.testing.assert_allclose(sampled[0, :, 4:], np.broadcast_to(state - logp, (3, 8)), atol=1e-12)


def test_next_actions_are_drawn_at_the_next_state_and_asked_at_this_one():
    asked = []

    class Recording(GivenPolicy):
        def sample(self, observation, generator=None):
            asked.append(observation[:, 0].tolist())
            return super().sample(observation, generator)

    m = minibatch_of(
        [[0.0], [0.0]], q=lambda x: x[..., 0][None], members=1, policy=Recording(tensor([[0.0]] * 2), tensor([0.0] * 2))
    )
    make("cql", samples=2).penalty(m)
    assert asked == [[0.5, 0.5, 1.5, 1.5], [0.0, 0.0, 1.0, 1.0]]


def test_the_gap_is_clipped():
    gap = make("cql", samples=3, coefficient=1.0).penalty(batch(tensor([1.5, -0.7])))
    low = make("cql", samples=3, coefficient=1.0, highest=0.25).penalty(batch(tensor([1.5, -0.7])))
    assert float(gap) > 1.0
    assert float(low) == pytest.approx(0.5)  # two critics, both at the bound


def test_weight_zero_is_sac_without_entropy_in_the_target():
    cql = make("cql", coefficient=0.0, **{"update.actor_lr": 3e-4})
    sac = make("sac", **{"target.entropy": False, "factor": 1.0}).replace(critic=cql.critic)
    one, other = learner_of(cql), learner_of(sac)
    rows = transitions(one.layout)
    one.update(rows)
    other.update(rows)
    torch.testing.assert_close(one.flats["critic"].values, other.flats["critic"].values)
    assert {line for line in diff("cql", "sac").splitlines() if not line.startswith(" ")} == {
        "critic", "target", "regression", "penalty", "update",
    }  # fmt: skip


def test_it_lowers_values_of_actions_that_the_log_lacks():
    above = {}
    for name, settings in (("cql", {"coefficient": 10.0}), ("cql", {"coefficient": 0.0})):
        learner = learner_of(make(name, **{"critic.hidden": [32], "update.critic_lr": 3e-3}, **settings))
        rows = transitions(learner.layout, rows=64)
        first, last = learner.columns["action"]
        rows[:, first:last] = 0.1 * rows[:, first:last]  # the log has small actions alone
        for _ in range(60):
            learner.update(rows)
        m = learner.minibatch(rows)
        far = m.q(m.observation, torch.rand(64, 2, generator=torch.Generator().manual_seed(1)).round() * 2 - 1)
        above[settings["coefficient"]] = float((far.mean() - m.logged_q().mean()).detach())
    assert above[10.0] < above[0.0] - 0.5


def dual(target, **settings):
    return make("cql", samples=3, **{"penalty.target_gap": target, **settings}).penalty


def test_the_lagrange_form_in_value_and_gradient():
    """alpha' = e at first; the term is alpha' alpha_cql sum_j (gap_j - target), and x descends -1/2 of it."""
    scale = tensor([1.5, -0.7]).requires_grad_()
    plain = make("cql", samples=3, coefficient=1.0).penalty(batch(scale))
    (by_plain,) = torch.autograd.grad(plain, scale)
    part = dual(0.8, coefficient=5.0, target_lr=0.01)
    loss, state = part(batch(scale), part.init())
    (by_dual,) = torch.autograd.grad(loss, scale)
    expected = math.e * 5.0 * (float(plain.detach()) - 2 * 0.8)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(by_dual, math.e * 5.0 * by_plain)

    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], 0.01)
    (-0.5 * x.exp() * 5.0 * (float(plain.detach()) - 1.6)).backward()
    optimizer.step()
    assert state["x"] == pytest.approx(float(x.detach()))
    assert state["x"] > 1.0  # the gap is above its target: the penalty grows


def test_the_multiplier_falls_below_the_target_and_is_bounded():
    high = dual(100.0)
    _, state = high(batch(tensor([1.5, -0.7])), high.init())
    assert state["x"] < 1.0
    part = dual(0.8, coefficient=1.0)
    loss, state = part(batch(tensor([1.5, -0.7])), {**part.init(), "x": 50.0})
    gap = make("cql", samples=3, coefficient=1.0).penalty(batch(tensor([1.5, -0.7])))
    assert float(loss) == pytest.approx(1e6 * (float(gap) - 1.6))
    assert state["x"] == 50.0


def test_a_multiplier_of_one_and_no_target_is_the_plain_form():
    part = dual(0.0, coefficient=2.0)
    loss, _ = part(batch(tensor([1.5, -0.7])), {**part.init(), "x": 0.0})
    assert float(loss) == pytest.approx(
        float(make("cql", samples=3, coefficient=2.0).penalty(batch(tensor([1.5, -0.7]))))
    )


@pytest.mark.parametrize("method", ["cql", "cal_ql"])
def test_the_multiplier_is_learned_saved_and_restored(method):
    recipe = make(method, samples=2, **{"penalty.target_gap": 0.8})
    check_actor_critic(recipe)
    learner = learner_of(recipe)
    for index in range(3):
        learner.update(transitions(learner.layout, index), watch=True)
    assert learner.state["penalty"]["steps"] == 3
    assert learner.state_dict()["parts"]["penalty"]["x"] != 1.0
    assert "alpha' 10 sum over j" in "\n".join(recipe.objective())
