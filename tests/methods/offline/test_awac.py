"""Card: offline_imitation.md, awac."""

import numpy as np
import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_advantage_over_the_policys_own_action_and_weights():
    m = minibatch_of(
        [[-0.8], [0.2], [0.7], [2.2]],
        q=lambda x: torch.stack([x[:, 1], x[:, 1] + 5.0]),
        policy=GivenPolicy(tensor([[0.2]] * 4), tensor([0.0] * 4)),
    )
    recipe = make("awac", beta=3.0)  # lambda = 1/3
    advantage = recipe.advantage(m)
    np.testing.assert_allclose(advantage, [-1.0, 0.0, 0.5, 2.0], atol=1e-12)
    np.testing.assert_allclose(recipe.weight(advantage), [0.049787, 1.0, 4.481689, 100.0], atol=5e-7)
    assert make("awac").weight.beta == 1.0


def test_no_entropy_in_the_target():
    m = minibatch_of(
        [[0.0]],
        reward=[1.0],
        target_q=lambda x: tensor([[2.0], [3.0]]),
        policy=GivenPolicy(tensor([[0.0]]), tensor([7.0])),
    )
    np.testing.assert_allclose(make("awac").target(m), [2.98])


def test_with_iqls_v_it_is_iqls_extraction():
    """The stages advantage, value and target of iql in awac give iql's actor at beta = 1 / lambda."""
    mixed = make("awac", advantage="iql", value="iql", target="iql", regression="iql", update="iql", beta=3.0)
    one, other = learner_of(mixed), learner_of(make("iql"))
    for index in range(3):
        one.update(transitions(one.layout, index))
        other.update(transitions(other.layout, index))
    assert torch.equal(one.flats["policy"].values, other.flats["policy"].values)


def test_beta_zero_is_cloning_by_likelihood():
    awac = make("awac", beta=0.0)
    one, other = learner_of(awac), learner_of(make("bc", actor="iql", policy=awac.policy))
    for index in range(3):
        one.update(transitions(one.layout, index))
        other.update(transitions(other.layout, index))
    torch.testing.assert_close(one.flats["policy"].values, other.flats["policy"].values)
