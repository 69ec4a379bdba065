"""The probe's estimates: against enumerated truth in the exact lab, and on a real policy, which they leave as it was."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import make
from upslope.collect import Collector, PromptStream
from upslope.config import OptimizerConfig
from upslope.engines.local import LocalEngine
from upslope.exact import ExactLab
from upslope.policies.language import LanguagePolicy
from upslope.policies.scorer import FrozenScorer
from upslope.probe import Interval, moments, probe, reward_gradient
from upslope.rollout import Example, Outcome, Sampling
from upslope.update import Actors

LAB = ExactLab(vocabulary=3, horizon=2, reward=lambda word: float(word[0] == 1) + 0.5 * float(word[-1] == 2), seed=3)


@pytest.mark.parametrize("method", ["dr_grpo", "grpo", "reinforce_pp_baseline"])
def test_moments_against_the_enumerated_truth(method):
    options = {"groups": 2, "group_size": 3, "samples": 3000, "seed": 5}
    recipe = make(method, regularizer=None)
    truth = LAB.estimate(recipe, groups=2, group_size=3, samples=8_000)
    found = moments(LAB.draw(recipe, **options).flatten(1), LAB.draw(reward_gradient(), **options).flatten(1))
    snr = float(truth.mean.norm() ** 2) / truth.variance
    assert found["snr"].value == pytest.approx(snr, rel=0.15)
    assert found["snr"].low <= snr <= found["snr"].high
    assert found["cosine"].value == pytest.approx(truth.cosine, abs=0.01)
    assert found["scale"] == pytest.approx(truth.scale, rel=0.05)
    assert found["variance"] == pytest.approx(1 / found["snr"].value)


def test_the_reference_is_unbiased():
    assert LAB.estimate(reward_gradient(), group_size=3).relative_bias < 1e-6


def test_intervals_cover():
    covered = 0
    truth = LAB.estimate("dr_grpo", group_size=4)
    snr = float(truth.mean.norm() ** 2) / truth.variance
    for seed in range(40):
        draws = LAB.draw("dr_grpo", group_size=4, samples=200, seed=seed).flatten(1)
        found = moments(draws, draws)["snr"]
        covered += found.low <= snr <= found.high
    assert covered >= 32


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_scale_and_rotation_do_not_matter(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(6, 5, generator=generator, dtype=torch.float64) + 1
    reference = torch.randn(6, 5, generator=generator, dtype=torch.float64) + 1
    turned = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    one, other = moments(gradients, reference), moments(factor * gradients @ turned, reference @ turned)
    for name in ("snr", "cosine"):
        assert other[name].value == pytest.approx(one[name].value, rel=1e-6, nan_ok=True)
    assert other["scale"] == pytest.approx(factor * one["scale"], rel=1e-6, nan_ok=True)
    assert other["alignment"] == pytest.approx(one["alignment"], rel=1e-6)


def test_noise_alone_has_no_signal():
    generator = torch.Generator().manual_seed(0)
    noise, other = (torch.randn(50, 2000, generator=generator) for _ in range(2))
    found = moments(noise, other)
    assert found["snr"].low < 0 < found["snr"].high
    assert abs(found["alignment"]) < 0.02


@pytest.fixture
def policy(toy):
    return LanguagePolicy.load(toy)


class Letters:
    def score(self, examples, completions, completion_ids=None):
        return [Outcome(sum("a" <= c <= "z" for c in text) / max(len(text), 1)) for text in completions]


def collected(policy, batches, group_size=16):
    collector = Collector(
        engine=LocalEngine(policy),
        judge=Letters(),
        encode=policy.encode,
        stream=PromptStream([Example(f"k{i}", f"p{i}") for i in range(20)], 0),
        recipe=make("reinforce", group_size=group_size),
        limit=16,
    )
    state, found = {"cursor": 0}, []
    for index in range(batches):
        part, state = collector.collect(state, prompts=3, sampling=Sampling(6), key=("probe-test", index))
        found.append(part)
    return found


def measured(policy, names, batches=6, tokens_per_pass=4096):
    recipes = [(name, make(name)) for name in names]
    actors = Actors(policy, None, FrozenScorer(policy))
    return probe(
        recipes,
        actors,
        collected(policy, batches),
        lr=1e-3,
        optimizer=OptimizerConfig(),
        tokens_per_pass=tokens_per_pass,
        seed=0,
    )


def test_on_a_real_policy(policy):
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    names = ["grpo", "dr_grpo", "dapo", "clip_cov"]
    results = measured(policy, names)
    assert torch.equal(torch.cat([p.detach().flatten() for p in policy.parameters()]), before)
    assert [result.name for result in results] == names
    dr_grpo = results[1]
    assert dr_grpo.cosine.value == pytest.approx(1.0, abs=1e-4), "a group mean only scales the gradient"
    for result in results:
        assert isinstance(result.snr, Interval)
        assert result.kl > 0
        assert 0 < result.effective <= 1
        assert 0 < result.contributing <= 1
        assert math.isfinite(result.entropy)


def test_does_not_depend_on_the_micro_batches(policy):
    one, other = (measured(policy, ["grpo"], tokens_per_pass=size)[0] for size in (4096, 1))
    assert other.snr.value == pytest.approx(one.snr.value, rel=1e-3)
    assert other.cosine.value == pytest.approx(one.cosine.value, rel=1e-3)


def test_entropy_changes_in_the_direction_of_an_entropy_bonus(policy):
    from dataclasses import dataclass
    from typing import ClassVar

    from upslope.recipe import Part

    @dataclass(frozen=True)
    class Bonus(Part):
        sign: float = -1.0
        needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

        def __call__(self, batch):
            return self.sign * batch.entropy

    recipes = [(str(sign), make("dr_grpo").replace(regularizer=Bonus(sign * 1e3))) for sign in (-1.0, 1.0)]
    up, down = probe(
        recipes,
        Actors(policy, None),
        collected(policy, 4),
        lr=1e-3,
        optimizer=OptimizerConfig(),
        tokens_per_pass=4096,
        seed=0,
    )
    assert up.entropy > 0 > down.entropy
