"""Several prompts, reference rows and batches in random order, against enumeration by hand."""

import itertools
import math

import pytest
import torch

from upslope import make
from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.exact import ExactLab
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import LocalTokenMean
from upslope.parts.sampling import DynamicSampling, Sample

LAB = ExactLab(2, 2, eos=0, prompts=2, reward=torch.tensor([0.0, 1.0, 0.25, 0.0, 0.0, 1.0]))
RECIPES = {
    "grpo": make("grpo", regularizer=None),
    "batch's deviation": make("lite_ppo"),
    "dynamic": make("grpo", regularizer=None, curriculum=DynamicSampling()),
}


def by_hand(recipe, groups, size, references=0):
    """Mean and variance over ordered batches, each group's prompt drawn first."""
    own = len(LAB.words) // 2
    chance = LAB.probability(LAB.theta)
    kinds = []
    for prompt in range(2):
        answers = range(own * prompt, own * (prompt + 1))
        best = max(answers, key=lambda row: LAB.rewards[row])
        for drawn in itertools.product(answers, repeat=size - references):
            rows = [*drawn, *[best] * references]
            if recipe.curriculum.keep(
                Batch(logp=torch.zeros(size, 1), reward=LAB.rewards[rows], group=torch.zeros(size).long())
            ):
                kinds.append((rows, float(chance[list(drawn)].prod()) / 2))
    total, mean, square = 0.0, torch.zeros_like(LAB.theta), 0.0
    for batch in itertools.product(kinds, repeat=groups):
        rows = torch.tensor([row for kind in batch for row in kind[0]])
        weight = math.prod(kind[1] for kind in batch)
        theta = LAB.theta.clone().requires_grad_()
        logp = LAB.logp(theta)[rows]
        columns = {"mask": LAB.mask[rows], "reward": LAB.rewards[rows], "old_logp": logp.detach()}
        group = torch.arange(groups).repeat_interleave(size)
        (gradient,) = torch.autograd.grad(recipe(Batch(logp=logp, group=group, **columns))[0], theta)
        total, mean, square = total + weight, mean - weight * gradient, square + weight * float(gradient.norm() ** 2)
    mean = mean / total
    return mean, square / total - float(mean.norm() ** 2)


@pytest.mark.parametrize("name", RECIPES)
def test_two_prompts_equal_brute_force(name):
    mean, variance = by_hand(RECIPES[name], 2, 2)
    found = LAB.estimate(RECIPES[name], group_size=2, groups=2)
    assert found.exact
    torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=1e-12)
    assert found.variance == pytest.approx(variance, rel=1e-9)


def test_reference_rows_equal_brute_force():
    recipe = RECIPES["grpo"].replace(rollout=Sample(group_size=3, reference_rows=1))
    mean, variance = by_hand(recipe, 1, 3, references=1)
    found = LAB.estimate(recipe, group_size=3)
    assert found.exact
    torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=1e-12)
    assert found.variance == pytest.approx(variance, rel=1e-9)
    drawn = LAB.estimate(recipe, group_size=3, limit=1)
    assert float(((drawn.mean - mean) / drawn.standard_error.clamp(min=1e-9)).abs().max()) < 4


def test_expectations_are_means_over_prompts():
    parts, references = LAB.theta.split(2), LAB.theta.flip(1).split(2)
    labs = [ExactLab(2, 2, eos=0, reward=rewards) for rewards in LAB.rewards.split(3)]
    alone = list(zip(labs, parts, references, strict=True))
    rewards = [float(lab.expected_reward(theta)) for lab, theta, _ in alone]
    assert LAB.prompt_mean(LAB.theta, LAB.rewards).tolist() == pytest.approx(rewards)
    assert float(LAB.expected_reward(LAB.theta)) == pytest.approx(sum(rewards) / 2)
    entropies = [float(lab.entropy(theta)) for lab, theta, _ in alone]
    assert float(LAB.entropy(LAB.theta)) == pytest.approx(sum(entropies) / 2)
    divergences = [float(lab.kl(theta, ref)) for lab, theta, ref in alone]
    assert float(LAB.kl(LAB.theta, LAB.theta.flip(1))) == pytest.approx(sum(divergences) / 2)
    torch.testing.assert_close(LAB.value(LAB.theta), torch.cat([lab.value(theta) for lab, theta, _ in alone]))
    assert LAB.prompt.tolist() == [0, 0, 0, 1, 1, 1]


def test_leave_one_out_is_unbiased_over_prompts_that_are_drawn():
    recipe = make("reinforce", advantage=GroupBaseline("leave_one_out", scale=None))
    assert LAB.estimate(recipe, group_size=2, groups=2).relative_bias < 1e-12
    drawn = LAB.estimate(recipe, group_size=2, groups=2, limit=1)
    assert not drawn.exact
    assert float((drawn.bias / drawn.standard_error.clamp(min=1e-9)).abs().max()) < 4


def test_shuffled_batches_average_over_the_order_of_rows():
    recipe = make("reinforce", advantage=GroupBaseline("leave_one_out", scale=None))
    plain = LAB.estimate(recipe, group_size=2)
    shuffled = LAB.estimate(recipe, group_size=2, shuffle=True, samples=1000)
    assert not shuffled.exact
    assert float(((shuffled.mean - plain.mean) / shuffled.standard_error.clamp(min=1e-9)).abs().max()) < 4
    assert shuffled.variance == pytest.approx(plain.variance, rel=0.15)
    with pytest.raises(UsageError, match=r"order of the rows.*shuffle=True"):
        LAB.estimate(make("grpo", aggregate=LocalTokenMean(2)), group_size=4)
    with pytest.raises(UsageError, match="prompts >= 1"):
        ExactLab(prompts=0)
