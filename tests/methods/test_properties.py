"""Properties of every registered method on drawn batches, over steps with state, and on the model's own gradient.

The fixed cases are in test_contract.py; what a method computes is in its own test.
"""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope import Batch, UsageError, make
from upslope.collect import Collector, first_batch, observed_at_sampling, seeded
from upslope.config import OptimizerConfig
from upslope.engines.local import LocalEngine
from upslope.gradient import GradientRecorder
from upslope.learner import Learner
from upslope.parts.sampling import Sample
from upslope.policies.critic import LanguageCritic
from upslope.policies.language import LanguagePolicy
from upslope.policies.scorer import reference_of
from upslope.prompts import PromptStream
from upslope.recipe import Recipe
from upslope.rollout import Example, Outcome, Sampling
from upslope.runs.state import pack, unpack
from upslope.testing import (
    batch_of,
    check_failed_rewards,
    check_invariances,
    methods_on_batches,
    value_and_gradient,
    with_observed,
)
from upslope.update import Actors

FEW = settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
LOG_RATIO = 9.21  # of 1e4


def ragged(draw, values):
    """Rewards of ragged groups, one of them perhaps without variance, one perhaps of a single row."""
    sizes = st.integers(1, 5)
    varied = sizes.flatmap(lambda size: st.lists(values, min_size=size, max_size=size))
    equal = st.builds(lambda value, size: [value] * size, values, sizes)
    return draw(st.lists(varied | equal, min_size=1, max_size=4))


@st.composite
def moderate(draw):
    """Rewards in [0, 1], ratios around 1, float64."""
    rewards = ragged(draw, st.sampled_from([0.0, 0.25, 1.0]))
    seed = draw(st.integers(0, 2**16))
    batch = batch_of(rewards, seed=seed)
    return batch.replace(old_logp=batch.logp + 0.3 * noise(batch, seed))


@st.composite
def extreme(draw):
    """Ratios up to 1e4 either way, rewards up to 1e6, rows without a trained token, float32 and float64, one single row."""
    scale = draw(st.sampled_from([1.0, 1.0, 1.0, 1e6]))
    rewards = ragged(draw, st.sampled_from([0.0, 0.25, 1.0]).map(lambda value: value * scale))
    seed = draw(st.integers(0, 2**16))
    batch = batch_of(rewards, seed=seed)
    rows = len(batch)
    kept = torch.tensor(draw(st.lists(st.sampled_from([True, True, False]), min_size=rows, max_size=rows)))
    kept[draw(st.integers(0, rows - 1))] = True
    shift = torch.tensor([0.0, -LOG_RATIO, LOG_RATIO]).double()
    per_row = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
    old_logp = batch.logp + shift[per_row].unsqueeze(1) + 0.3 * noise(batch, seed)
    batch = batch.replace(mask=batch.mask & kept.unsqueeze(1), old_logp=old_logp)
    return of_dtype(batch, draw(st.sampled_from([torch.float32, torch.float64])))


def noise(batch: Batch, seed: int) -> Tensor:
    return torch.randn(batch.logp.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    columns = {name: getattr(batch, name) for name in batch}
    return Batch(**{name: c.to(dtype) if c.is_floating_point() else c for name, c in columns.items()})


def named(error: UsageError) -> None:
    """A UsageError is an answer to such a batch where it says what is wrong; that a number overflowed is a bug."""
    assert "not finite" not in str(error), error


@pytest.mark.parametrize("name", methods_on_batches())
@FEW
@given(batch=moderate())
def test_row_order_padding_micro_batches_and_failed_rewards_change_nothing(name, batch):
    recipe = make(name)
    try:
        batch = with_observed(recipe, batch)
        check_invariances(recipe, batch)
        if len(batch) > 1:
            check_failed_rewards(recipe, batch)
    except UsageError as error:
        named(error)


@pytest.mark.parametrize("name", methods_on_batches())
@FEW
@given(batch=extreme())
def test_finite_or_a_named_error(name, batch):
    recipe = make(name)
    try:
        loss, gradient = value_and_gradient(recipe, recipe.prepare(with_observed(recipe, batch)))
    except UsageError as error:
        named(error)
        return
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.dtype == batch.logp.dtype
    assert not gradient[~batch.mask].any(), "a masked token has a gradient"


def through_a_checkpoint(state):
    structure, tensors = pack(state)
    return unpack(json.loads(json.dumps(structure)), tensors)


def same(one, other) -> None:
    """Two nested states are equal, bit for bit."""
    (structure, tensors), (other_structure, other_tensors) = pack(one), pack(other)
    assert structure == other_structure
    assert tensors.keys() == other_tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[key]), key


def two_steps(recipe: Recipe, between):
    """Loss and gradient of the second of two steps, and the state after it; `between` is what happens to the state."""
    state = recipe.init()
    rewards = [[1.0, 0.0, 0.25, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0], [0.25, 0.25]]
    for step in (1, 2):
        batch = batch_of(rewards[step - 1 :], seed=step)
        rows = len(batch)
        batch = batch.replace(
            old_logp=batch.logp + 0.3 * noise(batch, step),
            step=torch.full((rows,), step),
            progress=torch.full((rows,), step / 8),
        )
        before = copy.deepcopy(state)
        prepared, after = recipe.prepare(with_observed(recipe, batch), state)
        same(state, before)
        state = between(after)
    return value_and_gradient(recipe, prepared), state


@pytest.mark.parametrize("name", [name for name in methods_on_batches() if make(name).init()])
def test_a_step_after_a_checkpoint_is_the_same_step(name):
    recipe = make(name)
    (loss, gradient), state = two_steps(recipe, lambda state: state)
    (again, gradient_again), state_again = two_steps(recipe, through_a_checkpoint)
    assert torch.equal(loss, again)
    assert torch.equal(gradient, gradient_again)
    same(state, state_again)


@pytest.fixture(scope="module")
def policies(toy):
    """The same model, packed in trees and padded."""
    return {packing: LanguagePolicy.load(toy, packing=packing) for packing in ("tree", "padded")}


def remembers(recipe: Recipe) -> bool:
    """Whether it samples, and what it samples depends on earlier steps."""
    rollout = recipe.rollout
    return isinstance(rollout, Sample) and bool(rollout.init() or recipe.curriculum.init() or rollout.replay)


def collected(policy, recipe: Recipe, between):
    """The rollouts of the third of three steps, and what is remembered after it."""

    def score(examples, texts, ids):
        return [Outcome(float(len(text) % 3) / 2, columns={"stratum": len(text) % 2}) for text in texts]

    collector = Collector(
        engine=LocalEngine(policy), judge=SimpleNamespace(score=score), encode=policy.encode,
        stream=PromptStream([Example(f"k{i}", f"p{i}", {"answer": i}) for i in range(8)], 0), recipe=recipe, limit=80,
    )  # fmt: skip
    state = {"cursor": 0}
    for step in (1, 2, 3):
        before = copy.deepcopy(state)
        found, after = collector.collect(state, prompts=2, sampling=Sampling(5), key=(0, step))
        same(state, before)
        state = between(after)
    return found, state


@pytest.mark.parametrize("name", [name for name in methods_on_batches() if remembers(make(name))])
def test_rollouts_after_a_checkpoint_are_the_same_rollouts(policies, name):
    recipe = make(name)
    one, state = collected(policies["tree"], recipe, lambda state: state)
    other, state_again = collected(policies["tree"], recipe, through_a_checkpoint)
    assert torch.equal(one.rollouts.tokens, other.rollouts.tokens)
    same(
        {name: getattr(one.batch, name) for name in one.batch},
        {name: getattr(other.batch, name) for name in other.batch},
    )
    same(state, state_again)


KINDS = {
    "dr_grpo": "per token",
    "grpo": "with a reference",
    "gspo": "per sequence",
    "disco": "coupled in groups, with control",
    "kl_cov": "control that selects",
    "r2vpo": "control with state",
    "lp_reg": "observing, with control",
    "oblr_po": "observing before the update",
    "capo_curvature": "measuring",
    "epo_agent": "entropy with gradient",
    "tw_grpo": "whole distributions",
    "q_hawkeye": "an altered prompt",
    "copo": "columns of the verifier",
    "ppo_llm": "a critic",
}


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_does_not_depend_on_passes_or_packing(policies, name):
    recipe, prompts = make(name), [policies["tree"].encode(text) for text in ("ab", "abc", "d")]
    rollouts = LocalEngine(policies["tree"]).generate(
        prompts, [4, 1, 3], Sampling(7), seeded("rows"), observed_at_sampling(recipe)
    )
    outcomes = [Outcome(row % 3 / 2, columns={"answer": row % 2, "prediction": row % 5}) for row in range(8)]
    examples = [Example(str(prompt), "") for prompt in rollouts.prompt.tolist()]
    batch = first_batch(rollouts, outcomes, examples, recipe.needs)
    assert batch is not None
    batch = batch.replace(old_logp=batch.logp + 0.2 * noise(batch, 0).float())
    found = {}
    for packing, policy in policies.items():
        critic = LanguageCritic.from_policy(policy) if recipe.critic else None
        actors = Actors(policy, Learner(policy.parameters(), 0.0, OptimizerConfig(), 1), reference_of(policy), critic)
        for size in (10_000, 60, 1):
            recorder = GradientRecorder(recipe, actors, tokens_per_pass=size, lr=4.5e-4)  # CAPO rejects some tokens
            found[packing, size] = recorder.gradient(rollouts, batch, ("key",))
    whole = found.pop(("padded", 10_000))
    assert whole.norm() > 0
    for case, gradient in found.items():
        assert (gradient - whole).norm() < 1e-4 * whole.norm(), case
