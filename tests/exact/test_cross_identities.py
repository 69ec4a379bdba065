"""Card file: preference_distill_hybrid.md, its exact cross-identities 1 to 11: one test each, on the library's own recipes.

Each in value and gradient where it is one of losses. The methods' own tests hold the numbers of their cards.
"""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.batch import SOURCES
from upslope.diagnostics.information import differential_information
from upslope.diagnostics.modes import forward_kl_gradient, reverse_kl_gradient
from upslope.exact import ExactLab
from upslope.methods.distill.skill_sd import SkillDistillation
from upslope.methods.hybrid.oorl_gepo import GroupEquivalence
from upslope.parts.aggregate import GroupSum, TokenSum
from upslope.parts.distill import TeacherDivergence
from upslope.parts.kl import KL, KLInReward
from upslope.recipe import Part
from upslope.testing import batch_of, value_and_gradient, with_observed

S, T, R = (torch.tensor(row, dtype=torch.float64) for row in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]))
COIN = ExactLab(vocabulary=3, horizon=1)
EXPERT, TEACHER, POLICY = (SOURCES.index(name) for name in ("expert", "teacher", "policy"))


class Nothing(Part):
    """A surrogate with a gradient of 0: what is left is the penalty."""

    def __call__(self, batch):
        return 0 * batch.logp


def both(recipe, batch):
    return value_and_gradient(recipe, recipe.prepare(batch))


def assert_same(one, other, factor=1.0):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, factor * theirs, rtol=1e-9, atol=1e-12)


def pairs(seed=3):
    batch = batch_of([[1, 0], [0, 1], [1, 0]], seed=seed)
    return batch.replace(old_logp=batch.logp - 0.3 * batch.entropy)


def mean_gradient(recipe, s=S, **columns):
    """Descent direction on the logits, of one word drawn from s: the expectation of the gradient of the loss, [3]."""
    theta = s.log().unsqueeze(0)
    given = {name: COIN.logp(p.log().unsqueeze(0)) for name, p in columns.items()}
    ref = columns.get("ref_logp")
    return -COIN.estimate(
        recipe, group_size=1, theta=theta, ref=None if ref is None else ref.log().unsqueeze(0), columns=given
    ).mean[0]


@pytest.mark.parametrize("size", [2, 4])
def test_1_p3o_is_copg_is_rloo_up_to_the_number_of_samples(size):
    batch = batch_of([list(np.linspace(0, 1 + i, size)) for i in range(3)], seed=4)
    p3o, copg, rloo = (both(make(name, beta=0.2), batch)[1] for name in ("p3o", "copg", "rloo"))
    torch.testing.assert_close(copg, size * rloo)
    torch.testing.assert_close(p3o, copg)


def test_2_methods_that_become_ipo():
    batch = pairs()
    ipo = both(make("ipo@paper", beta=0.3), batch)
    halves = batch.replace(reward=batch.reward / 2)
    assert_same(both(make("copg", beta=0.3), halves), ipo, 0.15)
    assert_same(both(make("inpo", beta=0.3, share=1.0), batch), ipo)
    first = batch.replace(old_logp=batch.ref_logp)
    assert_same(both(make("inpo", beta=0.3, share=0.4), first), ipo)


def test_2_methods_that_become_dpo():
    batch = pairs()
    dpo = both(make("dpo"), batch)
    term = GroupEquivalence(coefficient=1.0, beta=0.1)
    gepo = make("oorl_gepo").replace(reward=None, advantage=None, surrogate=term, aggregate=GroupSum(), terms=())
    assert_same(both(gepo, batch), dpo)
    assert_same(both(make("cpl", bias=1.0, reference=True), batch), dpo)
    assert_same(both(make("rpo_sft", beta=0.1, coefficient=0.0), batch), dpo)
    assert_same(both(make("rdpo", flip_rate=0.0), batch), dpo)
    previous = batch.replace(old_logp=batch.ref_logp, source=torch.zeros(6, dtype=torch.int64), reward=5 * batch.reward)
    assert_same(both(make("dno", beta=0.1), previous), dpo)
    given = batch.replace(source=torch.full((6,), EXPERT))
    assert_same(both(make("hypo_online_kl", beta=0.1, coefficient=0.0), given), dpo)
    sure = batch.replace(reward=1000.0 * batch.reward)
    assert_same(both(make("osp"), sure), dpo)
    soft = batch.replace(reward=batch.reward * np.log(0.8 / 0.2))
    assert_same(both(make("osp"), soft), both(make("cdpo", smoothing=0.2), batch))


@pytest.mark.parametrize("e", [0.1, 0.4])
def test_3_rdpo_averaged_over_flips_is_dpo(e):
    batch, recipe = pairs(), make("rdpo", flip_rate=e)
    kept, flipped = both(recipe, batch), both(recipe, batch.replace(label=1 - batch.label))
    assert_same([(1 - e) * a + e * b for a, b in zip(kept, flipped, strict=True)], both(make("dpo"), batch))


def test_4_one_token_rollout_and_chord_become_dft_whose_gradient_is_that_of_the_probability():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([[0, 3, 1], [2, 2, 4]])
    found = {}
    for name, settings in {
        "one_token_rollout": {"surrogate.temperature": 1.0, "penalty": 0.3},
        "dft": {},
        "minus p": {},
    }.items():
        leaf = logits.clone().requires_grad_()
        table = leaf.log_softmax(-1)
        logp = table.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        batch = Batch(logp=logp, tokens=tokens, log_distribution=table, trajectory=[0, 1])
        if name == "minus p":
            loss = -logp.exp().mean()
        else:
            recipe = make(name, **settings)
            loss, _ = recipe(with_observed(recipe, batch))
        loss.backward()
        found[name] = leaf.grad
    torch.testing.assert_close(found["one_token_rollout"], 1.3 * found["dft"])
    torch.testing.assert_close(found["dft"], found["minus p"])
    source = torch.tensor([0, 0, 0, TEACHER])
    mixed = batch_of([[0, 1, 0, 1]], source=source)
    chord = make("chord@phi", weighting="probability", peak=0.3, valley=0.3)
    dft = both(make("dft"), mixed.select(source == TEACHER))[1]
    torch.testing.assert_close(both(chord, mixed)[1][source == TEACHER], 0.3 * dft)


def test_5_what_three_losses_follow_on_a_categorical():
    reverse, forward = reverse_kl_gradient(S, T), forward_kl_gradient(S, T)
    k3 = make("reinforce").replace(advantage=None, surrogate=Nothing(), regularizer=KL(1.0, "k3"))
    torch.testing.assert_close(mean_gradient("opd", teacher_logp=T), reverse)
    torch.testing.assert_close(mean_gradient(k3, ref_logp=T), forward)
    corrected = make("opd").replace(advantage=None, surrogate=SkillDistillation())
    torch.testing.assert_close(mean_gradient(corrected, teacher_logp=T), reverse)


@pytest.mark.parametrize("top_k", [None, 2, 1])
def test_6_any_baseline_of_vopd_leaves_opds_gradient_and_the_whole_one_centres_it(top_k):
    recipe = make("vopd", top_k=top_k)
    b = recipe.advantage.compares()["teacher_kl"](S.log()[None], T.log()[None])
    theta = S.log().unsqueeze(0)
    columns = {"teacher_logp": COIN.logp(T.log().unsqueeze(0)), "teacher_kl": b.expand(3, 1)}
    ours = COIN.estimate(recipe, group_size=1, theta=theta, columns=columns).mean
    theirs = COIN.estimate("opd", group_size=1, theta=theta, columns=columns).mean
    torch.testing.assert_close(ours, theirs)
    if top_k is None:
        logp, teacher_logp = S.log()[:, None], T.log()[:, None]
        batch = Batch(logp=logp, old_logp=logp, teacher_logp=teacher_logp, teacher_kl=columns["teacher_kl"])
        advantage = recipe.prepare(batch).advantage[:, 0]
        assert float(S @ advantage) == pytest.approx(0, abs=1e-12)


def test_7_extrapolation():
    for ref in (R, T, torch.tensor([0.1, 0.1, 0.8]).double()):
        one = mean_gradient(make("g_opd", extrapolation=1.0), teacher_logp=T, ref_logp=ref)
        torch.testing.assert_close(one, mean_gradient("opd", teacher_logp=T))
    fixed = ((1 - 1.25) * R.log() + 1.25 * T.log()).softmax(0)
    np.testing.assert_allclose(mean_gradient("g_opd", s=fixed, teacher_logp=T, ref_logp=R), 0, atol=1e-12)
    beta, base, tuned = 0.5, T, R
    optimum = (tuned.log() + (tuned.log() - base.log()) / beta).softmax(0)
    recipe = make("g_opd", extrapolation=1 + 1 / beta)
    np.testing.assert_allclose(mean_gradient(recipe, s=optimum, teacher_logp=tuned, ref_logp=base), 0, atol=1e-12)
    rewarded = make("self_rewarding_ppo", beta=beta, whiten=False)
    theta = optimum.log().unsqueeze(0)
    columns = {"teacher_logp": base.log().unsqueeze(1), "old_value": torch.zeros(3, 1).double()}
    found = COIN.estimate(rewarded, group_size=1, theta=theta, ref=tuned.log().unsqueeze(0), columns=columns)
    np.testing.assert_allclose(found.mean, 0, atol=1e-12)


def test_8_gkd_at_its_ends():
    for beta, gradient in ((1.0, reverse_kl_gradient(S, T)), (0.0, forward_kl_gradient(S, T))):
        logits = S.log().clone().requires_grad_()
        TeacherDivergence(beta=beta).compares()["divergence"](logits.log_softmax(-1)[None], T.log()[None])[0].backward()
        torch.testing.assert_close(logits.grad, gradient)
    torch.testing.assert_close(mean_gradient("opd", teacher_logp=T), reverse_kl_gradient(S, T))
    word = COIN.estimate("seqkd", group_size=1, theta=S.log()[None], old=T.log()[None]).mean[0]
    torch.testing.assert_close(-word, forward_kl_gradient(S, T))


def test_9_expert_rows():
    source = torch.tensor([0, 0, 0, TEACHER])
    batch = batch_of([[0, 1, 0, 1]], source=source)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    expert = source == TEACHER
    certain = batch.replace(old_logp=torch.where(expert.unsqueeze(1), 0.0, batch.old_logp))
    plain = make("luffy", gamma=None)
    bare = make("dr_grpo", ratio_low=0.0, ratio_high=1e9).replace(advantage=plain.advantage, aggregate=plain.aggregate)
    torch.testing.assert_close(both(plain, batch)[1], both(bare, certain)[1])
    swapped = make("rl_plus").replace(surrogate=make("luffy").surrogate)
    assert_same(both(swapped, batch), both(make("luffy"), batch))
    sft = both(make("sft"), batch.select(expert))[1]
    torch.testing.assert_close(both(make("hpt", gate=3), batch)[1][expert], sft)
    own = batch.select(~expert)
    unclipped = make("dr_grpo", ratio_low=0.0, ratio_high=1e9).replace(aggregate=TokenSum(1 / 8192))
    torch.testing.assert_close(both(make("hpt", gate=-1), batch)[1][~expert], both(unclipped, own)[1])
    grpo = make("grpo", regularizer=None, aggregate=make("sft").aggregate)
    zero, one = (both(make("chord", peak=mu, valley=mu), batch)[1] for mu in (0.0, 1.0))
    torch.testing.assert_close(zero[~expert], both(grpo, own)[1])
    torch.testing.assert_close(one[expert], sft)
    assert not zero[expert].any()
    assert not one[~expert].any()


def test_10_targets_of_f_dpg_dpo_and_rlhf():
    beta, rewards = 0.5, torch.tensor([0.0, 1.0, 2.0]).double()
    best = (R.log() + rewards / beta).softmax(0)
    batch = batch_of([[0.3, 1.2, -0.4], [1.0, 0.2]], seed=2)
    constant = make("f_dpg", divergence="reverse_kl", beta=beta)
    penalized = make("reinforce", reward=KLInReward(beta=beta, level="sequence"))
    difference = both(constant, batch)[1] * beta - both(penalized, batch)[1]
    for rows in (batch.mask & (batch.group == group).unsqueeze(1) for group in (0, 1)):
        assert float(difference[rows].std()) < 1e-12, "a constant of the prompt times the gradient of logp"
    lab = ExactLab(vocabulary=3, horizon=1, reward=rewards)
    objective = lab.gradient(
        best.log()[None], lambda theta: lab.expected_reward(theta) - beta * lab.kl(theta, R.log()[None])
    )
    np.testing.assert_allclose(objective, 0, atol=1e-15)
    theta = best.log().clone().requires_grad_()
    arms = torch.tensor([0, 1, 0, 2, 1, 2])
    label = (rewards[arms] - rewards[arms.view(-1, 2).flip(1).flatten()]).sigmoid()
    columns = {"ref_logp": R.log()[arms, None], "label": label, "group": torch.arange(6) // 2}
    make("dpo", beta=beta)(Batch(logp=theta.log_softmax(0)[arms, None], **columns))[0].backward()
    np.testing.assert_allclose(theta.grad, 0, atol=1e-15)
    torch.testing.assert_close(differential_information(best, R), (rewards / beta).softmax(0))


def test_11_the_demonstrations_clone_as_the_prior_of_the_same_closed_form():
    beta, clone = 0.5, torch.tensor([0.7, 0.2, 0.1]).double()
    lab = ExactLab(vocabulary=3, horizon=1, reward=torch.tensor([0.0, 1.0, 0.0]))
    best = (clone.log() + lab.rewards / beta).softmax(0)
    np.testing.assert_allclose(best, [0.307313, 0.648786, 0.043902], atol=1e-6)
    recipe = make("demo_regularized_rl", beta=beta)
    found = lab.estimate(recipe, theta=best.log()[None], ref=clone.log()[None], target=torch.ones(1, 3).double())
    np.testing.assert_allclose(found.mean, 0, atol=1e-12)
