"""Card: offline_imitation.md, cal-ql. Playing on after a log: tests/actor_critic/test_log_hooks.py."""

import math

import numpy as np
import pytest
import torch

from upslope import diff, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(scale, earned, logp=(0.4, -0.2), action=((0.3, 0.1), (-0.2, 0.6))):
    """Q_j(s, a) = scale_j times the sum of a, at two states with these returns to go."""
    return minibatch_of(
        [[0.5, 0.5], [0.1, -0.3]],
        q=lambda x: torch.stack([scale[0] * x[..., 1:].sum(-1), scale[1] * x[..., 1:].sum(-1)]),
        policy=GivenPolicy(tensor(action), tensor(logp)),
        return_to_go=earned,
    )


def test_card_numbers():
    """Two states in which the policy's action has Q = 0.2 and 3, with G = 1: they count as 1 and 3, uniform ones as they are."""
    q = tensor([0.2, 3.0])
    m = minibatch_of(
        [[0.0], [0.0]],
        q=lambda x: torch.where(x[:, 1] == 0.25, q[x[:, 0].long()], -5.0)[None],
        members=1,
        policy=GivenPolicy(tensor([[0.25], [0.25]]), tensor([0.0, 0.0])),
        return_to_go=[1.0, 1.0],
    )
    sampled = make("cal_ql", samples=2).penalty.sampled(m)[0]
    np.testing.assert_allclose(sampled[:, 2:], [[1.0] * 4, [3.0] * 4])
    np.testing.assert_allclose(sampled[:, :2], -5.0 + math.log(2))


@pytest.mark.parametrize("earned", [(0.5, -0.4), (-9.0, -9.0), (9.0, 9.0)])
def test_the_penalty_against_numpy_in_value_and_gradient(earned):
    scale = tensor([1.5, -0.7]).requires_grad_()
    loss = make("cal_ql", samples=3).penalty(batch(scale, earned))
    (found,) = torch.autograd.grad(loss, scale)

    uniform = (torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1).numpy().reshape(2, 3, 2)
    policy, logp = np.array([[0.3, 0.1], [-0.2, 0.6]]), np.array([0.4, -0.2])
    logged = np.array([[0.5, 0.5], [0.1, -0.3]])

    def expected(s):
        total = 0.0
        for j in range(2):
            for b in range(2):
                cat = [s[j] * uniform[b, k].sum() - 2 * math.log(0.5) for k in range(3)]
                cat += [max(s[j] * policy[b].sum(), earned[b]) - logp[b]] * 6
                total += np.log(np.exp(cat).sum()) - s[j] * logged[b].sum()
        return 10.0 * total / 2

    at = np.array([1.5, -0.7])
    assert float(loss.detach()) == pytest.approx(expected(at), rel=1e-6)
    step = 1e-5
    numeric = [(expected(at + step * e) - expected(at - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(found, numeric, rtol=1e-4)


def test_no_gradient_goes_through_values_below_the_return():
    q = tensor([0.2, 3.0]).requires_grad_()
    m = minibatch_of(
        [[0.0], [0.0]],
        q=lambda x: torch.where(x[:, 1] == 0.25, q[x[:, 0].long()], -5.0)[None],
        members=1,
        policy=GivenPolicy(tensor([[0.25], [0.25]]), tensor([0.0, 0.0])),
        return_to_go=[1.0, 1.0],
    )
    (gradient,) = torch.autograd.grad(make("cal_ql", samples=2).penalty.sampled(m).sum(), q)
    np.testing.assert_allclose(gradient, [0.0, 4.0])


def test_without_returns_it_is_cql():
    """G = -infinity: the same updates."""
    one, other = learner_of(make("cal_ql")), learner_of(make("cql"), extras=("return_to_go",))
    place = one.columns["return_to_go"][0]
    for index in range(2):
        rows = transitions(one.layout, index)
        rows[:, place] = -math.inf
        one.update(rows)
        other.update(rows)
    for name, flat in one.flats.items():
        assert torch.equal(flat.values, other.flats[name].values)
    rows[:, place] = 100.0
    one.update(rows)
    other.update(rows)
    assert not torch.equal(one.flats["critic"].values, other.flats["critic"].values)


def test_what_differs_from_cql():
    found = diff("cal_ql", "cql")
    assert [line for line in found.splitlines() if not line.startswith(" ")] == ["data", "penalty"]
    assert make("cal_ql", log_share=None, penalty="cql").parts() == make("cql").parts()
    assert make("calql").parts() == make("cal_ql").parts()
