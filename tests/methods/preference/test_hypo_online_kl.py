"""Card: preference_distill_hybrid.md, hypo-online-kl."""

from itertools import product

import numpy as np
import pytest
import torch

from upslope import Recipe, make
from upslope.batch import SOURCES, Batch
from upslope.exact import ExactLab
from upslope.methods.preference.hypo_online_kl import SampledKL
from upslope.parts.aggregate import RowMean
from upslope.testing import batch_of, finite_differences, value_and_gradient

EXPERT, POLICY = SOURCES.index("expert"), SOURCES.index("policy")


def step_of(seed=0, samples=2):
    """Two prompts, each with a pair that is given and completions that are sampled, in groups of their own."""
    per_prompt = 2 + samples
    source = torch.tensor(([EXPERT] * 2 + [POLICY] * samples) * 2)
    group = 2 * torch.arange(2).repeat_interleave(per_prompt) + (source != EXPERT)
    label = torch.where(source == EXPERT, torch.tensor(([1.0, 0.0] + [0.0] * samples) * 2), 0.0)
    batch = batch_of([[0.0] * per_prompt] * 2, seed=seed)
    return batch.replace(source=source, group=group, label=label.double())


def test_defaults():
    recipe = make("hypo_online_kl")
    assert (recipe.rollout.samples, recipe.surrogate.beta, recipe.terms[0].coefficient) == (2, 0.05, 1e-4)
    assert make("hypo", coefficient=0.3).terms[0].coefficient == 0.3, "what users sweep has a name"


def test_without_the_coefficient_it_is_dpo_on_the_given_pairs():
    batch = step_of()
    recipe = make("hypo_online_kl", coefficient=0.0)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    given = (batch.source == EXPERT).nonzero().squeeze(1)
    dpo = make("dpo", beta=0.05)
    expected, slope = value_and_gradient(dpo, dpo.prepare(batch.select(given)))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[given], slope)
    assert not gradient[batch.source == POLICY].any()


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_value_and_gradient_against_numpy(samples):
    batch, coefficient = step_of(seed=4, samples=samples), 0.7
    ref, mask = batch.ref_logp.numpy(), batch.mask.numpy()
    sampled, given = ((batch.source == one).numpy() for one in (POLICY, EXPERT))
    start = batch.logp.numpy()
    k = ((start - ref) * mask).sum(1)[sampled].reshape(2, samples)
    others = (k.sum(1, keepdims=True) - k) / (samples - 1) if samples > 1 else 0 * k
    advantage = (k - others).ravel()

    def dpo(logp):
        gap = ((logp - ref) * mask).sum(1)[given].reshape(2, 2) @ [1, -1]
        return np.mean(np.logaddexp(0, -0.05 * gap))

    def surrogate(logp):
        return np.mean(advantage * (logp * mask).sum(1)[sampled])

    recipe = make("hypo_online_kl", coefficient=coefficient)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(dpo(start) + coefficient * k.mean())
    expected = finite_differences(lambda logp: dpo(logp) + coefficient * surrogate(logp), start)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)
    stats = recipe(batch)[1]
    assert float(stats["loss/1"]) == pytest.approx(k.mean()), "the KL of the samples, before the coefficient"
    gap = ((start - ref) * mask).sum(1)[given].reshape(2, 2) @ [1, -1]
    assert float(stats["pairs/accuracy"]) == pytest.approx(np.mean(gap > 0)), "of the given pairs, not of all rows"


def test_the_cards_categorical():
    ref = torch.tensor([0.4, 0.4, 0.2]).double()
    theta = torch.tensor([0.5, 0.3, 0.2]).double().log().requires_grad_()
    policy = theta.detach().softmax(0)
    recipe = Recipe(SampledKL(), RowMean())
    value, total = 0.0, torch.zeros(3, dtype=torch.float64)
    for pair in product(range(3), repeat=2):
        arms, chance = list(pair), float(policy[list(pair)].prod())
        batch = Batch(logp=theta.log_softmax(0)[arms, None], ref_logp=ref[arms, None].log(), group=[0, 0])
        loss, _ = recipe(batch)
        value += chance * float(loss.detach())
        total += chance * torch.autograd.grad(loss, theta)[0]
    assert value == pytest.approx(0.025267, abs=5e-7)
    np.testing.assert_allclose(total, [0.098938, -0.093885, -0.005053], atol=5e-7)


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_in_expectation_the_gradient_is_that_of_the_kl(group_size):
    lab = ExactLab(vocabulary=3, horizon=3, eos=0)
    ref = ExactLab(vocabulary=3, horizon=3, eos=0, seed=5).theta
    target = -lab.gradient(lab.theta, lambda theta: lab.kl(theta, ref))
    estimate = lab.estimate(Recipe(SampledKL(), RowMean()), group_size=group_size, ref=ref, target=target)
    assert estimate.relative_bias < 1e-9


def test_dpo_moves_what_the_data_does_not_cover_and_the_kl_holds_it():
    """The card's bandit: pairs cover 4 of 10 arms. Nothing in them speaks for or against the other six."""
    reward, ref = torch.linspace(0, 1, 10).double(), torch.full((10,), 0.1).double()
    pairs = torch.tensor([pair for pair in product(range(4), repeat=2) if pair[0] > pair[1]])
    found = {}
    for coefficient in (0.0, 0.05):
        recipe, theta = make("hypo_online_kl", coefficient=coefficient), ref.log().clone().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            own = torch.multinomial(theta.detach().softmax(0), 12, replacement=True, generator=generator).view(6, 2)
            arms = torch.cat([pairs, own], 1).flatten()
            batch = Batch(
                logp=theta.log_softmax(0)[arms, None],
                ref_logp=ref[arms, None].log(),
                label=torch.tensor([1.0, 0.0, 0.0, 0.0] * 6),
                source=torch.tensor([EXPERT, EXPERT, POLICY, POLICY] * 6),
                group=torch.arange(12).repeat_interleave(2),
            )
            (gradient,) = torch.autograd.grad(recipe(batch)[0], theta)
            theta = (theta - 5.0 * gradient).detach().requires_grad_()
        policy = theta.detach().softmax(0)
        found[coefficient] = (
            float((policy * (policy / ref).log()).sum()),
            float(policy[4:].sum()),
            float(policy @ reward),
        )
    assert found[0.05][0] < 0.5 * found[0.0][0]
    assert abs(found[0.05][1] - 0.6) < abs(found[0.0][1] - 0.6)
