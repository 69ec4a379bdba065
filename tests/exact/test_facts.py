"""What is claimed of the methods, by enumeration: nothing here is sampled. The sizes of a bias: docs/results/exact_lab.md."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import root

from upslope import make
from upslope.exact import ExactLab
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean, SequenceMean, SequenceSum, TokenMean
from upslope.parts.kl import KL, KLInReward, kl_estimate
from upslope.parts.surrogate import ClippedSequenceRatio
from upslope.recipe import Part

EQUAL, UNEQUAL = ExactLab(2, 3, seed=1), ExactLab(3, 3, eos=0, seed=2)
both = pytest.mark.parametrize("lab", [EQUAL, UNEQUAL], ids=["equal lengths", "unequal lengths"])
group_sizes = pytest.mark.parametrize("size", [2, 3, 4])
LEAVE_ONE_OUT = GroupBaseline(baseline="leave_one_out", scale=None)
GROUP_MEAN = GroupBaseline(baseline="mean", scale=None)
INF = math.inf


def estimate(lab, recipe, **settings):
    found = lab.estimate(recipe, **settings)
    assert found.exact
    return found


# Baselines


@both
@pytest.mark.parametrize("offset", [0.0, -0.5, 10.0])
def test_reinforce_is_unbiased_whatever_constant_is_added_to_the_reward(lab, offset):
    assert estimate(lab, "reinforce", columns={"reward": lab.rewards + offset}).relative_bias < 1e-10


@both
@group_sizes
@pytest.mark.parametrize("name", ["rloo", "rloo@trl"])
def test_leave_one_out_is_unbiased(lab, size, name):
    assert estimate(lab, name, group_size=size).relative_bias < 1e-10


@both
@group_sizes
def test_a_group_mean_that_includes_the_sample_scales_by_exactly_g_minus_1_over_g(lab, size):
    found = estimate(lab, make("reinforce", advantage=GROUP_MEAN), group_size=size)
    assert found.scale == pytest.approx((size - 1) / size, rel=1e-10)
    assert found.direction_bias < 1e-10


@both
@group_sizes
def test_dr_grpo_is_the_true_gradient_times_g_minus_1_over_g_over_its_length(lab, size):
    found = estimate(lab, make("dr_grpo", length=50), group_size=size)
    assert found.scale == pytest.approx((size - 1) / size / 50, rel=1e-10)
    assert found.direction_bias < 1e-10


@pytest.mark.parametrize("lab", [EQUAL, ExactLab(2, 3, eos=0)], ids=["equal lengths", "unequal lengths"])
def test_a_batch_baseline_shrinks_by_the_number_of_rows_not_the_group_size(lab):
    mean = estimate(lab, make("reinforce", baseline="batch_mean"), group_size=1, groups=3)
    assert mean.scale == pytest.approx(2 / 3, rel=1e-10)
    assert not mean.packed
    assert estimate(lab, make("reinforce", baseline="leave_one_out"), group_size=1, groups=3).relative_bias < 1e-10


@both
def test_variance_at_equal_rollouts(lab):
    """Leave-one-out beats no baseline where rewards lie away from 0, and loses, by G/(G-1) and more, where they are centered."""
    centered = {"reward": lab.rewards - lab.expected_reward(lab.theta)}
    bare, rloo = estimate(lab, "reinforce", group_size=3), estimate(lab, "rloo", group_size=3)
    assert rloo.variance < 0.6 * bare.variance
    bare_centered = estimate(lab, "reinforce", group_size=3, columns=centered)
    rloo_centered = estimate(lab, "rloo", group_size=3, columns=centered)
    assert rloo_centered.variance == pytest.approx(rloo.variance, rel=1e-9)
    assert rloo_centered.variance > bare_centered.variance
    # Without a baseline the rows are independent: variance falls as 1/G.
    assert bare.variance == pytest.approx(estimate(lab, "reinforce", group_size=1).variance / 3, rel=1e-9)


# The standard deviation of the group


def coin(p):
    """One token, reward 1 with probability p."""
    return ExactLab(2, 1, reward=torch.tensor([0.0, 1.0])), torch.tensor(
        [[0.0, math.log(p / (1 - p))]], dtype=torch.float64
    )


@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 3, 4, 9, 40])
def test_grpo_weighs_a_prompt_by_its_success_probability(p, size):
    lab, theta = coin(p)
    k = np.arange(size + 1)
    spread = stats.binom.pmf(k, size, p) @ np.sqrt(k / size * (1 - k / size))
    weight = math.sqrt((size - 1) / size) * spread / (p * (1 - p))
    assert estimate(lab, make("grpo", eps=1e-12), group_size=size, theta=theta).scale == pytest.approx(weight, rel=1e-9)


def test_two_or_three_binary_rewards_leave_no_bias_in_grpo():
    for size, weight in ((2, math.sqrt(0.5)), (3, math.sqrt(4 / 3))):
        for p in (0.02, 0.5, 0.8):
            lab, theta = coin(p)
            found = estimate(lab, make("grpo", eps=1e-12), group_size=size, theta=theta)
            assert found.scale == pytest.approx(weight, rel=1e-9)


def test_large_groups_follow_twice_the_arcsine_of_the_root():
    lab, theta = coin(0.2)
    limit = lab.gradient(theta, lambda logits: 2 * torch.asin(lab.expected_reward(logits).sqrt()))
    errors = [
        estimate(lab, make("grpo", eps=1e-12), group_size=size, theta=theta, target=limit).relative_bias
        for size in (10, 40, 160)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)  # first order in 1 / G


def test_grpo_keeps_the_direction_for_binary_rewards_of_one_prompt_and_turns_it_for_graded_ones():
    binary = ExactLab(2, 3, reward=lambda tokens: float(sum(tokens) >= 2))
    assert estimate(binary, "grpo", group_size=4).direction_bias < 1e-9
    assert estimate(EQUAL, "grpo", group_size=4).direction_bias > 0.01
    assert estimate(EQUAL, "grpo", group_size=4).cosine < 1 - 1e-4


# Lengths and batch statistics


@group_sizes
def test_mean_over_a_sequences_tokens_is_biased_by_the_same_amount_at_every_group_size(size):
    found = estimate(UNEQUAL, make("rloo", aggregate=SequenceMean()), group_size=size)
    # Its expectation is that of the reward's gradient with every row's score over its length.
    leaf = UNEQUAL.theta.clone().requires_grad_()
    score = UNEQUAL.logp(leaf).sum(1) / UNEQUAL.mask.sum(1)
    weight = UNEQUAL.probability(UNEQUAL.theta) * (UNEQUAL.rewards - UNEQUAL.expected_reward(UNEQUAL.theta))
    torch.testing.assert_close(found.mean, torch.autograd.grad(weight @ score, leaf)[0])
    assert found.direction_bias > 0.1
    assert estimate(EQUAL, make("rloo", aggregate=SequenceMean()), group_size=size).direction_bias < 1e-9


def test_the_bias_of_the_batchs_token_mean_falls_with_the_batch():
    biases = [
        estimate(UNEQUAL, make("rloo", aggregate=TokenMean()), group_size=size).direction_bias for size in (2, 4, 6)
    ]
    assert 0.02 < biases[2] < biases[1] < biases[0]
    assert biases[0] / biases[2] == pytest.approx(3, rel=0.35)


def test_whitening_over_the_batch_is_biased_less_in_a_larger_batch():
    lab = ExactLab(2, 3, eos=0)
    biases = [estimate(lab, "reinforce_pp", group_size=1, groups=rows).direction_bias for rows in (6, 12)]
    assert 0.01 < biases[1] < 0.8 * biases[0]


def test_dynamic_sampling_only_divides_by_the_share_of_groups_kept():
    lab = ExactLab(2, 3, reward=lambda tokens: float(tokens == (1, 1, 1)))
    p = float(lab.expected_reward(lab.theta))
    plain, kept = estimate(lab, "grpo", group_size=4), estimate(lab, "dapo", group_size=4)
    assert kept.kept == pytest.approx(1 - p**4 - (1 - p) ** 4, rel=1e-9)
    torch.testing.assert_close(kept.mean * kept.kept, plain.mean, rtol=1e-9, atol=1e-12)
    assert kept.relative_variance < plain.relative_variance


def test_gae_is_unbiased_at_lambda_1_with_any_critic_and_at_any_lambda_with_the_exact_one():
    exact = UNEQUAL.value(UNEQUAL.theta)
    for lam in (1.0, 0.95, 0.0):
        recipe = make("ppo_llm", lam=lam, whiten=False, reward=None, aggregate=SequenceSum())
        assert estimate(UNEQUAL, recipe, group_size=1).relative_bias < 1e-10
        wrong = estimate(UNEQUAL, recipe, group_size=1, columns={"old_value": exact / 2}).relative_bias
        assert (wrong < 1e-10) == (lam == 1.0)


# KL penalties: the numbers of the two-token tree


TREE = ExactLab(2, 2, reward=torch.zeros(4))
THETA = torch.tensor([[0.3, -0.2], [0.8, -0.5], [-0.4, 0.1]], dtype=torch.float64)
REF = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.2, -0.2]], dtype=torch.float64)
BARE = make("reinforce")
KL_GRADIENT = [0.135027, 0.136187, -0.079851]
PER_TOKEN = [0.117502, 0.136187, -0.079851]


@dataclass(frozen=True)
class PlainK1(Part):
    """What KL refuses: k1 in the loss without a ratio."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    def __call__(self, batch):
        return kl_estimate(batch.logp, batch.ref_logp, "k1")


def penalty_gradient(recipe, **settings):
    mean = estimate(TREE, recipe, group_size=1, **{"theta": THETA, "ref": REF, **settings}).mean
    assert torch.allclose(mean.sum(1), torch.zeros(3, dtype=torch.float64))
    return -mean[:, 0].numpy()


def test_the_trees_sequence_kl_and_its_gradient():
    assert float(TREE.kl(THETA, REF)) == pytest.approx(0.175870, abs=5e-7)
    gradient = TREE.gradient(THETA, lambda theta: TREE.kl(theta, REF))
    np.testing.assert_allclose(gradient[:, 0].numpy(), KL_GRADIENT, atol=5e-7)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (PlainK1(), [0, 0, 0]),
        (KL(1.0, "k1", ratio_weighted=True), PER_TOKEN),
        (KL(1.0, "k2"), PER_TOKEN),
        (KL(1.0, "k3"), [0.122459, 0.177921, -0.083492]),
        (KL(1.0, "k3", ratio_weighted=True), PER_TOKEN),
    ],
    ids=["k1", "ratio k1", "k2", "k3", "ratio k3"],
)
def test_estimators_in_the_loss(part, expected):
    np.testing.assert_allclose(penalty_gradient(BARE.replace(regularizer=part)), expected, atol=5e-7)


def test_k3_in_the_loss_is_the_forward_kl_of_each_step_at_the_policys_own_prefixes():
    leaf = THETA.clone().requires_grad_()
    step = (REF.softmax(1) * (REF.log_softmax(1) - leaf.log_softmax(1))).sum(1)
    visits = torch.cat([torch.ones(1, dtype=torch.float64), THETA[0].softmax(0)])
    (expected,) = torch.autograd.grad(visits @ step, leaf)
    np.testing.assert_allclose(penalty_gradient(BARE.replace(regularizer=KL(1.0, "k3"))), expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_k1_in_the_reward_is_exact(level):
    found = penalty_gradient(BARE.replace(reward=KLInReward(1.0, level)))
    np.testing.assert_allclose(found, KL_GRADIENT, atol=5e-7)


def test_half_the_square_of_the_sequences_log_ratio_is_exact_too():
    mirror = make("kimi_k15_md", tau=1.0, advantage=None, reward=None)
    found = penalty_gradient(mirror, old=REF, behavior=THETA, columns={"advantage": torch.zeros(4)})
    np.testing.assert_allclose(found, KL_GRADIENT, atol=5e-7)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_do_not_even_point_the_right_way(estimator):
    summed = kl_estimate(TREE.logp(THETA), TREE.logp(REF), estimator).sum(1)
    assert penalty_gradient(BARE, columns={"reward": -summed}) @ KL_GRADIENT < 0


def test_one_step_numbers_and_values():
    policy, ref = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]))
    lab = ExactLab(3, 1, reward=torch.zeros(3))
    values = [
        float(lab.probability(policy) @ kl_estimate(lab.logp(policy), lab.logp(ref), k).sum(1))
        for k in ("k1", "k2", "k3")
    ]
    np.testing.assert_allclose(values, [0.025267, 0.024862, 0.025267], atol=5e-7)
    for k, expected in (("k2", [0.098938, -0.093885, -0.005053]), ("k3", [0.1, -0.1, 0.0])):
        found = estimate(lab, BARE.replace(regularizer=KL(1.0, k)), group_size=1, theta=policy, ref=ref)
        np.testing.assert_allclose(-found.mean[0].numpy(), expected, atol=5e-7)


@both
def test_rloo_with_a_reference_is_unbiased_for_the_reward_less_the_kl(lab):
    ref = lab.theta.flip(1)
    target = lab.gradient(lab.theta, lambda theta: lab.expected_reward(theta) - 0.03 * lab.kl(theta, ref))
    assert estimate(lab, "rloo", group_size=3, ref=ref, target=target).relative_bias < 1e-10


# Off-policy


PLAIN = {"advantage": LEAVE_ONE_OUT, "reward": None, "regularizer": None}
TOKEN = {**PLAIN, "aggregate": SequenceSum()}
SEQUENCE_RATIO = make("rloo@trl", **PLAIN).replace(
    surrogate=ClippedSequenceRatio(0.0, INF, length_normalized=False), aggregate=RowMean()
)
TOKEN_RATIOS = [make("cispo", ratio_max=INF, **TOKEN), make("grpo", ratio_low=0.0, ratio_high=INF, **TOKEN)]
GEOMETRIC = [
    make("gspo", ratio_low=0.0, ratio_high=INF, **PLAIN),
    make("gmpo", log_ratio_low=-INF, log_ratio_high=INF, **PLAIN),
]


def older(lab, step):
    away = torch.randn(lab.theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return lab.theta + step * away


@both
def test_the_ratio_of_the_sequence_is_unbiased_off_policy(lab):
    assert estimate(lab, SEQUENCE_RATIO, old=older(lab, 0.8)).relative_bias < 1e-10


@both
@pytest.mark.parametrize("recipe", TOKEN_RATIOS, ids=["cispo", "grpo"])
def test_the_unclipped_ratio_per_token_follows_ppos_surrogate(lab, recipe):
    """Sum over prefixes of the old policy's visits times E_theta[Q_old - V_old], the value of the first position aside."""
    old = older(lab, 0.8)
    baseline = lab.expected_reward(old)

    def surrogate(theta):
        ratio = (lab.logp(theta) - lab.logp(old)).exp() * lab.mask
        return lab.probability(old) @ ((lab.rewards - baseline) * ratio.sum(1))

    assert estimate(lab, recipe, old=old, target=lab.gradient(lab.theta, surrogate)).relative_bias < 1e-10
    biases = [estimate(lab, recipe, old=older(lab, step)).relative_bias for step in (0.1, 0.05)]
    assert biases[0] > 0.01
    assert biases[0] / biases[1] == pytest.approx(2, rel=0.1)  # first order in the distance


@pytest.mark.parametrize("recipe", [*TOKEN_RATIOS, *GEOMETRIC], ids=["cispo", "grpo", "gspo", "gmpo"])
def test_every_ratio_is_exact_for_one_position(recipe):
    lab = ExactLab(4, 1)
    assert estimate(lab, recipe, old=older(lab, 0.8)).relative_bias < 1e-10


def test_the_geometric_mean_is_biased_off_policy_and_only_there():
    for recipe in GEOMETRIC:
        assert estimate(EQUAL, recipe, group_size=3).direction_bias < 1e-10
        biases = [estimate(EQUAL, recipe, old=older(EQUAL, step)).direction_bias for step in (0.1, 0.05)]
        assert biases[0] > 0.01
        assert biases[0] / biases[1] == pytest.approx(2, rel=0.1)  # first order in the distance
    gspo, gmpo = (estimate(EQUAL, recipe, old=older(EQUAL, 0.4)).mean for recipe in GEOMETRIC)
    torch.testing.assert_close(gspo, gmpo)


# Kimi k1.5's mirror descent


def test_the_fixed_point_of_mirror_descent_is_a_tilt_by_g_minus_1_over_g_of_the_reward():
    lab = ExactLab(2, 2, seed=3)
    errors = {}
    for size, tau in [(2, 2.0), (2, 4.0), (3, 4.0)]:
        there = lab.probability(fixed_point(lab, tau, size))

        def distance(strength, there=there):
            tilted = lab.probability(lab.theta) * (strength * lab.rewards).exp()
            return float((there - tilted / tilted.sum()).abs().sum() / 2)

        errors[size, tau] = distance((size - 1) / size / tau)
        # Against the paper's exp(R / tau), a share of about 1/G of the move is missing.
        move = float((there - lab.probability(lab.theta)).abs().sum() / 2)
        assert distance(1 / tau) / (distance(1 / tau) + move) == pytest.approx(1 / size, rel=0.05)
    assert errors[2, 4.0] < 1e-5
    assert errors[2, 2.0] / errors[2, 4.0] == pytest.approx(8, rel=0.15)  # third order in 1 / tau


def fixed_point(lab, tau, size):
    recipe = make("kimi_k15_md", tau=tau, reward=None)

    def logits(first):
        column = torch.tensor(first, dtype=torch.float64)
        return torch.stack([column, torch.zeros_like(column)], 1)

    def expected(first):
        return lab.estimate(recipe, group_size=size, theta=logits(first), old=lab.theta).mean[:, 0].numpy()

    solution = root(expected, (lab.theta[:, 0] - lab.theta[:, 1]).numpy(), tol=1e-12)
    assert solution.success, solution.message
    return logits(solution.x)
