"""Card: preference_distill_hybrid.md, salsa."""

import pytest
import torch

from upslope import Trainer, make
from upslope.policies.language import LanguagePolicy
from upslope.policies.soup import average_models
from upslope.testing import batch_of, value_and_gradient


def plain_ppo(beta):
    return make("rlhf_ppo", beta=beta)


def test_a_soup_of_the_first_model_alone_is_rlhf_ppo():
    batch = batch_of([[1, 0, 0.5], [0, 1]], seed=2)
    same = batch.replace(teacher_logp=batch.ref_logp, ref_logp=None)
    salsa, ppo = make("salsa"), plain_ppo(0.02)
    torch.testing.assert_close(salsa.prepare(same).advantage, ppo.prepare(batch).advantage)
    one, expected = value_and_gradient(salsa, salsa.prepare(same)), value_and_gradient(ppo, ppo.prepare(batch))
    torch.testing.assert_close(one, expected)
    assert "ref_logp" not in salsa.needs


def test_rewards_of_tokens():
    batch = batch_of([[1.0, 0.0]], lengths=[2, 3], seed=1)
    part = make("salsa", beta=0.5).reward
    expected = -0.5 * (batch.old_logp - batch.teacher_logp) * batch.mask
    expected[0, 1] += 1.0
    torch.testing.assert_close(part(batch), expected)
    assert "soup_logp" in part.describe()


def test_it_trains_from_one_model_towards_a_reward_near_the_soup(toy, tmp_path):
    """The KL from the soup is not 0 before the first update, since the policy begins as one of its ingredients."""
    policy = LanguagePolicy.load(toy)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    policy.save(tmp_path / "second")
    soup = average_models([toy, tmp_path / "second"], tmp_path / "soup")
    settings = {
        "max_tokens": 6,
        "eval": {"prompts": 2, "samples": 1},
        "prompts_per_step": 2,
        "threads": 1,
        "steps": 1,
        "epochs": 1,
    }
    with Trainer("salsa", model=toy, task="chain_sum", teacher=str(soup), **settings) as trainer:
        assert trainer.parts.actors.reference is None
        (row,) = trainer.train().rows[1:]
    assert row["kl"] > 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_only_the_penalty_differs(beta):
    batch = batch_of([[1, 0, 0.5], [0, 1]], seed=2)
    salsa, ppo = make("salsa", beta=beta), plain_ppo(beta)
    same = torch.equal(salsa.prepare(batch).advantage, ppo.prepare(batch).advantage)
    assert same is (beta == 0)
