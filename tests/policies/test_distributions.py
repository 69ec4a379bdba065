"""Distributions: densities integrate to 1, entropies and divergences by quadrature or enumeration, draws have their law."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from upslope.errors import UsageError
from upslope.policies.distributions import (
    Categorical,
    Gaussian,
    Mixture,
    MultiCategorical,
    SquashedGaussian,
    log_slope,
    sample,
)

torch.set_default_dtype(torch.float32)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


LINE = torch.linspace(-12, 12, 200_001, dtype=torch.float64)


def integral(values, grid):
    return float(torch.trapezoid(values, grid))


def line_of(distribution):
    """A grid of the actions [n, 1] of a one-dimensional distribution; squashed ones are spaced evenly in u."""
    inner = getattr(distribution, "components", distribution)
    return (LINE.tanh() if isinstance(inner, SquashedGaussian) else LINE).unsqueeze(1)


def repeated(kind, n, *columns):
    return kind(*(column.expand(n, *column.shape) for column in columns))


PAIRS = [(0.3, -0.5), (-1.2, 0.3), (2.0, 0.0), (0.0, -2.0)]


@pytest.mark.parametrize(("mean", "log_std"), PAIRS)
@pytest.mark.parametrize("kind", [Gaussian, SquashedGaussian])
def test_density_entropy_and_divergence_by_quadrature(kind, mean, log_std):
    one, other = kind(f64(mean), f64(log_std)), kind(f64(mean - 0.4), f64(log_std + 0.2))
    u, grid = LINE, line_of(one)
    # du-integrals: of a squashed one, in u, with da = (1 - tanh^2) du; beyond |u| = 9 its atanh is not exact any more
    keep = u.abs() < (8.5 if kind is SquashedGaussian else 13)
    u, grid = u[keep], grid[keep]
    slope = log_slope(u).exp() if kind is SquashedGaussian else torch.ones_like(u)
    n = len(u)
    logp = repeated(kind, n, f64(mean), f64(log_std)).log_prob(grid)
    logq = repeated(kind, n, f64(mean - 0.4), f64(log_std + 0.2)).log_prob(grid)
    p = logp.exp() * slope
    assert integral(p, u) == pytest.approx(1, abs=1e-6)
    assert float(one.entropy()) == pytest.approx(integral(-p * logp, u), abs=2e-5)
    assert float(one.kl(other)) == pytest.approx(integral(p * (logp - logq), u), abs=2e-5)


def test_mixture_integrates_and_marginalizes():
    logits, mean, log_std = f64(0.2, -1.0, 0.7), f64(-1.0, 0.5, 2.0).unsqueeze(1), f64(-1.0, 0.0, -0.5).unsqueeze(1)
    weights = logits.softmax(-1).numpy()
    grid = LINE.unsqueeze(1)
    mixture = Mixture(logits.expand(len(grid), 3), repeated(Gaussian, len(grid), mean, log_std))
    expected = sum(
        w * stats.norm.pdf(LINE.numpy(), m, np.exp(s))
        for w, m, s in zip(weights, mean[:, 0].numpy(), log_std[:, 0].numpy(), strict=True)
    )
    np.testing.assert_allclose(mixture.log_prob(grid).exp(), expected, rtol=1e-9, atol=1e-300)
    squashed = Mixture(logits, SquashedGaussian(mean, log_std))
    assert squashed.mode().item() == pytest.approx(np.tanh(2.0))
    with pytest.raises(UsageError, match="no closed form"):
        squashed.entropy()
    with pytest.raises(UsageError, match="no closed form"):
        squashed.kl(squashed)


def test_discrete_ones_by_enumeration():
    logits, other = f64(0.3, -1.0, 2.0), f64(0.0, 1.0, 0.5)
    p, q = logits.softmax(0).numpy(), other.softmax(0).numpy()
    one = Categorical(logits)
    np.testing.assert_allclose([one.log_prob(torch.tensor(a)).exp() for a in range(3)], p)
    assert float(one.entropy()) == pytest.approx(stats.entropy(p))
    assert float(one.kl(Categorical(other))) == pytest.approx(stats.entropy(p, q))
    never = Categorical(f64(0.0, -torch.inf, 0.0))
    assert float(never.entropy()) == pytest.approx(np.log(2))
    assert float(never.kl(Categorical(f64(0.0, 0.0, 0.0)))) == pytest.approx(np.log(3 / 2))
    several = MultiCategorical(torch.cat([logits, other, f64(0.5, 0.1)]), (3, 3, 2))
    actions = torch.tensor(list(itertools.product(range(3), range(3), range(2))))
    logp = torch.stack([several.log_prob(action) for action in actions])
    assert float(logp.exp().sum()) == pytest.approx(1)
    assert float(several.entropy()) == pytest.approx(float(-(logp.exp() * logp).sum()))
    assert several.mode().tolist() == [2, 1, 0]
    assert float(several.kl(several)) == pytest.approx(0)


def test_categorical_matches_the_card():
    """KL((.5, .5) || (.9, .1)) = .510826: card of GROOVE."""
    assert float(Categorical(f64(0.5, 0.5).log()).kl(Categorical(f64(0.9, 0.1).log()))) == pytest.approx(
        0.510826, abs=1e-6
    )


@given(st.floats(-40, 40), st.floats(-3, 1.5), st.floats(-4, 4))
@settings(max_examples=200, deadline=None)
def test_squashed_log_prob_is_finite_and_exact_everywhere(mean, log_std, noise):
    one = SquashedGaussian(torch.tensor([mean], requires_grad=True), torch.tensor([log_std], requires_grad=True))
    action, logp = one.draw_with_log_prob(torch.tensor([noise]))
    gradients = torch.autograd.grad(logp, [one.mean, one.log_std])
    assert logp.isfinite()
    assert one.log_prob(action).isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    u = mean + np.exp(log_std) * noise
    exact = stats.norm.logpdf(noise) - log_std - 2 * (np.log(2) - abs(u) - np.log1p(np.exp(-2 * abs(u))))
    assert float(logp.detach()) == pytest.approx(exact, rel=1e-4, abs=1e-3)
    if abs(u) < 3:
        assert float(one.log_prob(action).detach()) == pytest.approx(exact, rel=1e-3, abs=1e-2)


def test_draws_have_their_law_and_repeat():
    generator = torch.Generator().manual_seed(0)
    rows = 40_000
    drawn = sample(Categorical(torch.tensor([0.0, 1.0, -1.0]).expand(rows, 3)), generator)
    expected = torch.tensor([0.0, 1.0, -1.0]).softmax(0) * rows
    assert (
        stats.chisquare(
            torch.bincount(drawn, minlength=3).numpy(), expected.double().numpy() / expected.sum().item() * rows
        ).pvalue
        > 1e-3
    )
    normal = sample(Gaussian(torch.full((rows, 1), 2.0), torch.tensor([-1.0])), generator)
    assert stats.kstest(normal[:, 0].numpy(), stats.norm(2, np.exp(-1)).cdf).pvalue > 1e-3
    mean, log_std = torch.tensor([[-1.0], [1.5]]), torch.tensor([[-1.0], [-0.5]])
    mixture = Mixture(torch.zeros(rows, 2), Gaussian(mean.expand(rows, 2, 1), log_std.expand(rows, 2, 1)))
    both = lambda x: (stats.norm.cdf(x, -1, np.exp(-1)) + stats.norm.cdf(x, 1.5, np.exp(-0.5))) / 2  # noqa: E731
    assert stats.kstest(sample(mixture, generator)[:, 0].numpy(), both).pvalue > 1e-3
    one = Gaussian(torch.zeros(3, 2), torch.zeros(2))
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    a, b, c = (sample(one, seed) for seed in seeds)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_noise_for_many_steps_is_drawn_at_once():
    one = Categorical(torch.zeros(4, 3))
    assert one.noise(torch.Generator().manual_seed(0), (5,)).shape == (5, 4, 3)
    assert Mixture(torch.zeros(4, 3), Gaussian(torch.zeros(4, 3, 2), torch.zeros(2))).noise(None, (5,)).shape == (
        5,
        4,
        5,
    )
