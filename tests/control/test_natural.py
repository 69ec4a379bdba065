"""Natural gradients: products against the explicit Fisher matrix, conjugate gradients, the line search; card npg-trpo."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from upslope import Trainer, UsageError
from upslope.control.natural import NaturalLearner, TrustRegionLearner, conjugate_gradient, fisher_product, frozen
from upslope.parts.natural import NaturalGradient, TrustRegion
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.policies.distributions import Categorical, Gaussian
from upslope.tasks.spaces import ActionSpec, ObservationSpec

EXACT = {"damping": 0.0, "iterations": 50, "tolerance": 1e-24}


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def policy_of(actions):
    torch.manual_seed(0)
    policy = ControlPolicy(
        ObservationSpec.of(box(3)), ActionSpec.of(actions), MLP(hidden=(4,), policy_gain=1.0)
    ).double()
    return policy, torch.randn(5, 3, dtype=torch.float64)


def box(size):
    from gymnasium import spaces

    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def discrete():
    from gymnasium import spaces

    return spaces.Discrete(3)


def flat(pieces):
    return torch.cat([piece.reshape(-1) for piece in pieces])


def scores(policy, seen, actions):
    """Gradients of log pi(a|s) [S, A, P], one at a time."""
    parameters = list(policy.parameters())
    return torch.stack([
        torch.stack([
            flat(torch.autograd.grad(policy.distribution(one).log_prob(a), parameters, materialize_grads=True))
            for a in actions
        ])
        for one in seen
    ])  # fmt: skip


def test_products_are_the_explicit_fisher_matrixs_for_a_softmax():
    policy, seen = policy_of(discrete())
    old = frozen(policy.distribution(seen))
    score = scores(policy, seen, torch.arange(3))
    fisher = torch.einsum("sa,sap,saq->pq", old.logits.softmax(-1), score, score) / len(seen)
    product = fisher_product(lambda: old.kl(policy.distribution(seen)).mean(), list(policy.parameters()), damping=0.3)
    for v in torch.randn(3, len(fisher), dtype=torch.float64):
        torch.testing.assert_close(product(v), fisher @ v + 0.3 * v)


def test_products_are_the_explicit_fisher_matrixs_for_a_gaussian():
    """The expectation over actions by quadrature, exact for polynomials of such degree."""
    policy, seen = policy_of(box(1))
    with torch.no_grad():
        policy.log_std.fill_(-0.4)
    old = frozen(policy.distribution(seen))
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    fisher = torch.zeros(1)
    for mean, one in zip(old.mean, seen, strict=True):
        actions = mean + f64(nodes)[:, None] * old.log_std.exp()
        score = scores(policy, one[None], actions)[0]
        fisher = fisher + torch.einsum("a,ap,aq->pq", f64(weights / weights.sum()), score, score) / len(seen)
    product = fisher_product(lambda: old.kl(policy.distribution(seen)).mean(), list(policy.parameters()))
    for v in torch.randn(3, len(fisher), dtype=torch.float64):
        torch.testing.assert_close(product(v), fisher @ v)


def test_conjugate_gradients_solve():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, b = half @ half.T + 0.1 * torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, b, 50, 1e-24)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b))
    singular = matrix - matrix @ torch.outer(b, b) / (b @ b)
    singular = singular.T @ singular  # b is in its null space
    image = singular @ torch.randn(6, generator=generator, dtype=torch.float64)
    found = conjugate_gradient(lambda v: singular @ v, image, 50, 1e-24)
    torch.testing.assert_close(found, torch.linalg.pinv(singular, rcond=1e-9) @ image, rtol=1e-6, atol=1e-8)
    assert not conjugate_gradient(lambda v: matrix @ v, torch.zeros(6, dtype=torch.float64), 10, 0.0).any()
    few = conjugate_gradient(lambda v: matrix @ v, b, 1, 0.0)
    torch.testing.assert_close(few, b * (b @ b) / (b @ matrix @ b))


def tabular(pi, advantage, part, basis=None):
    """A learner on a table of logits (or on theta with logits = basis theta), the loss and the KL, all in expectation."""
    start = f64(pi).log()
    start = start if basis is None else torch.linalg.solve(basis, start)
    theta = nn.Parameter(start.clone())
    learner = part.learner()([theta], part)
    old = Categorical(f64(pi).log())

    def now():
        return Categorical(theta if basis is None else basis @ theta)

    def make():
        ratio = now().logits.log_softmax(-1).exp() / f64(pi)
        return -(f64(pi) * ratio * f64(advantage)).sum(), {}

    return learner, make, (lambda: old.kl(now())), now


def test_a_tabular_step_multiplies_by_the_exponential_of_the_advantage():
    """Card, identity 1: pi = (.2, .5, .3), r = (1, 0, .5): x = (.5, -.5, 0), alpha = .362143, and the policy after it."""
    pi, advantage = [0.2, 0.5, 0.3], [0.65, -0.35, 0.15]
    learner, make, divergence, now = tabular(pi, advantage, NaturalGradient(**EXACT))
    assert type(learner) is NaturalLearner
    _, x, curvature = learner.direction(make, divergence)
    np.testing.assert_allclose(x, [0.5, -0.5, 0.0], atol=1e-9)
    np.testing.assert_allclose(curvature, 0.1525, atol=1e-9)
    found = learner.learn(make, divergence)
    assert found.stats["step/size"] == pytest.approx(0.362143, abs=1e-6)
    np.testing.assert_allclose(now().logits.softmax(-1).detach(), [0.250500, 0.435984, 0.313516], atol=5e-7)
    assert found.stats["step/kl"] == pytest.approx(0.010253, abs=5e-7)
    weights = np.array(pi) * np.exp(found.stats["step/size"] * np.array(advantage))
    np.testing.assert_allclose(now().logits.softmax(-1).detach(), weights / weights.sum(), atol=1e-7)


def test_to_first_order_the_step_does_not_depend_on_the_parameters():
    """Card, identity 2: with logits B theta the policy moves to the same place, up to the square of the step."""
    pi, advantage = [0.2, 0.5, 0.3], [0.65, -0.35, 0.15]
    basis = f64([[1.0, 0.3, 0.0], [-2.0, 10.0, 1.0], [0.0, 0.5, 0.1]])
    gaps = []
    for max_kl in (1e-4, 1e-6):
        moved = []
        for by in (None, basis):
            learner, make, divergence, now = tabular(pi, advantage, NaturalGradient(max_kl=max_kl, **EXACT), by)
            learner.learn(make, divergence)
            moved.append(now().logits.softmax(-1).detach() - f64(pi))
        gaps.append(float((moved[0] - moved[1]).norm() / moved[0].norm()))
    assert max(gaps) < 1e-5
    plain = basis @ basis.T @ (f64(pi) * f64(advantage))  # where the gradient itself would take the logits
    assert abs(float(torch.corrcoef(torch.stack([plain, f64([0.5, -0.5, 0.0])]))[0, 1])) < 0.9


def test_a_gaussians_mean():
    """Card, identity 3: sigma = 1, g = 4: x = 4, the step .141421, KL .01 exactly."""
    mean = nn.Parameter(f64([0.7]))
    learner = NaturalLearner([mean], NaturalGradient(**EXACT))
    old, log_std = Gaussian(f64([0.7]), f64([0.0])), f64([0.0])
    found = learner.learn(lambda: (-4 * mean.sum(), {}), lambda: old.kl(Gaussian(mean, log_std)))
    assert found.grad_norm == pytest.approx(4)
    assert float(mean.detach() - 0.7) == pytest.approx(0.141421, abs=5e-7)
    assert found.stats["step/kl"] == pytest.approx(0.01, abs=1e-9)


def test_a_bound_of_nearly_nothing_keeps_the_policy():
    """Card, identity 4."""
    pi = [0.2, 0.5, 0.3]
    learner, make, divergence, now = tabular(pi, [0.65, -0.35, 0.15], TrustRegion(max_kl=1e-12, **EXACT))
    learner.learn(make, divergence)
    np.testing.assert_allclose(now().logits.softmax(-1).detach(), pi, atol=1e-6)


@pytest.mark.parametrize("max_kl", [1e-3, 1e-2, 0.1, 1.0])
def test_the_line_search_keeps_to_the_bound_and_is_no_worse(max_kl):
    """Where npg's step goes beyond the bound, the line search shortens it."""
    for seed, backtrack in itertools.product(range(5), (0.5, 0.8)):
        generator = torch.Generator().manual_seed(seed)
        pi = torch.randn(4, generator=generator, dtype=torch.float64).mul(2).softmax(-1).tolist()
        advantage = torch.randn(4, generator=generator, dtype=torch.float64).tolist()
        part = TrustRegion(max_kl=max_kl, backtrack=backtrack, tries=20, **EXACT)
        learner, make, divergence, _ = tabular(pi, advantage, part)
        assert isinstance(learner, TrustRegionLearner)
        before = make()[0].item()
        found = learner.learn(make, divergence).stats
        assert found["step/taken"] == 1
        assert divergence().item() == pytest.approx(found["step/kl"])
        assert found["step/kl"] <= max_kl
        assert make()[0].item() <= before
        size = found["step/size"] * backtrack ** (found["step/tries"] - 1)
        if found["step/tries"] > 1:  # the one before was too long, or worse
            other, *closures, _ = tabular(pi, advantage, part)
            x = other.direction(*closures)[1]
            with torch.no_grad():
                other.flat += size / backtrack * x
                assert float(closures[1]()) > max_kl or float(closures[0]()[0]) > before


def test_no_step_is_taken_where_none_will_do_and_none_where_the_gradient_is_not_finite():
    pi, advantage = [0.2, 0.5, 0.3], [0.65, -0.35, 0.15]
    learner, make, divergence, now = tabular(pi, advantage, TrustRegion(improvement=0.999, tries=1, **EXACT))
    assert learner.learn(make, divergence).stats["step/taken"] == 0
    np.testing.assert_array_equal(now().logits.softmax(-1).detach(), f64(pi).log().softmax(-1))
    found = learner.learn(lambda: (make()[0] * torch.nan, {}), divergence)
    assert "nan" in found.skipped
    np.testing.assert_array_equal(now().logits.softmax(-1).detach(), f64(pi).log().softmax(-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_kl": 0.0}, "max_kl"),
        ({"damping": -1.0}, "damping"),
        ({"backtrack": 1.0}, "backtrack"),
        ({"update.minibatches": 4}, "one step on all that was played"),
        ({"value_coefficient": 0.5, "critic_epochs": None}, "moves the policy alone"),
        ({"value_coefficient": 0.5}, "critic_epochs is of a critic"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UsageError, match=message), Trainer("trpo", task="CartPole-v1", steps=1, **settings):
        pass
