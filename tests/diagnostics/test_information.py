"""Card: preference_distill_hybrid.md, differential-information. The estimate from samples: the method's own test."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.diagnostics.information import differential_information, information_entropy, rejected_sampler

REF, REWARD = (torch.tensor(row, dtype=torch.float64) for row in ([0.5, 0.3, 0.2], [0.0, 1.0, 2.0]))


def best(beta, ref=REF):
    return (ref.log() + REWARD / beta).softmax(0)


def test_card_numbers():
    policy = best(1.0)
    np.testing.assert_allclose(policy, [0.179, 0.291944, 0.529056], atol=1e-6)
    np.testing.assert_allclose(differential_information(policy, REF), [0.090031, 0.244728, 0.665241], atol=1e-6)
    assert float(information_entropy(policy, REF)) == pytest.approx(0.832396, abs=5e-7)
    losers = rejected_sampler(policy, REF, 1.0)
    np.testing.assert_allclose(losers, [0.784399, 0.173139, 0.042463], atol=1e-6)
    ratio = REF / losers
    np.testing.assert_allclose(ratio / ratio.sum(), differential_information(policy, REF))


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_it_is_the_softmax_of_rewards_whatever_the_reference(beta):
    for ref in (REF, torch.tensor([0.05, 0.15, 0.8]).double()):
        np.testing.assert_allclose(differential_information(best(beta, ref), ref), (REWARD / beta).softmax(0))


def gradient(name, policy, losers, **settings):
    """At the policy, of a loss on all pairs with chosen arms from REF and rejected ones from `losers`, every label 1."""
    theta = policy.log().requires_grad_()
    arms = torch.tensor([[w, lost] for w in range(3) for lost in range(3) if w != lost])
    weight = (REF[arms[:, 0]] * losers[arms[:, 1]]).repeat_interleave(2).unsqueeze(1)
    rows = arms.flatten()
    batch = Batch(
        logp=theta.log_softmax(0)[rows, None],
        ref_logp=REF.log()[rows, None],
        label=[1.0, 0.0] * len(arms),
        group=torch.arange(len(arms)).repeat_interleave(2),
        weight=weight,
    )
    make(name, **settings)(batch)[0].backward()
    return theta.grad


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_dpo_on_its_pairs_ends_at_the_policy_and_other_scores_do_not(beta):
    policy = best(1.0)
    losers = rejected_sampler(policy, REF, beta)
    np.testing.assert_allclose(gradient("dpo", policy, losers, beta=beta), 0, atol=1e-15)
    assert gradient("dpo", policy, REF, beta=beta).abs().max() > 1e-3, "nor from other rejected ones"
    assert gradient("simpo", policy, losers, beta=beta, margin=0.0).abs().max() > 1e-3
    assert gradient("ipo@paper", policy, losers, beta=beta).abs().max() > 1e-3
