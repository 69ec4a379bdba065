"""Card: preference_distill_hybrid.md, rl-perspective-rlhf."""

import numpy as np
import pytest
import torch

from upslope import UsageError
from upslope.diagnostics.compounding import growth, on_path, regret, success
from upslope.exact import ExactLab

EPS = 0.05


@pytest.mark.parametrize("recovery", [0.0, 0.3, 1 - EPS])
def test_closed_form_is_the_chain(recovery):
    step = np.array([[1 - EPS, EPS], [recovery, 1 - recovery]])
    state, expected = np.array([1.0, 0.0]), []
    for _ in range(30):
        state = state @ step
        expected.append(state[0])
    np.testing.assert_allclose(on_path(EPS, 30, recovery), expected, atol=1e-13)


def test_card_success_and_rates():
    assert success(0.1, 20) == pytest.approx(0.9**20)
    assert regret(1e-4, 20) == pytest.approx(1e-4 * 20 * 21 / 2, rel=1e-2)
    assert regret(EPS, 50, 1 - EPS) == pytest.approx(EPS * 50)
    assert growth(1e-4, 50) == pytest.approx(2, abs=0.05)
    assert growth(1e-4, 50, 1 - 1e-4) == pytest.approx(1, abs=1e-9)
    assert on_path(0.0, 3).tolist() == [1, 1, 1]


def test_wrong_input():
    with pytest.raises(UsageError, match=r"eps=1.5"):
        on_path(1.5, 3)
    with pytest.raises(UsageError, match=r"steps=0"):
        regret(0.1, 0)


def path(word):
    """Whether the walker is on the path after each of its actions: 0 keeps it there, only 1 returns to it."""
    on, states = True, []
    for action in word:
        on = action == 0 if on else action == 1
        states.append(on)
    return states


def chain(steps):
    """A lab whose reward is the number of steps on the path, the start, and an expert who errs with EPS wherever it is."""
    lab = ExactLab(vocabulary=2, horizon=steps, reward=lambda word: float(sum(path(word))))
    right = [0 if not prefix or path(prefix)[-1] else 1 for prefix in lab.prefixes]
    expert = torch.full_like(lab.theta, EPS)
    expert[torch.arange(len(right)), right] = 1 - EPS
    return lab, torch.zeros_like(lab.theta), expert.log()


def demonstrations(lab):
    """A writer of flawless demonstrations: nearly all of its mass on the path without a wrong step."""
    writer = torch.full_like(lab.theta, -20.0)
    writer[:, 0] = 0.0
    return writer


def test_imitation_compounds_and_on_policy_distillation_does_not():
    """Mean gradients of the real recipes, exactly. A clone errs with EPS where demonstrations have been; after its first slip it
    is off the path in half of all steps, whether it has come back or not. Distillation on its own states ends at the expert.
    """
    lengths, regrets = (2, 3, 6), {"cloned": [], "corrected": []}
    for steps in lengths:
        lab, cloned, expert = chain(steps)
        columns = {"teacher_logp": lab.logp(expert)}
        while (eps := float(cloned[0].softmax(0)[1])) > EPS:
            cloned = cloned + 3.0 * lab.estimate("seqkd", group_size=1, theta=cloned, old=demonstrations(lab)).mean
        off = [n for n, prefix in enumerate(lab.prefixes) if any(prefix)]
        assert cloned[off].abs().max() < 1e-6, "no demonstration has been there"
        towards = lab.estimate("opd", group_size=1, theta=cloned, columns=columns).mean[off]
        assert ((towards * (expert - cloned)[off]).sum(1) > 0).all(), "the policy itself goes everywhere"
        assert lab.estimate("opd", group_size=1, theta=expert, columns=columns).mean.abs().max() < 1e-12
        for name, theta in (("cloned", cloned), ("corrected", expert)):
            regrets[name].append(steps - float(lab.expected_reward(theta)))
        assert regrets["cloned"][-1] == pytest.approx((regret(eps, steps) + 1 - success(eps, steps)) / 2)
        assert regrets["corrected"][-1] == pytest.approx(regret(EPS, steps, 1 - EPS))
    exponent = {name: np.log2(found[2] / found[1]) for name, found in regrets.items()}
    assert exponent["cloned"] > 1.4
    assert exponent["corrected"] == pytest.approx(1)
