"""Card: preference_distill_hybrid.md, f-dpg."""

import math

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.methods.preference.f_dpg import TargetDivergence, slope
from upslope.testing import batch_of

TARGET, POLICY = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
GENERATORS = {  # f(u) of D_f(policy || target) = E_target[f(policy / target)]
    "js": lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
    "forward_kl": lambda u: -np.log(u),
    "reverse_kl": lambda u: u * np.log(u),
    "chi2": lambda u: u + 1 / u,
    "tv": lambda u: abs(u - 1) / 2,
}


def drawn(theta, reward=(0.0, 0.0, 0.0), ref=TARGET):
    """Ten rows that hold every arm exactly as often as the policy draws it."""
    arms = torch.arange(3).repeat_interleave(torch.tensor(10 * POLICY).round().long())
    logp = theta.log_softmax(0)[arms, None]
    return Batch(
        logp=logp, old_logp=logp.detach(), ref_logp=torch.tensor(ref).log()[arms, None],
        reward=torch.tensor(reward).double()[arms], group=[0] * 10, prompt_key=[7] * 10,
    )  # fmt: skip


@pytest.mark.parametrize("divergence", GENERATORS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_gradient_is_that_of_the_divergence(divergence, scale):
    """Also for a target that is not normalized: exp(R) scales it. tv has a kink where policy and target agree."""
    theta, target = torch.tensor(np.log(POLICY)).requires_grad_(), TARGET
    if divergence == "tv":
        target = np.array([0.2, 0.35, 0.45])
    recipe = make("f_dpg", divergence=divergence)
    (gradient,) = torch.autograd.grad(recipe(drawn(theta, [math.log(scale)] * 3, target))[0], theta)

    def value(logits):
        policy = np.exp(logits) / np.exp(logits).sum()
        return (target * GENERATORS[divergence](policy / target)).sum()

    at = np.log(POLICY)
    expected = [(value(at + e) - value(at - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    if divergence == "js":
        np.testing.assert_allclose(gradient, [0.14513, -0.019924, -0.125206], atol=5e-6)


def test_slopes_at_the_target():
    found = {d: float(slope(torch.zeros(()).double(), d, 100.0)) for d in GENERATORS}
    assert found == pytest.approx({"js": 0, "forward_kl": -1, "reverse_kl": 1, "tv": 0, "chi2": 0}, abs=1e-12)


def test_a_filter_gives_excluded_completions_the_slope_at_infinity():
    batch = drawn(torch.tensor(np.log(POLICY)), [1.0, 0.0, 1.0], POLICY)
    for divergence, excluded in (("js", math.log(2)), ("forward_kl", 0.0), ("tv", 0.5), ("chi2", 1.0)):
        part = TargetDivergence(divergence=divergence, target="filter")
        advantage, state = part(batch, part.init())
        assert float(-advantage[5]) == pytest.approx(excluded)
        assert math.exp(state["log_sum"]["7"]) == pytest.approx(7), "the policy's mass on what is kept, times ten draws"
    none = batch.replace(reward=torch.zeros(10))
    part = TargetDivergence(target="filter")
    advantage, state = part(none, part.init())
    np.testing.assert_allclose(advantage, -math.log(2))
    assert part(batch, state)[0].isfinite().all()
    with pytest.raises(UsageError, match="infinite"):
        TargetDivergence(divergence="reverse_kl", target="filter")


def test_the_reverse_kl_is_kl_penalized_reinforce():
    batch = batch_of([[1, 0, 0.5], [0, 2]], seed=3)
    batch = batch.replace(old_logp=batch.logp)
    part = TargetDivergence(divergence="reverse_kl", beta=0.5)
    advantage, _ = part(batch, part.init())
    penalized = batch.reward / 0.5 - ((batch.logp - batch.ref_logp) * batch.mask).sum(1)
    rest = advantage - penalized
    for group in (rest[:3], rest[3:]):
        torch.testing.assert_close(group, group[:1].expand_as(group))


def test_partition_and_baseline_over_steps():
    part = TargetDivergence(window=4)
    first, second = (batch_of([[1, 0, 0.5], [0, 1]], seed=seed) for seed in (1, 2))
    weights = [part.log_weight(batch).exp() for batch in (first, second)]
    advantage, state = part(first, part.init())
    again, after = part(second, state)
    keys = first.prompt_key
    for key in (1000, 1001):
        z = torch.cat([w[keys == key] for w in weights]).mean()
        assert math.exp(after["log_sum"][str(key)]) / after["count"][str(key)] == pytest.approx(float(z))
        log_u = (z / weights[1][keys == key]).log()
        expected = -(math.log(2) - (1 + (-log_u).exp()).log()) - advantage.mean()
        torch.testing.assert_close(again[keys == key], expected)
    assert after["sizes"] == [5], "five of the last step are at least four"
    assert after["sums"] == pytest.approx([float((again + advantage.mean()).sum())])
    assert state["sizes"] == [5]


def test_samples_of_a_policy_that_is_the_target_have_no_gradient():
    theta = torch.tensor(np.log(POLICY)).requires_grad_()
    for divergence in GENERATORS:
        (gradient,) = torch.autograd.grad(make("f_dpg", divergence=divergence)(drawn(theta, ref=POLICY))[0], theta)
        np.testing.assert_allclose(gradient, 0, atol=1e-8)
