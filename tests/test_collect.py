"""Prompts in their order, groups and their outcomes: on the real engine, with rewards made up from the text."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError, make
from upslope.collect import Collector, first_batch, seeded
from upslope.engines.local import LocalEngine
from upslope.outcomes import failure_events, reward_metrics
from upslope.policies.language import LanguagePolicy
from upslope.prompts import PromptStream
from upslope.rollout import Example, Outcome, Sampling

SIZES = st.integers(1, 30)


def stream(size, seed=0):
    return PromptStream([Example(f"k{i}", f"p{i}") for i in range(size)], seed)


@given(size=SIZES, seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_every_example_once_per_epoch(size, seed, epoch):
    keys = [example.key for example in stream(size, seed).take(epoch * size, size)]
    assert sorted(keys) == sorted(f"k{i}" for i in range(size))


@given(size=SIZES, cursor=st.integers(0, 100), first=st.integers(0, 20), second=st.integers(0, 20))
def test_order_depends_on_the_position_only(size, cursor, first, second):
    whole = stream(size).take(cursor, first + second)
    assert whole == stream(size).take(cursor, first) + stream(size).take(cursor + first, second)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(e.key for e in stream(20, seed).take(start, 20)) for seed in (0, 1) for start in (0, 20)]
    assert len(set(orders)) == 4


@given(st.lists(st.integers(0, 99), min_size=2, max_size=3), st.lists(st.integers(0, 99), min_size=2, max_size=3))
def test_seeds_differ_where_keys_do(one, other):
    same = torch.equal(torch.rand(4, generator=seeded(*one)), torch.rand(4, generator=seeded(*other)))
    assert same == (one == other)


OUTCOMES = [
    Outcome(1.0, {"a": 1.0}), Outcome(None, failure="boom\nat line 3"), Outcome(0.0, {"a": 3.0}), Outcome(None, failure="boom"),
    Outcome(None, failure="bang"),
]  # fmt: skip


def test_reward_metrics_are_over_valid_rewards():
    metrics = reward_metrics(OUTCOMES)
    assert metrics == {
        "rewards/failed": 3.0,
        "reward": 0.5,
        "reward_std": pytest.approx(0.5**0.5),
        "rewards/a/mean": 2.0,
    }
    assert reward_metrics(OUTCOMES[1:2]) == {"rewards/failed": 1.0}


def test_failures_are_counted_by_reason():
    assert [(e.message, e.count) for e in failure_events(OUTCOMES)] == [("boom", 2), ("bang", 1)]


@pytest.fixture(scope="module")
def policy(toy):
    return LanguagePolicy.load(toy)


def collector(policy, outcome, method="grpo", examples=None, limit=80, **settings):
    def score(examples, completions, ids):
        assert [len(row) <= 4 for row in ids] == [True] * len(completions)
        return [outcome(example, text) for example, text in zip(examples, completions, strict=True)]

    examples = examples or [Example(f"k{i}", f"p{i}") for i in range(12)]
    return Collector(
        engine=LocalEngine(policy), judge=SimpleNamespace(score=score), encode=policy.encode,
        stream=PromptStream(examples, 0), recipe=make(method, **settings), limit=limit,
    )  # fmt: skip


def collect(collector, cursor=0, prompts=3, key=(0, 1)):
    return collector.collect({"cursor": cursor}, prompts=prompts, sampling=Sampling(4), key=key)


def test_columns_are_aligned_and_a_failure_is_masked(policy):
    found, state = collect(
        collector(policy, lambda e, t: Outcome(None, failure="no") if e.key == "k3" else Outcome(len(t)), group_size=2)
    )
    assert (state["cursor"], state["steps"], state["replay"]) == (3, 1, [])
    batch = found.batch
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    for row, (example, text) in enumerate(zip(found.examples, found.rollouts.text, strict=True)):
        assert policy.encode(example.prompt) == found.rollouts.prompts[batch.prompt[row]]
        assert bool(batch.valid[row]) == (example.key != "k3")
        assert float(batch.reward[row]) == (0 if example.key == "k3" else len(text))
    assert found.metrics["rewards/failed"] == sum(e.key == "k3" for e in found.examples)
    assert found.metrics["groups/sampled"] == 3


def test_same_key_same_rollouts(policy):
    def run(key):
        return collect(collector(policy, lambda e, t: Outcome(1.0)), key=key)[0].rollouts

    assert torch.equal(run((0, 1)).tokens, run((0, 1)).tokens)
    assert not torch.equal(run((0, 1)).tokens, run((0, 2)).tokens)


def test_no_valid_reward_gives_no_batch(policy):
    found, _ = collect(collector(policy, lambda e, t: Outcome(None, failure="no")))
    assert found.batch is None
    assert [(e.kind, e.message, e.count) for e in found.events] == [("reward failed", "no", 24)]
    assert "reward" not in found.metrics


def test_long_prompts_are_passed_over_and_counted(policy):
    examples = [Example(f"k{i}", "x" * (100 if i % 3 == 0 else 10)) for i in range(12)]
    found, state = collect(collector(policy, lambda e, t: Outcome(1.0), examples=examples), prompts=8)
    (event,) = found.events
    assert event.kind == "prompt too long"
    assert state["cursor"] == 8 + event.count
    assert {e.key for e in found.examples} <= {f"k{i}" for i in range(12) if i % 3}


def test_only_long_prompts_are_an_error(policy):
    with pytest.raises(UsageError, match=r"every prompt is longer than the 80 tokens .*'k\d+' has 100"):
        collect(collector(policy, lambda e, t: Outcome(1.0), examples=[Example(f"k{i}", "x" * 100) for i in range(3)]))


def test_zero_variance_is_measured(policy):
    found, _ = collect(
        collector(policy, lambda e, t: Outcome(float(e.key in ("k1", "k2") or t > "M")), group_size=8), prompts=12
    )
    spread = [len(set(found.batch.reward[found.batch.group == g].tolist())) == 1 for g in range(12)]
    assert found.metrics["groups/zero_variance"] == sum(spread) / 12 > 0


def test_dynamic_sampling_keeps_groups_that_differ_and_says_when_there_are_few(policy):
    def useful(example, text):
        return Outcome(float(text > "M") if example.key in ("k1", "k5", "k7") else 1.0)

    found, state = collect(collector(policy, useful, "dapo", group_size=8, max_rounds=3), prompts=4)
    assert {e.key for e in found.examples} <= {"k1", "k5", "k7"}
    assert found.batch.group.unique().tolist() == list(range(int(found.batch.group.max()) + 1))
    assert found.metrics["groups/sampled"] == state["cursor"] > 4
    kept = len(found.batch.group.unique())
    assert [(e.kind, e.message) for e in found.events] == (
        [("few groups", f"{kept} of 4 groups had rewards that differ, in 3 rounds")] if kept < 4 else []
    )


def test_dynamic_sampling_draws_no_more_than_it_lacks(policy):
    """Two of three groups differ: the first round of 6 leaves a few to draw, not 6 again."""

    def useful(example, text):
        return Outcome(float(text > "M") if int(example.key[1:]) % 3 else 1.0)

    found, state = collect(collector(policy, useful, "dapo", group_size=16), prompts=6)
    assert int(found.batch.group.max()) + 1 == 6
    assert 6 < state["cursor"] < 12


def test_first_batch_of_failures_only(policy):
    found, _ = collect(collector(policy, lambda e, t: Outcome(1.0)))
    assert first_batch(found.rollouts, [Outcome(None, failure="x")] * len(found.rollouts), found.examples) is None
