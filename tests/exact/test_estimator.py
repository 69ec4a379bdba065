"""The estimator against brute force: every ordered batch, one at a time, through plain autograd."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from upslope import Batch, make
from upslope.errors import UsageError
from upslope.exact import ExactLab
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import LocalTokenMean, SequenceMean, SequenceSum, TokenMean, TokenSum
from upslope.parts.kl import KL
from upslope.parts.sampling import DynamicSampling
from upslope.parts.surrogate import ClippedRatio, PolicyGradient
from upslope.recipe import Part, Recipe


@dataclass(frozen=True)
class BatchWhitened(Part):
    """Couples the groups of a batch: reward less the batch's mean, over its spread."""

    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __call__(self, batch):
        return (batch.reward - batch.reward.mean()) / (batch.reward.std(correction=0) + 0.1)


@dataclass(frozen=True)
class EntropyBonus(Part):
    """Reads a column that depends on theta by another way than logp."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, batch):
        return -0.3 * batch.entropy


@dataclass(frozen=True)
class FullKL(Part):
    """Reads the whole distribution: KL to the uniform one, per token."""

    needs: ClassVar[frozenset[str]] = frozenset({"log_distribution"})

    def __call__(self, batch):
        return (batch.log_distribution.exp() * batch.log_distribution).sum(-1) * batch.mask


GRPO = Recipe(
    advantage=GroupBaseline(eps=0.1),
    surrogate=ClippedRatio(0.9, 1.1),
    aggregate=SequenceMean(),
    regularizer=KL(0.1, "k3"),
)
RECIPES = {
    "grpo": GRPO,
    "token mean": GRPO.replace(aggregate=TokenMean()),
    "token sum": GRPO.replace(aggregate=TokenSum(0.5)),
    "whitened": GRPO.replace(advantage=BatchWhitened()),
    "entropy": GRPO.replace(regularizer=EntropyBonus()),
    "distribution": GRPO.replace(regularizer=FullKL()),
    "dynamic": GRPO.replace(curriculum=DynamicSampling(), aggregate=TokenMean()),
}
LAB = ExactLab(2, 2, eos=0, reward=torch.tensor([0.0, 1.0, 0.25]))
OLD, REF = LAB.theta + torch.tensor([[0.3, -0.2], [0.5, 0.1]]), LAB.theta.flip(1)


def by_hand(recipe, groups, size):
    """Mean [N, V], variance of -(gradient of the loss), and chance of keeping a group, over ordered batches."""
    probability = LAB.probability(OLD)
    total, mean, square = 0.0, torch.zeros_like(LAB.theta), 0.0
    for rows in itertools.product(range(len(LAB.words)), repeat=groups * size):
        group_rewards = [LAB.rewards[list(rows[g * size : (g + 1) * size])] for g in range(groups)]
        if recipe.curriculum is not None and any(r.max() == r.min() for r in group_rewards):
            continue
        theta = LAB.theta.clone().requires_grad_()
        index, group = torch.tensor(rows), torch.arange(groups).repeat_interleave(size)
        log_distribution = LAB.log_distribution(theta)[index]
        columns = {
            "logp": LAB.logp(theta)[index],
            "entropy": -(log_distribution.exp() * log_distribution).sum(-1),
            "log_distribution": log_distribution,
            "old_logp": LAB.logp(OLD)[index],
            "ref_logp": LAB.logp(REF)[index],
            "mask": LAB.mask[index],
            "reward": LAB.rewards[index],
            "group": group,
        }
        prepared = recipe.prepare(Batch(**{name: column.detach() for name, column in columns.items()}))
        gradient_columns = {name: columns[name] for name in ("logp", "entropy", "log_distribution")}
        (gradient,) = torch.autograd.grad(recipe.loss(prepared.replace(**gradient_columns))[0], theta)
        weight = float(probability[index].prod())
        total += weight
        mean = mean - weight * gradient
        square += weight * float(gradient.norm() ** 2)
    mean = mean / total
    return mean, square / total - float(mean.norm() ** 2), total ** (1 / groups)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2)], ids=["1 group of 3", "2 groups of 2"])
@pytest.mark.parametrize("name", RECIPES)
def test_equals_brute_force(name, shape):
    groups, size = shape
    recipe = RECIPES[name]
    mean, variance, kept = by_hand(recipe, groups, size)
    found = LAB.estimate(recipe, group_size=size, groups=groups, old=OLD, ref=REF)
    assert found.exact
    torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=1e-12)
    assert found.variance == pytest.approx(variance, rel=1e-9)
    assert found.kept == pytest.approx(kept, rel=1e-9)
    assert found.packed == (name != "whitened")


def test_sampling_agrees_with_enumeration_within_its_standard_error():
    lab = ExactLab(3, 3, eos=0)
    exact = lab.estimate(GRPO, group_size=3)
    drawn = lab.estimate(GRPO, group_size=3, limit=10, samples=20_000, seed=1)
    assert exact.exact
    assert not drawn.exact
    assert not exact.standard_error.any()
    deviations = ((drawn.mean - exact.mean) / drawn.standard_error)[drawn.standard_error > 0]
    assert float(deviations.abs().max()) < 4
    assert 0.5 < float((deviations**2).mean()) < 2
    assert drawn.variance == pytest.approx(exact.variance, rel=0.05)


def test_dynamic_sampling_agrees_between_drawing_and_enumeration():
    lab = ExactLab(2, 3, eos=0, reward=lambda tokens: float(len(tokens) == 3))
    recipe = GRPO.replace(curriculum=DynamicSampling())
    exact, drawn = lab.estimate(recipe), lab.estimate(recipe, limit=1, samples=20_000)
    success = float(lab.expected_reward(lab.theta))
    assert exact.kept == pytest.approx(2 * success * (1 - success))
    assert drawn.kept == pytest.approx(exact.kept, abs=0.01)
    assert float((drawn.bias - exact.bias).norm() / exact.mean.norm()) < 0.03


def test_a_recipe_that_couples_groups_gets_the_small_limit():
    lab = ExactLab(2, 3, eos=0)
    assert not lab.estimate(RECIPES["whitened"], group_size=2, groups=2).packed
    assert not lab.estimate(RECIPES["whitened"], group_size=2, limit=1, samples=50).exact


def test_columns_and_target_of_the_caller():
    ones = torch.ones(len(LAB.words), dtype=torch.float64)
    recipe = Recipe(advantage=GroupBaseline("leave_one_out", None), surrogate=PolicyGradient(), aggregate=SequenceSum())
    other = LAB.estimate(
        recipe, columns={"reward": ones * torch.tensor([0.0, 2.0, 0.5])}, target=2 * LAB.gradient(LAB.theta)
    )
    assert other.relative_bias < 1e-12
    assert other.scale == pytest.approx(1)
    # The bare reward as baseline-free advantage, through a recipe without an advantage part.
    bare = recipe.replace(advantage=None)
    assert LAB.estimate(bare, columns={"advantage": LAB.rewards}).relative_bias < 1e-12


def test_summary_reads_well():
    text = str(LAB.estimate("grpo"))
    assert "scale 1." in text
    assert text.endswith("6 batches, exact")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAB.estimate("grop"), "Did you mean grpo"),
        (lambda: LAB.estimate("grpo", group_size=0), "at least 1 group of 1 row"),
        (lambda: LAB.estimate("grpo", old=torch.full((2, 2), math.nan)), "finite logits"),
        (lambda: LAB.estimate(GRPO.replace(advantage=None)), r"column advantage.* Pass columns=\{'advantage'"),
        (lambda: LAB.estimate("grpo", columns={"reward": torch.ones(5)}), r"first axis must be the 3 sequences"),
        (
            lambda: LAB.estimate(GRPO.replace(aggregate=LocalTokenMean(2)), group_size=4),
            "depends on the order of the rows",
        ),
        (
            lambda: ExactLab(2, 2, reward=torch.ones(4)).estimate(RECIPES["dynamic"]),
            "keeps no group.*rewards never differ|kept none",
        ),
    ],
)
def test_errors_name_the_remedy(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_a_method_by_name_is_its_recipe():
    torch.testing.assert_close(LAB.estimate("grpo").mean, LAB.estimate(make("grpo")).mean)
