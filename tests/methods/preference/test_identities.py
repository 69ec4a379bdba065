"""Card file: preference_distill_hybrid.md, exact cross-identities 2 and 10, those that are not in a method's own test.

Methods that are not in the library stand here as their formula in NumPy.
"""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.parts.kl import KLInReward

LP, REF, BETA = np.array([-4.0, -6.0]), np.array([-5.0, -5.5]), 0.1


def log_sigmoid(z):
    return -np.logaddexp(0, -z)


def dpo(card, **settings):
    return float(make("dpo", **settings)(card)[0])


def test_gepo_of_one_winner_and_one_loser(card):
    def gepo(winners, losers, spread=0.3):
        return -log_sigmoid(BETA * (np.mean(winners) - np.mean(losers))) + spread * np.var(winners)

    assert gepo([LP[0] - REF[0]], [LP[1] - REF[1]]) == pytest.approx(dpo(card))


def test_cpl_with_a_reference_and_segments_of_one_step(card):
    def cpl(winner, loser, bias):
        return -(winner - np.logaddexp(winner, bias * loser))

    scores = BETA * (LP - REF)  # alpha is beta
    assert cpl(*scores, bias=1.0) == pytest.approx(dpo(card))
    assert cpl(*scores, bias=0.5) != pytest.approx(dpo(card))


def test_dno_with_hard_labels_is_dpo_from_the_previous_iterate(card):
    previous = np.array([-4.5, -5.2])
    dno = -log_sigmoid(BETA * (LP[0] - previous[0]) - BETA * (LP[1] - previous[1]))
    column = torch.tensor(previous)[:, None] / card.length[:, None] * card.mask
    assert dno == pytest.approx(dpo(card.replace(ref_logp=column)))


def test_hypo_without_its_online_term_is_rpo_without_its_likelihood(card):
    def hypo(weight, online=(0.3, -0.2)):
        return -log_sigmoid(BETA * ((LP - REF) @ [1, -1])) + weight * np.mean(online)

    recipe = make("rpo_sft", beta=BETA)
    assert hypo(0.0) == pytest.approx(float(recipe.replace(terms=())(card)[0]))
    assert hypo(0.0) == pytest.approx(float(make("rdpo", flip_rate=0.0)(card)[0]))
    assert hypo(1.0) != pytest.approx(dpo(card))


def test_the_differential_information_of_dpos_optimum_is_the_softmax_of_rewards(bandit):
    batch, _, ref, reward = bandit
    theta = ref.log().requires_grad_()
    recipe, optimizer = make("dpo", beta=1.0), torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-13)

    def closure():
        optimizer.zero_grad()
        loss = recipe(batch(theta))[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    best = theta.detach().softmax(0)
    np.testing.assert_allclose(best, [0.179, 0.291944, 0.529056], atol=1e-5)
    information = best / ref / (best / ref).sum()
    np.testing.assert_allclose(information, reward.softmax(0), atol=1e-5)
    assert float(-(information * information.log()).sum()) == pytest.approx(0.832396, abs=1e-5)
    losers = ref / best * ref / (ref / best * ref).sum()
    np.testing.assert_allclose(losers, [0.784399, 0.173139, 0.042463], atol=1e-5)


def test_f_dpg_with_the_reverse_kl_is_reinforce_with_a_kl_penalty(bandit):
    """Its pseudo-reward -(log u + 1), u = policy Z / (ref exp(R / beta)), is (R - beta log(policy / ref)) / beta + constant."""
    _, _, ref, reward = bandit
    beta, policy = 0.5, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    target = ref * (reward / beta).exp()
    f_dpg = -((policy / (target / target.sum())).log() + 1)
    rows = {"logp": policy.log()[:, None], "old_logp": policy.log()[:, None], "ref_logp": ref.log()[:, None]}
    batch = Batch(**rows, reward=reward, group=[0, 0, 0])
    shaped = KLInReward(beta=beta, level="sequence")(batch)
    np.testing.assert_allclose(f_dpg - f_dpg @ policy, (shaped - shaped @ policy) / beta, rtol=1e-12)
