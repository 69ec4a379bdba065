"""Drawing tokens: exact distributions, and randomness that depends on (seed, step, row) alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from upslope.engines.sampling import BLOCK, Uniforms, draw, invert_cdf
from upslope.rollout import Sampling


def truncated(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that `sampling` describes, [V], written out."""
    order = np.argsort(-logits, kind="stable")
    p = np.exp((logits[order] - logits.max()) / sampling.temperature)
    p[sampling.top_k or len(p) :] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= sampling.top_p] = 0
    found = np.empty_like(p)
    found[order] = p / p.sum()
    return found


@pytest.mark.parametrize("width", [5, 4 * BLOCK + 77], ids=["one level", "two levels"])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.6), Sampling(1, 2.0, 0.9, 4)],
    ids=str,
)
def test_frequencies_and_log_probs(width, sampling):
    generator = torch.Generator().manual_seed(1)
    row = torch.full((width,), -30.0)
    likely = torch.randperm(width, generator=generator)[:5]
    row[likely] = torch.randn(5, generator=generator)
    logits = row.expand(20000, -1)
    tokens, logp, behavior_logp = draw(logits, torch.rand(20000, generator=generator, dtype=torch.float64), sampling)
    p = truncated(row.double().numpy(), sampling)
    seen = np.bincount(tokens, minlength=width)
    kept = p > 1e-9
    assert seen[~kept].sum() == 0
    if kept.sum() > 1:
        assert stats.chisquare(seen[kept], p[kept] / p[kept].sum() * 20000).pvalue > 1e-3
    np.testing.assert_allclose(behavior_logp, np.log(p[tokens]), atol=1e-5)
    torch.testing.assert_close(logp, row.log_softmax(-1)[tokens], atol=1e-5, rtol=0)


@given(
    st.integers(1, 6).map(lambda power: 4**power + power),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_inversion_finds_the_first_index_above_and_never_weight_zero(width, uniform, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(uniform), width, generator=generator) ** 20
    weights[torch.rand(weights.shape, generator=generator) < 0.5] = 0
    weights[:, seed % width] = 1.0
    found = invert_cdf(weights, torch.tensor(uniform, dtype=torch.float64))
    assert (weights.gather(1, found[:, None]) > 0).all()
    cumulative = np.cumsum(weights.double().numpy(), axis=1)
    for row, index in enumerate(found.tolist()):
        target, slack = uniform[row] * cumulative[row, -1], 1e-5 * cumulative[row, -1]
        assert cumulative[row, index] > target - slack
        assert index == 0 or cumulative[row, index - 1] <= target + slack


@pytest.mark.parametrize("width", [7, 5000])
def test_extremes_of_the_uniform_number(width):
    weights = torch.ones(2, width)
    weights[:, [0, -1]] = 0
    found = invert_cdf(weights, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert found.tolist() == [1, width - 2]


def test_ties_keep_exactly_k():
    logits = torch.zeros(4000, 9)
    tokens, _, behavior_logp = draw(logits, torch.rand(4000, dtype=torch.float64), Sampling(top_k=3))
    assert len(tokens.unique()) == 3
    np.testing.assert_allclose(behavior_logp, np.log(1 / 3), atol=1e-6)


def test_greedy():
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1e30, -2e30, -3e30]])
    tokens, logp, behavior_logp = draw(logits, torch.tensor([0.99, 0.99]), Sampling(temperature=0.0))
    assert tokens.tolist() == [1, 0]
    assert behavior_logp.tolist() == [0.0, 0.0]
    torch.testing.assert_close(logp, logits.log_softmax(-1)[[0, 1], [1, 0]])


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e6])
def test_extreme_temperatures_stay_finite(temperature):
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 100
    tokens, logp, behavior_logp = draw(
        logits, torch.rand(50, dtype=torch.float64), Sampling(temperature=temperature, top_p=0.9)
    )
    assert logp.isfinite().all()
    assert behavior_logp.isfinite().all()
    if temperature == 1e-30:
        assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, top_k=2), Sampling(temperature=0.0)])
def test_impossible_tokens_are_fine_and_nan_is_not(sampling):
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, torch.nan, 1.0], [0.0, torch.inf, 1.0], [-torch.inf] * 3])
    for uniform in (0.0, 0.5, 0.999):
        tokens, logp, _ = draw(logits, torch.full((4,), uniform, dtype=torch.float64), sampling)
        assert tokens[0] != 1
        assert logp.isfinite().tolist() == [True, False, False, False]


def test_uniforms_are_uniform_and_depend_on_seed_step_and_row():
    stream, again, other = Uniforms(5, 40), Uniforms(5, 40), Uniforms(6, 40)
    drawn = torch.stack([stream.next() for _ in range(100)])
    assert torch.equal(drawn[:70], torch.stack([again.next() for _ in range(70)]))
    assert not torch.equal(drawn[0], other.next())
    assert len(drawn.unique()) == drawn.numel()
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 1e-3
