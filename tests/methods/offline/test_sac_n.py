"""Card: offline_imitation.md, sac-n-edac."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def test_card_defaults():
    recipe = make("sac_n")
    assert (recipe.critic.members, recipe.critic.hidden, recipe.ensemble.of) == (10, (256, 256, 256), None)
    assert (recipe.update.first, recipe.update.critic_lr, recipe.targets.rate) == ("actor", 3e-4, 0.005)


def test_target_and_actor_take_the_least_of_all():
    q = torch.arange(10.0, 0.0, -1.0, dtype=torch.float64)[:, None]
    policy = GivenPolicy(torch.zeros(1, 1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64))
    m = minibatch_of([[0.0]], reward=[0.0], q=lambda x: q, target_q=lambda x: q, members=10, policy=policy, alpha=0.2)
    recipe = make("sac_n")
    np.testing.assert_allclose(recipe.target(m), [0.99 * (1.0 - 0.1)])
    assert float(recipe.actor(m)) == pytest.approx(0.1 - 1.0)


def test_two_members_are_sac():
    two = make("sac_n", members=2, first="critic", factor=0.5, **{"policy.log_std_low": -20.0})
    sac = make("sac").replace(policy=two.policy, critic=two.critic)
    one, other = learner_of(two), learner_of(sac)
    for index in range(3):
        one.update(transitions(one.layout, index))
        other.update(transitions(other.layout, index))
    for name in ("policy", "critic"):
        assert torch.equal(one.flats[name].values, other.flats[name].values)


@pytest.mark.parametrize(("members", "least"), [(2, -0.566), (10, -1.538), (50, -2.250)])
def test_the_least_of_n_is_a_penalty_of_so_many_deviations(members, least):
    q = torch.randn(members, 100_000, generator=torch.Generator().manual_seed(0))
    assert float(make("sac_n").ensemble(q).mean()) == pytest.approx(least, abs=0.015)
