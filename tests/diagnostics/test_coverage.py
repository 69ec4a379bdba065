"""Cards: preference_distill_hybrid.md, hypo-online-kl (coverage theory) and online-offline-gap."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.diagnostics.coverage import (
    blind_directions,
    chi_square,
    concentrability,
    concentrability_in_ball,
    covered_mass,
    largest_probability,
)

DRAW = np.random.default_rng(0)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_of_a_policy_by_hand():
    policy, data = row(0.5, 0.25, 0.25, 0.0), row(0.25, 0.5, 0.25, 0.0)
    assert float(concentrability(policy, data)) == 2
    assert float(chi_square(policy, data)) == pytest.approx(0.5 * 2 + 0.25 * 0.5 + 0.25 - 1)
    assert float(covered_mass(policy, row(1, 0, 0, 0))) == 0.5
    assert float(concentrability(policy, row(1, 0, 0, 0))) == np.inf
    both = concentrability(torch.stack([policy, data]), torch.stack([data, data]))
    assert both.tolist() == [2, 1]


def test_chi_square_is_the_variance_of_importance_weights():
    policy, data = (torch.tensor(x) for x in DRAW.dirichlet(np.ones(6), 2))
    weights = (policy / data).numpy()
    assert float(chi_square(policy, data)) == pytest.approx(data.numpy() @ weights**2 - (data.numpy() @ weights) ** 2)


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.5, 3.0])
def test_no_policy_in_the_ball_exceeds_the_bound_and_one_reaches_it(radius):
    ref = torch.tensor(DRAW.dirichlet(np.ones(5)))
    bound = largest_probability(ref, radius)
    for y in range(5):
        p = float(bound[y])
        extreme = ref * (1 - p) / (1 - ref[y])
        extreme[y] = p
        kl = float(torch.special.xlogy(extreme, extreme / ref).sum())
        assert kl <= radius + 1e-9
        assert p == 1 or kl == pytest.approx(radius, abs=1e-9)
    others = torch.tensor(DRAW.dirichlet(np.ones(5) * DRAW.uniform(0.2, 5), 4000))
    mixed = others * DRAW.random((4000, 1)) + ref * (1 - DRAW.random((4000, 1)))
    mixed /= mixed.sum(1, keepdim=True)
    inside = mixed[(mixed * (mixed / ref).log()).sum(1) <= radius]
    assert not len(inside) or (inside <= bound + 1e-9).all()
    assert radius == 0 or len(inside) > 10


def test_local_coverage_grows_to_the_global_one():
    ref = row(0.6, 0.3, 0.1)
    found = [float(concentrability_in_ball(ref, ref, radius)) for radius in (0.0, 0.1, 1.0, 10.0)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1)
    assert found[-1] == pytest.approx(10), "1 / min ref"
    assert float(concentrability_in_ball(row(0.6, 0.4, 0.0), ref, 0.01)) == np.inf


def test_ball_of_negative_radius():
    with pytest.raises(UsageError, match="radius"):
        largest_probability(row(0.5, 0.5), -1.0)


def test_components_of_pairs():
    assert blind_directions(torch.tensor([0, 3, 1]), torch.tensor([1, 4, 2]), 6).tolist() == [0, 0, 0, 1, 1, 2]
    assert blind_directions(torch.tensor([4, 3, 2, 1]), torch.tensor([3, 2, 1, 0]), 5).tolist() == [0] * 5


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "slic_hinge@trl"])
def test_offline_losses_do_not_see_a_component_move_and_hypo_does(name):
    """Four arms, pairs of the first two only: moving all mass off them changes no loss, and the KL without bound."""
    ref = row(0.4, 0.3, 0.2, 0.1).log()
    first, second = torch.tensor([0, 0]), torch.tensor([1, 1])
    component = blind_directions(first, second, 4)
    arms = torch.stack([first, second], 1).flatten()
    rows = {"ref_logp": ref[arms, None], "label": [1.0, 0.0, 0.0, 1.0], "group": [0, 0, 1, 1]}
    losses, kls = [], []
    for shift in (0.0, 5.0, 50.0):
        logp = (ref + row(0.3, 0, 0, 0) + shift * (component == component[2])).log_softmax(0)
        losses.append(float(make(name)(Batch(logp=logp[arms, None], **rows))[0]))
        kls.append(float(logp.exp() @ (logp - ref)))
    assert losses == pytest.approx([losses[0]] * 3)
    assert kls[0] < 0.1
    assert kls[-1] == pytest.approx(-np.log(0.2), abs=1e-6), "all of it on one arm"


def test_a_term_on_the_policys_own_samples_sees_it():
    """The KL that HyPO adds: its gradient pushes the mass back."""
    ref = row(0.4, 0.3, 0.2, 0.1).log()
    theta = (ref + row(0, 0, 5, 0)).requires_grad_()
    logp = theta.log_softmax(0)
    (logp.exp() @ (logp - ref)).backward()
    assert theta.grad[2] > 0.01
    assert (theta.grad[[0, 1, 3]] < 0).all()
