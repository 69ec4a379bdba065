"""Card: preference_distill_hybrid.md, one-token-rollout, and line 4 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.testing import finite_differences, with_observed

PI = np.array([0.5, 0.3, 0.2])


def batch_from(logits, tokens):
    """One completion per row of tokens; logits [R, T, V]."""
    log_probs = logits.log_softmax(-1)
    logp = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return Batch(
        logp=logp,
        log_distribution=log_probs,
        tokens=tokens,
        trajectory=torch.arange(len(tokens)),
        group=torch.arange(len(tokens)),
    )


def on_logits(recipe, logits, tokens):
    """The loss and its gradient with respect to the logits."""
    logits = logits.clone().requires_grad_()
    loss, _ = recipe(with_observed(recipe, batch_from(logits, tokens)))
    return loss.item(), torch.autograd.grad(loss, logits)[0].numpy()


def one_position(recipe):
    loss, gradient = on_logits(recipe, torch.tensor(PI).log().view(1, 1, 3), torch.zeros(1, 1, dtype=torch.int64))
    return loss, gradient.ravel()


def drawn_at_random(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 7, (3, 4), generator=generator)


def test_card_gradient_at_temperature_one():
    _, gradient = one_position(make("one_token_rollout", **{"surrogate.temperature": 1.0}))
    np.testing.assert_allclose(gradient, [-0.275, 0.165, 0.11], atol=1e-12)
    np.testing.assert_allclose(gradient, 1.1 * one_position(make("dft"))[1], atol=1e-12)


@pytest.mark.parametrize(("temperature", "penalty"), [(1.0, 0.1), (1.3, 0.1), (2.0, 0.0), (0.5, 0.4)])
def test_closed_form_equals_numpy(temperature, penalty):
    logits, tokens = drawn_at_random()
    recipe = make("one_token_rollout", **{"surrogate.temperature": temperature, "surrogate.penalty": penalty})
    chance = np.exp(logits.numpy() / temperature)
    chance /= chance.sum(-1, keepdims=True)
    reward = np.where(np.arange(7) == tokens.numpy()[..., None], 1.0, -penalty)

    def numpy_loss(at):
        log_probs = at - np.log(np.exp(at).sum(-1, keepdims=True))
        return -(chance * reward * log_probs).sum() / tokens.numel()

    loss, gradient = on_logits(recipe, logits, tokens)
    assert loss == pytest.approx(numpy_loss(logits.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, logits.numpy()), atol=1e-8)


@pytest.mark.parametrize("penalty", [0.0, 0.1, 0.5])
def test_at_temperature_one_it_is_dft_times_one_plus_the_penalty(penalty):
    logits, tokens = drawn_at_random(1)
    ours = on_logits(
        make("one_token_rollout", **{"surrogate.temperature": 1.0, "surrogate.penalty": penalty}), logits, tokens
    )[1]
    np.testing.assert_allclose(ours, (1 + penalty) * on_logits(make("dft"), logits, tokens)[1], atol=1e-12)


def test_card_value_of_drawn_counts():
    """Counts (5, 2, 1) of the three tokens: a step in which exactly these are drawn."""
    recipe = make("one_token_rollout", **{"surrogate.temperature": 1.0, "surrogate.samples": 8})
    batch = batch_from(torch.tensor(PI).log().view(1, 1, 3), torch.zeros(1, 1, dtype=torch.int64))
    values = [float(recipe(batch.replace(step=torch.tensor([step])))[0]) for step in range(1, 400)]
    count = -(5 * np.log(0.5) - 0.1 * (2 * np.log(0.3) + np.log(0.2))) / 8
    assert count == pytest.approx(0.383, abs=5e-7)
    assert np.isclose(values, count, atol=1e-12).any()
    closed = one_position(make("one_token_rollout", **{"surrogate.temperature": 1.0}))[0]
    assert np.mean(values) == pytest.approx(closed, abs=4 * np.std(values) / np.sqrt(len(values)))


def test_many_draws_approach_the_expectation():
    logits, tokens = drawn_at_random(2)
    ours = on_logits(make("one_token_rollout", **{"surrogate.samples": 20_000}), logits, tokens)[1]
    np.testing.assert_allclose(ours, on_logits(make("one_token_rollout"), logits, tokens)[1], atol=2e-3)


def test_draws_depend_on_step_and_completion_not_on_the_order_of_rows():
    logits, tokens = drawn_at_random(3)
    recipe, batch = make("one_token_rollout", **{"surrogate.samples": 16}), batch_from(logits, tokens)
    order = torch.tensor([2, 0, 1])
    assert float(recipe(batch)[0]) == pytest.approx(float(recipe(batch.select(order))[0]), abs=1e-12)
    later = recipe(batch.replace(step=torch.full((3,), 2)))[0]
    assert float(later) != float(recipe(batch)[0])


def test_an_impossible_token_does_not_spoil_the_gradient():
    logits = torch.tensor([[[0.0, 1.0, -torch.inf]]]).double()
    loss, gradient = on_logits(make("one_token_rollout"), logits, torch.zeros(1, 1, dtype=torch.int64))
    assert np.isfinite(loss)
    assert np.isfinite(gradient[..., :2]).all()


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"OneTokenRollout\(temperature=0, samples=0\)"):
        make("one_token_rollout", **{"surrogate.temperature": 0.0})
