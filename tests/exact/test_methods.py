"""Which objective a method's mean gradient follows, by enumeration. Sizes: docs/results/exact_methods.md."""

import pytest
import torch

from upslope import make
from upslope.batch import Batch
from upslope.exact import ExactLab
from upslope.methods.rlvr.riskpo import BundledRisk
from upslope.methods.rlvr.tempsamp_r1 import SoftReward
from upslope.parts.advantage import GroupBaseline

LAB = ExactLab(
    2, 2, prompts=2, seed=1, reward=torch.tensor([0.0, 0, 0, 1, 0, 1, 1, 1])
)  # right or wrong, equal lengths
P = LAB.prompt_mean(LAB.theta, LAB.rewards)
OLD = LAB.theta + 0.4 * torch.randn(LAB.theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
GIVEN = {
    "stratum": LAB.sequences[:, 0],
    "prediction": torch.zeros(8),
    "masked_logp": LAB.logp(LAB.theta / 2),
    "anchor_logp": LAB.logp(LAB.theta),
}
GRADED = ExactLab(2, 3, eos=0, seed=1)
BOTH_HALVES = GroupBaseline(scale=None)


def mean_of(recipe, **settings):
    found = LAB.estimate(
        make(recipe) if isinstance(recipe, str) else recipe, columns=GIVEN, **{"group_size": 4, **settings}
    )
    assert found.exact
    return found.mean


def apart(mean, target):
    """|mean - c target| / |mean| for the best c: 0 for a multiple."""
    return float((mean - (mean * target).sum() / (target * target).sum() * target).norm() / mean.norm())


def summed(weight):
    return LAB.gradient(LAB.theta, lambda theta: weight @ LAB.prompt_mean(theta, LAB.rewards))


def logp(theta):
    return LAB.logp(theta).sum(1)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "dr_grpo", "kimi_k15_md", "nft_negative", "topr"])
def test_the_success_probability_of_every_prompt_counts_alike(name):
    assert apart(mean_of(name), LAB.gradient(LAB.theta)) < 1e-9


@pytest.mark.parametrize(
    "name",
    ["gspo", "gmpo", "cispo", "bapo_balanced", "r2vpo", "kl_cov", "remix", "apo_asymmetric", "q_hawkeye", "dapo", "aepo_arbitrary"],
)  # fmt: skip
def test_on_policy_these_are_grpo_up_to_a_factor_and_none_is_the_true_gradient(name):
    mean = mean_of(name)
    assert apart(mean, mean_of("grpo")) < 1e-4  # they differ in eps
    assert apart(mean, LAB.gradient(LAB.theta)) > 0.01


def test_disco_without_tau_climbs_the_log_odds_where_a_group_is_mixed():
    mixed = 1 - P**4 - (1 - P) ** 4
    assert apart(mean_of(make("disco", tau=None)), summed(mixed / (P * (1 - P)))) < 1e-9
    assert apart(mean_of("disco"), summed(mixed / (P * (1 - P)))) < 0.01


def test_in_large_groups_disco_lifts_hard_prompts_over_even_ones_more_than_grpo_does_and_nft_not_at_all():
    """At p = 0.1 against p = 0.5: 1 / (p (1 - p)) is 2.78 times as large, its root 1.67 times."""
    coin = ExactLab(2, 1, reward=torch.tensor([0.0, 1.0]))

    def weight(name, p):
        theta = torch.tensor([[1 - p, p]], dtype=torch.float64).log()
        found = coin.estimate(name, group_size=64, theta=theta)
        return found.scale * found.kept

    ratios = {name: weight(name, 0.1) / weight(name, 0.5) for name in ("disco", "grpo", "nft_negative")}
    assert ratios["disco"] == pytest.approx(2.78, rel=0.02)
    assert ratios["grpo"] == pytest.approx(1.67, rel=0.05)
    assert ratios["nft_negative"] == pytest.approx(1, rel=0.01)


def test_dividing_by_the_batchs_deviation_is_biased_less_in_a_larger_batch_and_by_the_groups_is_not():
    lab = ExactLab(2, 1, prompts=2, seed=29, reward=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    small, large = ({n: lab.estimate(n, group_size=4, groups=g) for n in ("lite_ppo", "grpo")} for g in (2, 4))
    assert 0 < large["lite_ppo"].direction_bias < 0.8 * small["lite_ppo"].direction_bias
    assert large["grpo"].direction_bias == pytest.approx(small["grpo"].direction_bias)


def test_the_optimal_baseline_is_unbiased_without_the_row_itself_and_otherwise_by_order_1_over_g():
    for size in (2, 3, 5):
        assert GRADED.estimate(make("oblr_po", leave_one_out=True), group_size=size).direction_bias < 1e-9
    biases = [GRADED.estimate("oblr_po", group_size=size).direction_bias for size in (8, 16)]
    assert biases[0] / biases[1] == pytest.approx(2, rel=0.15)


def test_known_exactly_it_has_the_least_variance_of_all_constants_but_estimated_from_few_rows_it_can_lose_to_rloo():
    scores = torch.stack(
        [GRADED.gradient(GRADED.theta, lambda theta, i=i: GRADED.logp(theta)[i].sum()) for i in range(4)]
    )
    weight = GRADED.probability(GRADED.theta) * scores.square().sum((1, 2))
    best = float(weight @ GRADED.rewards / weight.sum())

    def variance(baseline):
        return GRADED.estimate("reinforce", group_size=1, columns={"reward": GRADED.rewards - baseline}).variance

    assert variance(best) < min(
        variance(best - 0.01), variance(best + 0.01), variance(GRADED.expected_reward(GRADED.theta))
    )
    plain = make("reinforce", advantage=GroupBaseline("leave_one_out", scale=None))
    estimated = make("oblr_po", leave_one_out=True)
    ratios = [
        GRADED.estimate(estimated, group_size=g).relative_variance
        / GRADED.estimate(plain, group_size=g).relative_variance
        for g in (3, 12)
    ]
    assert ratios[1] < 1 < ratios[0]


def test_epos_bonus_and_gtpos_penalty_are_each_one_half_of_the_entropys_gradient():
    """EPO has the gradient at the policy's own prefixes, GTPO minus that through the visits: neither is the entropy's."""
    epo = mean_of(make("epo_agent", coefficient=1.0, advantage=BOTH_HALVES)) - mean_of(make("grpo", scale=None))
    gtpo = mean_of(make("gtpo_trajectory", penalty=1.0, weight=None, limit=None)) - mean_of(make("grpo", scale=None))
    entropy = LAB.gradient(LAB.theta, LAB.entropy) / 2  # the mean over two tokens
    through_visits = -2 * gtpo  # its penalty is the mean over tokens
    torch.testing.assert_close(epo + through_visits, entropy, atol=1e-9, rtol=1e-9)
    assert apart(epo, entropy) > 0.05
    assert apart(gtpo, entropy) > 0.05


def test_vppos_term_in_logp_is_the_kl_from_the_old_policy_and_nothing_on_policy():
    vppo = make("vppo", curriculum="grpo")
    bare = vppo.replace(regularizer=None)
    torch.testing.assert_close(mean_of(vppo), mean_of(bare), atol=1e-12, rtol=1e-12)
    chance = LAB.probability(OLD) / 2
    kl = LAB.gradient(LAB.theta, lambda theta: chance @ (logp(OLD) - logp(theta)))
    torch.testing.assert_close(mean_of(vppo, old=OLD) - mean_of(bare, old=OLD), -0.06 / 2 * kl, atol=1e-12, rtol=1e-9)


def test_topr_off_policy_tapers_the_failures():
    chance = LAB.probability(OLD) / 2

    def tapered(theta):
        ratio = (logp(theta) - logp(OLD)).exp()
        return chance @ torch.where(LAB.rewards > 0, logp(theta), -torch.where(ratio < 1, ratio, 1 + ratio.log()))

    assert apart(mean_of("topr", old=OLD), LAB.gradient(LAB.theta, tapered)) < 1e-9
    assert apart(mean_of("topr", old=OLD), LAB.gradient(LAB.theta)) > 0.05


def test_the_ratios_variance_is_what_r2vpo_penalizes_off_policy():
    chance, gain = LAB.probability(OLD) / 2, LAB.rewards - LAB.prompt_mean(OLD, LAB.rewards)[LAB.prompt]

    def penalized(theta):
        ratio = (LAB.logp(theta) - LAB.logp(OLD)).exp()
        return chance @ (0.75 * gain.unsqueeze(1) * ratio - 0.1 * (ratio - 1) ** 2).sum(1)

    assert apart(mean_of(make("r2vpo", scale=None), old=OLD), LAB.gradient(LAB.theta, penalized)) < 1e-9


def test_strata_alone_leave_no_incentive_between_them():
    mean = mean_of(make("stratified_grpo", alpha=1.0, scale=None))
    assert float(mean[[0, 3]].norm()) < 1e-12  # the first token is the stratum
    assert apart(mean, LAB.gradient(LAB.theta)) > 0.1


def test_tempsamps_reference_row_is_supervised_learning_weighted_by_its_advantage():
    reward, best = LAB.rewards, [3, 5]
    soft = SoftReward()(Batch(logp=torch.zeros(8, 1), reward=reward))
    gap = soft[best] - LAB.prompt_mean(LAB.theta, soft)
    target = LAB.gradient(LAB.theta, lambda theta: (LAB.prompt_mean(theta, soft) + gap / 3 * logp(theta)[best]).sum())
    assert apart(mean_of(make("tempsamp_r1", scale=None)), target) < 1e-9


class FixedQuantiles(BundledRisk):
    def init(self):
        return {"step": 1, "low": 0.5, "high": 1.5}


def risk_of(lab):
    """E[(w C + V) / (w + 1)] of the sum of two prompts' rewards, quantiles 0.5 and 1.5, as a function of theta."""
    total = (lab.rewards.unsqueeze(1) + lab.rewards).flatten()
    below, between = (0.5 - total).clamp(min=0), (total - 0.5).clamp(min=0) - (total - 1.5).clamp(min=0) - 1
    score = (-1.5 * below / 0.2 + between / 0.7) / 2.5

    def risk(theta):
        chance = lab.probability(theta) / 2
        return (chance.unsqueeze(1) * chance).flatten() @ score

    return risk


def test_riskpo_with_fixed_quantiles_follows_the_risk_of_a_random_bundle_which_for_right_or_wrong_is_the_mean():
    recipe = make("riskpo").replace(advantage=FixedQuantiles(bundle_size=2, scale=None, credit="uniform"))
    graded = ExactLab(2, 2, prompts=2, seed=1)
    for lab, turned in ((LAB, False), (graded, True)):
        found = lab.estimate(recipe, group_size=1, groups=2)
        assert apart(found.mean, lab.gradient(lab.theta, risk_of(lab))) < 1e-4  # eps
        assert (apart(found.mean, lab.gradient(lab.theta)) > 0.05) == turned


def test_polychromic_is_unbiased_for_the_score_of_a_set_up_to_a_factor():
    """(1 - 1/M) (1 - n/N) of it, since the sets of a group share members, and over 2 tokens; M = 4, n = 2, N = 4."""
    lab = ExactLab(2, 2, reward=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    score = (lab.rewards.unsqueeze(1) + lab.rewards) / 2 * ~torch.eye(4, dtype=torch.bool)

    def objective(theta):
        chance = lab.probability(theta)
        return (chance.unsqueeze(1) * chance * score).sum()

    target = lab.gradient(lab.theta, objective)
    found = lab.estimate(make("polychromic_ppo", size=2), group_size=4, target=target, shuffle=True, samples=600)
    assert not found.exact
    factor = 3 / 4 * (1 - 2 / 4) / 2 / 2
    assert float(((found.mean - factor * target) / found.standard_error).abs().max()) < 4
    assert float((target / found.standard_error).abs().max()) > 10
