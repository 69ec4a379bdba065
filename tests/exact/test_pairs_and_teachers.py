"""Facts of preference learning and distillation, by enumeration of a policy over sequences."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.diagnostics.online_offline import Draw, judged, pair_batch, population, preference
from upslope.exact import ExactLab
from upslope.parts.aggregate import SequenceSum
from upslope.parts.kl import KL
from upslope.recipe import Part
from upslope.testing import batch_of, value_and_gradient

LAB = ExactLab(vocabulary=3, horizon=3, eos=0, seed=4)
REWARD = 3 * LAB.rewards
REF = LAB.theta
OTHER = REF + torch.randn(REF.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def tilted(lab, ref, beta, reward):
    """Logits [N, V] of ref exp(reward / beta) / Z over whole sequences, by summing it over what follows each prefix."""
    weight = lab.probability(ref) * (reward / beta).exp()
    mass = torch.zeros_like(lab.theta)
    for row, word in enumerate(lab.words):
        for place, token in enumerate(word):
            mass[lab.prefixes.index(word[:place]), token] += weight[row]
    return mass.log()


def gradient_of_pairs(recipe, theta, draw, judge):
    leaf = theta.clone().requires_grad_()
    recipe(pair_batch(LAB, leaf, REF, judged(draw, judge)))[0].backward()
    return leaf.grad


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("behavior", [None, REF, OTHER], ids=["online", "reference", "another"])
def test_dpos_population_optimum_is_the_reference_times_exponential_rewards(beta, behavior):
    """All ordered pairs of 22 sequences of one to three tokens, whoever draws them; the same policy is RLHF's optimum."""
    best = tilted(LAB, REF, beta, REWARD)
    chance = LAB.probability(REF) * (REWARD / beta).exp()
    torch.testing.assert_close(LAB.probability(best), chance / chance.sum())
    draw, recipe = population(LAB, behavior)(0, best), make("dpo", beta=beta)
    assert len(draw.first) == len(LAB.words) * (len(LAB.words) - 1)
    np.testing.assert_allclose(gradient_of_pairs(recipe, best, draw, preference(LAB, REWARD)), 0, atol=1e-14)
    assert gradient_of_pairs(recipe, REF, draw, preference(LAB, REWARD)).abs().max() > 1e-3
    rlhf = LAB.gradient(best, lambda theta: LAB.probability(theta) @ REWARD - beta * LAB.kl(theta, REF))
    np.testing.assert_allclose(rlhf, 0, atol=1e-14)


@pytest.mark.parametrize("e", [0.1, 0.35])
def test_rdpo_averaged_over_flipped_labels_is_clean_dpo(e):
    """Every pair with each label, weighted by the chance of it: the flips of a whole data set, enumerated."""
    draw = population(LAB)(0, REF)
    clean = (REWARD[draw.first] > REWARD[draw.second]).double()
    twice = Draw(
        torch.cat([draw.first] * 2),
        torch.cat([draw.second] * 2),
        torch.cat([2 * (1 - e) * draw.weight, 2 * e * draw.weight]),
        torch.cat([clean, 1 - clean]),
    )
    found = []
    for name, pairs in (("rdpo", twice), ("dpo", Draw(draw.first, draw.second, draw.weight, clean))):
        leaf = OTHER.clone().requires_grad_()
        loss = make(name, **({"flip_rate": e} if name == "rdpo" else {}))(pair_batch(LAB, leaf, REF, pairs))[0]
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("size", [2, 3])
def test_copg_is_rloo_in_every_batch_and_so_in_the_mean(size):
    """On the reward less what it costs in log-ratio, summed over the samples in place of averaged."""
    lab = ExactLab(vocabulary=2, horizon=2, seed=1)
    theta = lab.theta + torch.randn(lab.theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    copg, rloo = (
        lab.estimate(make(n, beta=0.2), group_size=size, theta=theta, ref=lab.theta) for n in ("copg", "rloo")
    )
    assert copg.exact
    torch.testing.assert_close(copg.mean, size * rloo.mean)
    torch.testing.assert_close(copg.spread, size**2 * rloo.spread)
    target = lab.gradient(theta, lambda th: lab.expected_reward(th) - 0.2 * lab.kl(th, lab.theta))
    torch.testing.assert_close(rloo.mean, target)


def at_prefixes(lab, theta, divergence):
    """Expected sum over positions of a divergence of next-token distributions, prefixes drawn from `theta` as it is."""
    reached = (lab.probability(theta).detach().unsqueeze(1) * lab.mask).unsqueeze(-1)
    return lambda leaf: (reached * divergence(lab.log_distribution(leaf))).sum()


def reverse(lab, teacher):
    theirs = lab.log_distribution(teacher)
    return lambda ours: ours.exp() * (ours - theirs)


def forward(lab, teacher):
    theirs = lab.log_distribution(teacher)
    return lambda ours: theirs.exp() * (theirs - ours)


def test_the_expected_gradient_of_opd_is_the_reverse_kls():
    """Of each step at the policy's own prefixes; with the return of all later steps, of whole sequences."""
    columns = {"teacher_logp": LAB.logp(OTHER)}
    immediate = make("opd", aggregate=SequenceSum())
    target = -LAB.gradient(REF, at_prefixes(LAB, REF, reverse(LAB, OTHER)))
    assert LAB.estimate(immediate, group_size=1, columns=columns, target=target).relative_bias < 1e-10
    whole = -LAB.gradient(REF, lambda theta: LAB.kl(theta, OTHER))
    later = make("opd", aggregate=SequenceSum(), discount=1.0)
    assert LAB.estimate(later, group_size=1, columns=columns, target=whole).relative_bias < 1e-10
    assert LAB.estimate(immediate, group_size=1, columns=columns, target=whole).relative_bias > 0.01


class Nothing(Part):
    """A surrogate with a gradient of 0: what is left is the penalty."""

    def __call__(self, batch):
        return 0 * batch.logp


def test_the_gradient_of_plain_k3_is_the_forward_kls_and_with_the_ratio_the_reverse_ones():
    bare = make("reinforce").replace(advantage=None, surrogate=Nothing())
    for weighted, divergence in ((False, forward), (True, reverse)):
        recipe = bare.replace(regularizer=KL(1.0, "k3", ratio_weighted=weighted))
        target = -LAB.gradient(REF, at_prefixes(LAB, REF, divergence(LAB, OTHER)))
        assert LAB.estimate(recipe, group_size=1, ref=OTHER, target=target).relative_bias < 1e-10


def test_lightning_opd_stands_still_at_its_teacher_whoever_wrote_and_nowhere_else():
    for writer in (REF, OTHER):
        for theta, still in ((OTHER, True), (REF, False)):
            columns = {"teacher_logp": LAB.logp(OTHER), "anchor_logp": LAB.logp(theta)}
            mean = LAB.estimate("lightning_opd", group_size=1, theta=theta, old=writer, columns=columns).mean
            assert (float(mean.abs().max()) < 1e-12) is still


def vopd_against_opd(words, seed, top_k):
    """Ratio of the variances of one sampled sequence's gradient, and both means."""
    lab = ExactLab(vocabulary=words, horizon=1, seed=seed)
    draw = np.random.default_rng(seed)
    theta, teacher = (torch.tensor(draw.dirichlet(np.ones(words)))[None].log() for _ in range(2))
    compare = make("vopd", top_k=top_k).advantage.compares()["teacher_kl"]
    b = compare(*(lab.log_distribution(x).flatten(0, 1) for x in (theta, teacher))).view(lab.mask.shape)
    columns = {"teacher_logp": lab.logp(teacher), "teacher_kl": b}
    recipe = make("vopd", top_k=top_k)
    ours, theirs = (lab.estimate(r, group_size=1, theta=theta, columns=columns) for r in (recipe, make("opd")))
    return ours.variance / theirs.variance, ours.mean, theirs.mean


@pytest.mark.parametrize("top_k", [None, 5])
def test_vopd_is_unbiased_and_has_less_variance_from_twenty_words_on(top_k):
    ratios = []
    for seed in range(12):
        ratio, ours, theirs = vopd_against_opd(20, seed, top_k)
        torch.testing.assert_close(ours, theirs)
        ratios.append(ratio)
    assert np.median(ratios) < 0.9
    assert np.mean(np.array(ratios) < 1) > 0.8


def test_lifting_a_completion_in_the_reference_lifts_its_odds_under_the_optimum_as_much():
    """Why OPA-DPO teaches the preferred completions first: what the reference hardly does, DPO's optimum hardly does."""
    rare = int(LAB.probability(REF).argmin())
    weight = torch.ones(len(LAB.words), dtype=torch.float64)
    weight[rare] = 100.0
    lifted = tilted(LAB, REF, 1.0, weight.log())
    odds = []
    for ref in (REF, lifted):
        best = tilted(LAB, ref, 0.5, REWARD)
        chance = LAB.probability(best)[rare]
        odds.append(float(chance / (1 - chance)))
        leaf = best.clone().requires_grad_()
        draw = judged(population(LAB)(0, best), preference(LAB, REWARD))
        make("dpo", beta=0.5)(pair_batch(LAB, leaf, ref, draw))[0].backward()
        np.testing.assert_allclose(leaf.grad, 0, atol=1e-14)
    assert odds[1] / odds[0] == pytest.approx(100)


def test_skill_sd_without_its_term_is_grpo():
    batch = batch_of([[1, 0], [0, 0, 1]], seed=3)
    ours, parent = make("skill_sd", coefficient=0.0), make("grpo")
    for one, other in zip(*(value_and_gradient(r, r.prepare(batch)) for r in (ours, parent)), strict=True):
        torch.testing.assert_close(one, other)
