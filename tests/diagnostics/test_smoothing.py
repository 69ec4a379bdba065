"""Card: control_theory.md, policy-smoothing. Its numbers; coverage by simulation; an adversary who attains the bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from upslope.diagnostics.smoothing import certify, clopper_pearson, dkw_width, fewest, summed, under_attack, whole
from upslope.errors import UsageError


def test_the_cards_numbers():
    np.testing.assert_allclose(under_attack(0.9, 1.0, 1.0), 0.610856, atol=5e-7)
    bound = clopper_pearson(9500, 10_000, 0.05)
    np.testing.assert_allclose(bound, 0.946267, atol=5e-7)
    np.testing.assert_allclose(under_attack(bound, 0.2, 0.2), 0.728965, atol=5e-7)
    assert dkw_width(10_000, 0.05) == pytest.approx(0.013581, abs=5e-7)
    survival = under_attack([0.8, 0.5], 0.5, 1.0)  # returns 0, 50, 100 with probabilities .2, .3, .5
    assert summed(0.0, [50, 100], survival) == pytest.approx(47.1110, abs=5e-5)
    assert summed(0.0, [50, 100], [0.8, 0.5]) == 65


def test_clopper_pearson_is_the_probability_at_which_the_tail_is_alpha():
    for k, n in ((1, 10), (7, 10), (10, 10), (350, 1000)):
        p = float(clopper_pearson(k, n, 0.05))
        assert stats.binom.sf(k - 1, n, p) == pytest.approx(0.05)
    assert clopper_pearson(0, 10, 0.05) == 0
    np.testing.assert_allclose(clopper_pearson(10, 10, 0.05), 0.05**0.1)


@given(st.floats(0, 1), st.floats(0, 5), st.floats(0, 5), st.floats(0.05, 5), st.floats(0.05, 5))
def test_monotone(p, budget, further, sigma, wider):
    assert under_attack(p, budget + further, sigma) <= under_attack(p, budget, sigma) + 1e-12
    assert under_attack(p, budget, sigma + wider) >= under_attack(p, budget, sigma) - 1e-12
    np.testing.assert_allclose(under_attack(p, 0.0, sigma), p, atol=1e-12)


def test_no_budget_gives_the_plain_confidence_bounds_back():
    returns = np.random.default_rng(0).integers(0, 21, 500).astype(float)
    found = certify(returns, 0.2, lowest=0, most=20)
    assert found.probability(10, 0.0) == pytest.approx(float(clopper_pearson((returns >= 10).sum(), 500, 0.05)))
    each = [float(clopper_pearson((returns >= r).sum(), 500, 0.05 / 20)) for r in range(1, 21)]
    assert found.expected_return(0.0) == pytest.approx(sum(each))
    assert found.band == "clopper-pearson"
    band = certify(returns, 0.2, lowest=0)
    seen = np.unique(returns)[1:]
    share = [(returns >= r).mean() - dkw_width(500, 0.05) for r in seen]
    assert band.expected_return(0.0) == pytest.approx(sum(max(0.0, s) for s in share))
    at = [stats.norm.cdf(stats.norm.ppf(max(0.0, s)) - 0.3 / 0.2) for s in share]
    assert band.expected_return(0.3) == pytest.approx(sum(at))


@pytest.mark.parametrize("most", [10, None])
def test_below_the_true_mean_with_the_confidence_that_it_claims(most):
    generator, truth = np.random.default_rng(1), stats.binom(10, 0.7)
    below = [
        certify(truth.rvs(300, random_state=generator).astype(float), 1.0, lowest=0, most=most).expected_return(0.0)
        <= 7
        for _ in range(200)
    ]
    assert np.mean(below) >= 0.95


def test_the_worst_adversary_of_one_step_attains_the_bound():
    """One step, return 1 where a linear policy sees o + e on its side: pushing straight back costs exactly B / sigma probits."""
    sigma, budget = 0.5, 0.4
    generator = np.random.default_rng(2)
    seen = 0.7 + sigma * generator.standard_normal(200_000)
    clean, attacked = (seen > 0).astype(float), (seen - budget > 0).mean()
    found = certify(clean, sigma, lowest=0, most=1)
    assert found.probability(1, budget) <= attacked + 1e-3
    assert found.expected_return(budget) == pytest.approx(attacked, abs=0.01)


def test_thresholds_above_what_is_counted_only_lower_the_bound():
    returns = np.full(1000, 30.0)
    assert certify(returns, 1.0, lowest=0, most=20).expected_return(0.5) <= 20
    assert certify(returns, 1.0, lowest=0, most=40).expected_return(0.5) <= 30
    shifted = certify(returns - 100, 1.0, lowest=-100, most=40).expected_return(0.5)
    assert shifted == pytest.approx(certify(returns, 1.0, lowest=0, most=40).expected_return(0.5) - 100)


def test_what_is_refused():
    with pytest.raises(UsageError, match="sigma is 0"):
        certify([1.0] * 100, 0.0, lowest=0)
    with pytest.raises(UsageError, match=r"a return of -1 was seen, below lowest=0"):
        certify([-1.0] * 100, 0.1, lowest=0)
    with pytest.raises(UsageError, match=r"5 episodes cannot certify anything.*at least 12"):
        certify([1.0] * 5, 0.1, lowest=0, most=200)
    with pytest.raises(UsageError, match=r"alpha is 1\.5"):
        certify([1.0] * 50, 0.1, lowest=0, alpha=1.5)
    with pytest.raises(UsageError, match="budget of at least 0"):
        under_attack(0.5, -1.0, 1.0)
    with pytest.raises(UsageError, match="11 successes of 10"):
        clopper_pearson(11, 10, 0.05)


@pytest.mark.parametrize("most", [None, 1, 200])
def test_fewest_is_where_a_bound_can_exceed_one_half(most):
    n = fewest(most, 0.05)
    for count, above in ((n, True), (n - 1, False)):
        best = 1 - dkw_width(count, 0.05) if most is None else clopper_pearson(count, count, 0.05 / most)
        assert (best > 0.5) == above


def test_whole():
    assert whole([1.0, -3.0])
    assert not whole([1.0, 0.5])
