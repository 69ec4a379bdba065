"""Card: control_theory.md, pmoe, on the host of ppo. Row order, padding, micro-batches: tests/methods/test_contract.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer, UsageError, make
from upslope.collect import seeded
from upslope.control.ranking import RankingUpdater
from upslope.parts.routing import Frequency
from upslope.policies.distributions import Mixture
from upslope.testing import check_resume

QUIET = {"eval": {"episodes": 0}, "threads": 1, "sinks": [], "self_checks": False}
SMALL = {"rollout.steps": 64, "minibatches": 4, "epochs": 2, "task": "Pendulum-v1", "steps": 4, **QUIET}


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_is_ppos_and_the_frequency_loss():
    """w = (.7, .3), k* = 2: .49 beside ppo's, with gradient (.7, -.7) to w."""
    w = f64([[[0.7, 0.3]], [[0.5, 0.5]]]).requires_grad_()
    columns = {"logp": f64([[-1.0], [-0.5]]), "old_logp": f64([[-1.1], [-0.4]]), "advantage": f64([1.0, -2.0])}
    batch = Batch(**columns, component_weight=w, best_component=torch.tensor([[1], [0]]))
    plain = make("ppo@continuous", control=None)
    with_router = make("pmoe_ppo@continuous", control=None)
    base, _ = plain.loss(plain.denominators(Batch(**columns)))
    loss, _ = with_router.loss(with_router.denominators(batch))
    assert float((loss - base).detach()) == pytest.approx((0.49 + 0.25) / 2)
    (gradient,) = torch.autograd.grad(loss, w)
    np.testing.assert_allclose(gradient[:, 0], np.array([[0.7, -0.7], [-0.5, 0.5]]) / 2)
    masked = Frequency()(batch.replace(mask=torch.tensor([[True], [False]])))
    assert masked.squeeze(1).tolist() == pytest.approx([0.49, 0.0])


def test_one_component_is_ppo_bit_for_bit():
    with Trainer("pmoe_ppo@continuous", components=1, **SMALL) as one:
        one.train()
    with Trainer("ppo@continuous", **SMALL) as other:
        other.train()
    for name, value in other.parts.policy.state_dict().items():
        assert torch.equal(value, one.parts.policy.state_dict()[name]), name
    for name, value in other.parts.critic.state_dict().items():
        assert torch.equal(value, one.parts.critic.state_dict()[name]), name
    assert one.rows[-1]["ranking/loss"] > 0


def test_ratios_are_of_the_whole_mixture():
    with Trainer("pmoe_ppo@continuous", components=3, **SMALL) as trainer:
        agent = trainer.parts
        found = agent.player.play(seeded(0))
        distribution = agent.policy.distribution(found.played.observation)
    assert isinstance(distribution, Mixture)
    logp = torch.logsumexp(
        distribution.logits.log_softmax(-1) + distribution.components.log_prob(found.played.action.unsqueeze(-2)), -1
    )
    torch.testing.assert_close(found.batch.old_logp, logp.detach())


def test_weights_go_to_the_component_whose_actions_the_network_ranks_highest():
    """Where Q(s, a) = a, that is the component with the highest mean: nothing else moves w."""
    with Trainer("pmoe_ppo@continuous", components=3, **{**SMALL, "lr": 3e-3, "steps": 8}) as trainer:
        updater = trainer.parts.updater
        assert isinstance(updater, RankingUpdater)
        updater.learner.ranking = lambda seen, action: action.squeeze(-1)
        updater.learner.rank = lambda make: type("Taken", (), {"skipped": None, "stats": {}})()
        batch = trainer.parts.player.play(seeded(0))
        before = trainer.parts.policy.distribution(batch.played.observation)
        constant = batch.batch.replace(token_reward=torch.zeros_like(batch.batch.token_reward))
        for step in range(8):
            updater.update(batch.played, constant, trainer.parts.recipe.init(), (0, step))
        after = trainer.parts.policy.distribution(batch.played.observation)
    assert int(before.components.mean.mean((0, 1)).argmax()) == 2
    shares = [one.logits.softmax(-1).mean((0, 1)) for one in (before, after)]
    assert float(shares[1][2]) > float(shares[0][2]) + 0.1


def test_its_network_learns_what_comes_of_an_action():
    with Trainer("pmoe_ppo@continuous", **{**SMALL, "steps": 15, "lr": 3e-3}) as trainer:
        trainer.train()
    losses = [row["ranking/loss"] for row in trainer.rows if "ranking/loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole, resumed = check_resume("pmoe_ppo@continuous", tmp_path, killed=3, checkpoint_every=2, **SMALL)
    one, other = (trainer.parts.updater.learner.ranking.state_dict() for trainer in (whole, resumed))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_discrete_actions_are_refused():
    for components in (1, 3):
        with (
            pytest.raises(UsageError, match="continuous actions"),
            Trainer("pmoe_ppo@continuous", components=components, **{**SMALL, "task": "CartPole-v1"}),
        ):
            pass
