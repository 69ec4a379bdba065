"""Rollouts of earlier steps used again: which, how often, as they were, and over a restart."""

import dataclasses

import pytest
import torch

from upslope import UsageError, make
from upslope.collect import seeded
from upslope.engines.local import LocalEngine
from upslope.policies.language import LanguagePolicy
from upslope.replay import Kept, recall, remember
from upslope.rollout import Example, Outcome, Sampling
from upslope.runs.state import pack, unpack


@pytest.fixture(scope="module")
def kept(toy):
    policy = LanguagePolicy.load(toy)
    prompts = [policy.encode("ab"), policy.encode("c")]
    rollouts = LocalEngine(policy).generate(
        prompts, [2, 2], Sampling(6), seeded("replay"), {"likeliest": lambda log_probs, tokens: log_probs.amax(-1)}
    )
    examples = [Example("k0", [{"role": "user", "content": "ab"}], {"answer": 1})] * 2 + [Example("k1", "c")] * 2
    outcomes = [Outcome(1.0, {"a": 1.0}), Outcome(None, failure="no"), Outcome(0.0), Outcome(0.5)]
    return Kept(rollouts, examples, outcomes, torch.tensor([0, 3, 0, 0]))


def test_comes_back_as_it_was_through_a_checkpoint(kept):
    (state,) = remember([], kept, step=4, window=2)
    structure, tensors = pack(state)
    found, age = recall(
        [unpack(structure, tensors)], chance=1.0, window=2, step=5, generator=torch.Generator().manual_seed(0)
    )
    assert age == 1
    for name in ("prompt", "tokens", "mask", "length", "logp", "behavior_logp"):
        assert torch.equal(getattr(found.rollouts, name), getattr(kept.rollouts, name))
    assert torch.equal(found.rollouts.observed["likeliest"], kept.rollouts.observed["likeliest"])
    assert [list(ids) for ids in found.rollouts.prompts] == [list(ids) for ids in kept.rollouts.prompts]
    assert (found.rollouts.text, found.rollouts.finish) == (kept.rollouts.text, kept.rollouts.finish)
    assert [(e.key, e.prompt) for e in found.examples] == [(e.key, e.prompt) for e in kept.examples]
    assert found.outcomes == kept.outcomes
    assert torch.equal(found.source, kept.source)


def test_the_window_bounds_the_age(kept):
    states = []
    for step in range(1, 6):
        states = remember(states, kept, step=step, window=3)
    assert [state["step"] for state in states] == [3, 4, 5]

    def ages(window, step):
        return {recall(states, chance=1.0, window=window, step=step, generator=seeded(i))[1] for i in range(60)}

    assert ages(3, 6) == {1, 2, 3}
    assert ages(1, 6) == {1}
    assert recall(states, chance=1.0, window=1, step=7, generator=seeded(0)) is None


def test_as_often_as_the_chance_says(kept):
    states = remember([], kept, step=1, window=1)
    used = [recall(states, chance=0.4, window=1, step=2, generator=seeded(i)) is not None for i in range(400)]
    assert 0.33 < sum(used) / 400 < 0.47
    assert recall(states, chance=0.0, window=1, step=2, generator=seeded(0)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay": 1.5}, "Sample.replay is 1.5; it is a probability"),
        ({"replay_window": 0}, "replay_window is 0; it must be at least 1 step"),
        ({"reference_rows": 8}, "reference_rows is 8; it must leave a row of group_size=8 to the policy"),
        ({"reference_rows": -1}, "reference_rows is -1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        make("grpo", **settings)


def test_any_method_takes_it():
    rollout = make("rloo", replay=0.4, replay_window=3).rollout
    assert rollout == dataclasses.replace(make("rloo").rollout, replay=0.4, replay_window=3)
