"""Card: preference_distill_hybrid.md, self-rewarding-ppo, and line 7 of its cross-identities."""

import numpy as np
import torch

from upslope import Batch, make
from upslope.testing import batch_of, value_and_gradient

PT, SFT, BETA = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1]), 0.5
OPTIMUM = [0.726661, 0.252313, 0.021026]


def columns(**chances):
    return {name: torch.tensor(value).double().log() for name, value in chances.items()}


def test_card_reward_of_two_tokens():
    made = columns(ref_logp=[[0.6, 0.5]], teacher_logp=[[0.3, 0.5]], logp=[[0.4, 0.4]])
    batch = make("self_rewarding_ppo", beta=0.0).prepare(
        Batch(**made, old_logp=made["logp"], old_value=torch.zeros(1, 2).double())
    )
    np.testing.assert_allclose(batch.reward, [np.log(2)])
    np.testing.assert_allclose(batch.token_reward, [[0, np.log(2)]])


def test_equal_models_give_no_reward_and_the_tasks_is_not_read():
    batch = batch_of([[1, 0], [0, 5]])
    recipe = make("self_rewarding_ppo")
    assert not recipe.prepare(batch.replace(teacher_logp=batch.ref_logp)).reward.any()
    one, other = (value_and_gradient(recipe, recipe.prepare(batch.replace(reward=r))) for r in ([1.0] * 4, [0.0] * 4))
    torch.testing.assert_close(one, other)
    assert "reward" not in recipe.needs


def test_closed_form_equals_distillation_with_extrapolation():
    tilted = SFT * (SFT / PT) ** (1 / BETA)
    np.testing.assert_allclose(tilted / tilted.sum(), OPTIMUM, atol=1e-6)
    extrapolation = 1 + 1 / BETA
    other = PT ** (1 - extrapolation) * SFT**extrapolation
    np.testing.assert_allclose(other / other.sum(), OPTIMUM, atol=1e-6)


def bandit_gradient(policy):
    """The expected gradient on the logits: all three arms, each weighed by its probability."""
    logits = torch.tensor(policy).double().log().requires_grad_()
    column = logits.log_softmax(-1).unsqueeze(1)
    made = columns(ref_logp=SFT[:, None], teacher_logp=PT[:, None])
    batch = Batch(
        logp=column,
        old_logp=column.detach(),
        old_value=torch.zeros(3, 1).double(),
        weight=column.detach().exp(),
        **made,
    )
    recipe = make("self_rewarding_ppo", beta=BETA, whiten=False)
    return torch.autograd.grad(recipe(batch)[0], logits)[0]


def test_nothing_moves_at_the_optimum():
    tilted = SFT * (SFT / PT) ** (1 / BETA)
    np.testing.assert_allclose(bandit_gradient(tilted / tilted.sum()), 0, atol=1e-12)
    assert bandit_gradient(SFT).abs().max() > 0.01
