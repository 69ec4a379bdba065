"""What rollout and curriculum parts may ask of the collection, on the real engine."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from upslope import UsageError, make
from upslope.batch import SOURCES
from upslope.collect import Collector, entropy_of
from upslope.engines.local import LocalEngine
from upslope.parts.sampling import Sample, Uniform
from upslope.policies.language import LanguagePolicy
from upslope.prompts import PromptStream, weighted_order
from upslope.recipe import Part
from upslope.rollout import Example, Outcome, Sampling

TEACHER, REPLAY, TEMPERED = (SOURCES.index(name) for name in ("teacher", "replay", "tempered"))


@pytest.fixture(scope="module")
def policy(toy):
    return LanguagePolicy.load(toy)


def letters(example, text):
    return Outcome(float(text[:1] > "M"))


def collector(policy, recipe, outcome=letters, **options):
    def score(examples, completions, ids):
        return [outcome(example, text) for example, text in zip(examples, completions, strict=True)]

    examples = [Example(f"k{i}", f"p{i}", {"answer": 10 + i}) for i in range(12)]
    return Collector(
        engine=LocalEngine(policy), judge=SimpleNamespace(score=score), encode=policy.encode,
        stream=PromptStream(examples, 0), recipe=recipe, limit=80, **options,
    )  # fmt: skip


def steps(collector, count, prompts=3, max_tokens=6, state=None):
    found, state = [], {"cursor": 0} if state is None else state
    for step in range(1, count + 1):
        one, state = collector.collect(state, prompts=prompts, sampling=Sampling(max_tokens), key=(0, step))
        found.append(one)
    return found, state


def score(policy, rollouts):
    with torch.no_grad():
        return policy.score(rollouts)["logp"]


def test_replay_uses_rows_of_the_window_as_they_were(policy):
    recipe = make("grpo", replay=0.5, replay_window=2, group_size=2)
    found, state = steps(collector(policy, recipe), 12)
    new = [step for step, one in enumerate(found) if one.sampled]
    assert 3 < len(new) < 10
    for step, one in enumerate(found):
        if not one.sampled:
            origin = found[step - int(one.metrics["replay/age"])]
            assert one.metrics["replay/age"] in (1, 2)
            assert origin.sampled
            assert torch.equal(one.rollouts.tokens, origin.rollouts.tokens)
            for column in ("old_logp", "reward", "group", "prompt_key", "valid"):
                assert torch.equal(getattr(one.batch, column), getattr(origin.batch, column))
            assert (one.batch.source == REPLAY).all()
            assert one.metrics["groups/sampled"] == 0
            assert one.metrics["reward"] == origin.metrics["reward"]
    assert state["cursor"] == 3 * len(new), "a replayed step draws no prompt"
    assert len(state["replay"]) <= 2


def test_without_replay_nothing_is_kept(policy):
    _, state = steps(collector(policy, make("grpo", group_size=2)), 2)
    assert state["replay"] == []


def test_log_probs_may_be_the_policys(policy):
    """Where the trainer would compute old_logp again, a run that replays does so while the policy is still the same."""
    (one,), _ = steps(collector(policy, make("grpo", replay=0.1), rescore=True), 1)
    (two,), _ = steps(collector(policy, make("grpo", replay=0.1)), 1)
    assert torch.equal(one.rollouts.tokens, two.rollouts.tokens)
    assert torch.equal(one.rollouts.logp, score(policy, one.rollouts))
    assert torch.equal(one.rollouts.behavior_logp, two.rollouts.behavior_logp)


def test_reference_rows_stand_in_their_groups(policy):
    (one,), _ = steps(collector(policy, make("grpo", group_size=3, reference_rows=1)), 1)
    batch = one.batch
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.source.tolist() == [0, 0, TEACHER] * 3
    for row in (2, 5, 8):
        answer = str(one.examples[row].data["answer"])
        assert one.rollouts.text[row] == answer
        ids = policy.tokenizer(answer)["input_ids"] + [policy.tokenizer.eos_token_id]
        assert one.rollouts.tokens[row, : one.rollouts.length[row]].tolist() == ids
        assert one.rollouts.finish[row] == "stop"
        assert policy.encode(one.examples[row].prompt) == one.rollouts.prompts[one.rollouts.prompt[row]]
    expected = score(policy, one.rollouts)
    torch.testing.assert_close(batch.old_logp, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.behavior_logp, expected, atol=1e-5, rtol=0)


def test_reference_rows_are_judged_but_not_in_the_metrics(policy):
    outcome = lambda example, text: Outcome(5.0 if text == str(example.data["answer"]) else 0.0)  # noqa: E731
    (one,), _ = steps(collector(policy, make("grpo", group_size=3, reference_rows=1), outcome), 1)
    assert one.batch.reward.tolist() == [0, 0, 5] * 3
    assert one.metrics["reward"] == 0
    assert one.metrics["tokens"] == float(one.rollouts.mask[one.source != TEACHER].sum())


def test_a_long_reference_is_cut_like_any_completion(policy):
    (one,), _ = steps(collector(policy, make("grpo", group_size=2, reference_rows=1)), 1, max_tokens=2)
    assert one.rollouts.finish[1] == "length"
    assert one.rollouts.text[1] == str(one.examples[1].data["answer"])
    assert one.batch.truncated.tolist()[1::2] == [True] * 3


def test_the_judge_knows_the_reference_best(policy):
    made = collector(policy, make("grpo", group_size=2, reference_rows=1))
    made.judge.reference = lambda example: f"x{example.key}"
    (one,), _ = steps(made, 1)
    assert one.rollouts.text[1] == f"x{one.examples[1].key}"


def test_a_column_of_the_data_may_hold_the_reference(policy):
    made = collector(policy, make("grpo", group_size=2, reference_rows=1, reference_column="solution"))
    made.judge.reference = lambda example: "the judge's"
    made.prompts.stream = PromptStream([Example("k0", "p0", {"answer": 1, "solution": "so 1"})], 0)
    (one,), _ = steps(made, 1, prompts=1)
    assert one.rollouts.text[1] == "so 1"
    made.prompts.stream = PromptStream([Example("k0", "p0", {"answer": 1})], 0)
    with pytest.raises(UsageError, match=r"'p0' has none; its columns: answer. Give the data a column 'solution'"):
        steps(made, 1, prompts=1)


def test_a_task_without_reference_is_named(policy):
    made = collector(policy, make("grpo", group_size=2, reference_rows=1))
    made.prompts.stream = PromptStream([Example("k0", "p0", {"question": "?"})], 0)
    with pytest.raises(UsageError, match=r"reference answer .* 'p0' has none; its columns: question"):
        steps(made, 1, prompts=1)


@dataclass(frozen=True)
class Warmer(Sample):
    """Hotter with every step; remembers the entropy that it saw."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def init(self):
        return {"steps": 0, "entropy": 0.0}

    def adapt(self, state):
        return (lambda entropy: torch.full_like(entropy, 3.0)) if state["steps"] else None

    def observe(self, batch, state):
        return {"steps": state["steps"] + 1, "entropy": float(batch.masked_mean(batch.entropy))}


def test_a_rollout_part_adapts_the_temperature_and_remembers(policy):
    recipe = make("grpo").replace(rollout=Warmer(group_size=2))
    (first, second), state = steps(collector(policy, recipe), 2)
    assert torch.equal(first.rollouts.logp, first.rollouts.behavior_logp)
    hot, plain = second.rollouts.behavior_logp, second.rollouts.logp
    with torch.no_grad():
        columns = policy.score(second.rollouts, frozenset({"logp"}), temperature=3.0)
    torch.testing.assert_close(hot, columns["logp"], atol=1e-5, rtol=0)
    torch.testing.assert_close(plain, score(policy, second.rollouts), atol=1e-5, rtol=0)
    with torch.no_grad():
        entropy = policy.score(second.rollouts, observe={"entropy": entropy_of})["entropy"]
    assert state["rollout"]["steps"] == 2
    assert state["rollout"]["entropy"] == pytest.approx(float(entropy[second.rollouts.mask].mean()), abs=1e-5)


@dataclass(frozen=True)
class Twice(Sample):
    """Half of the prompts again, hotter; the best of those are kept, and the first row gives way."""

    def second(self, state):
        return 0.5, 2.0

    def join(self, first, second, state):
        stays = torch.ones(len(first), dtype=torch.bool)
        stays[0] = False
        return stays, second.reward > 0


def test_a_second_draw_follows_the_first(policy):
    recipe = make("grpo").replace(rollout=Twice(group_size=4))
    (one,), _ = steps(collector(policy, recipe), 1, prompts=4)
    (plain,), _ = steps(collector(policy, make("grpo", group_size=4)), 1, prompts=4)
    batch, count = one.batch, len(one.batch) - 16
    assert count == one.metrics["second/rows"] > 0
    assert torch.equal(one.rollouts.tokens[:16, : plain.rollouts.tokens.shape[1]], plain.rollouts.tokens)
    assert batch.source.tolist() == [0] * 16 + [TEMPERED] * count
    assert batch.reward[16:].tolist() == [1.0] * count
    assert not batch.mask[0].any()
    assert batch.trained[1:].all()
    assert torch.equal(batch.reward[:16], plain.batch.reward)
    assert int(batch.group[16]) == 4, "groups of their own, behind the first"
    half = set(plain.batch.prompt_key[:8].tolist())
    assert set(batch.prompt_key[16:].tolist()) <= half
    torch.testing.assert_close(batch.old_logp[1:], score(policy, one.rollouts)[1:], atol=1e-5, rtol=0)
    hot = policy.score(one.rollouts, temperature=2.0)["logp"].detach()
    torch.testing.assert_close(batch.behavior_logp[16:], hot[16:], atol=1e-5, rtol=0)
    assert one.metrics["tokens"] > plain.metrics["tokens"]
    assert one.metrics["reward"] == plain.metrics["reward"]


@dataclass(frozen=True)
class Counting(Uniform):
    """Draws examples that it has not seen, one completion of each judged before; tells how often it saw each."""

    def init(self):
        return {"seen": {}, "places": [], "scouted": {}}

    def weights(self, size, state):
        return torch.tensor([1e-9 if place in state["places"] else 1.0 for place in range(size)])

    def scout(self, keys, state):
        return [0 if key in state["scouted"] else 2 for key in keys]

    def scouted(self, keys, rewards, state):
        return {**state, "scouted": {**state["scouted"], **dict(zip(keys, rewards, strict=True))}}

    def track(self, visit, state):
        seen = torch.tensor([float(state["seen"].get(key, 0)) for key in visit.keys])
        assert torch.allclose(visit.score(visit.rollouts), visit.rollouts.logp, atol=1e-5)
        after = {key: state["seen"].get(key, 0) + 1 for key in visit.keys}
        places = state["places"] + sorted(visit.places)
        return {"expected_reward": seen}, {**state, "seen": {**state["seen"], **after}, "places": places}


@dataclass(frozen=True)
class Told(Part):
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "expected_reward"})

    def __call__(self, batch):
        return batch.reward - batch.expected_reward


def test_a_curriculum_draws_by_weight_scouts_and_tells(policy):
    recipe = make("grpo").replace(curriculum=Counting(), advantage=Told(), rollout=Sample(group_size=1))
    found, state = steps(collector(policy, recipe), 4)
    keys = [example.key for one in found[:4] for example in one.examples]
    assert sorted(keys) == sorted(f"k{i}" for i in range(12)), "four steps of three see all twelve, each once"
    assert state["cursor"] == 0
    assert set(state["curriculum"]["scouted"]) == set(keys)
    assert all(len(rewards) == 2 for rewards in state["curriculum"]["scouted"].values())
    (again,), _ = steps(collector(policy, recipe), 1, state=state)
    assert again.batch.expected_reward.tolist() == [1.0] * 3


def test_no_curriculum_that_tells_is_named(policy):
    recipe = make("grpo").replace(advantage=Told())
    with pytest.raises(UsageError, match=r"reads 'expected_reward'.* its curriculum Uniform tells none"):
        steps(collector(policy, recipe), 1)


def test_weighted_order_is_without_replacement_and_in_proportion():
    weights = torch.tensor([1.0, 3.0, 1e-3, 4.0])
    orders = [list(weighted_order(weights, torch.Generator().manual_seed(seed))) for seed in range(800)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    first = torch.tensor([order[0] for order in orders]).bincount(minlength=4) / 800
    torch.testing.assert_close(first, weights / weights.sum(), atol=0.05, rtol=0)


def test_too_long_prompts_are_passed_over_in_a_weighted_draw(policy):
    recipe = make("grpo").replace(curriculum=Counting(), rollout=Sample(group_size=1))
    made = collector(policy, recipe)
    examples = [replace(e, prompt="x" * 90) if i else e for i, e in enumerate(made.prompts.stream.examples)]
    made.prompts.stream = PromptStream(examples, 0)
    (one,), _ = steps(made, 1)
    assert [example.key for example in one.examples] == ["k0"]
    assert [(event.kind, event.count) for event in one.events] == [("prompt too long", 11)]
