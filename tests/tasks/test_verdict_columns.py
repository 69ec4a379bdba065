"""What a reward function gives beside the score, through real worker processes and into the methods that read it."""

import pytest
import torch

from upslope import Trainer, UsageError
from upslope.collect import first_batch, with_columns
from upslope.replay import Kept, recall, remember
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.tasks.judge import Judge
from upslope.tasks.rewards import parse_reward

REWARDS = """
import numpy as np

def facts(text):
    return {"answer": text[:1], "prediction": 1 + len(text) % 4, "stratum": len(text) // 3}

def single(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str[:1] > "M"), **facts(solution_str)}

async def asynchronous(data_source, solution_str, ground_truth, extra_info=None):
    return single(data_source, solution_str, ground_truth)

def batched(completions, log_extra, **columns):
    for name in ("answer", "prediction", "stratum"):
        log_extra(name, (facts(one)[name] for one in completions))
    return [float(one[:1] > "M") for one in completions]

def only_strata(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": None, "stratum": len(solution_str)}

def other_strata(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 1.0, "stratum": 0}

def kinds(data_source, solution_str, ground_truth, extra_info=None):
    values = {"numpy": np.int64(3), "true": True, "none": None, "list": [1], "nan": float("nan"), "half": 0.5,
              "text": "three", "long": "x" * 100_000}
    return {"score": 1.0, **dict.fromkeys(("answer", "prediction", "stratum"), values[solution_str])}

def too_few(completions, log_extra):
    log_extra("answer", ["a"])
    return [1.0] * len(completions)

def fails_in_a_batch(completions, log_extra):
    log_extra("answer", completions)
    assert "bad" not in completions
    return [1.0] * len(completions)

def plain(completions):
    return [float(one[:1] > "M") for one in completions]

def sometimes(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 1.0, "stratum": 1} if len(solution_str) % 2 else {"score": 0.0}

def unknown(completions, log_extra):
    log_extra("mood", ["fine"] * len(completions))
    return [1.0] * len(completions)
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "my_rewards.py"
    path.write_text(REWARDS)
    return path


def judged(rewards, reward, completions, reference=None):
    with Judge(parse_reward(reward.format(rewards)), reference=lambda example: reference, timeout=20.0) as judge:
        return judge.score([Example("k", "q")] * len(completions), completions), judge.take_notes()


def columns_of(text):
    return {"answer": text[:1], "prediction": 1 + len(text) % 4, "stratum": len(text) // 3}


@pytest.mark.parametrize("function", ["single", "asynchronous", "batched"])
def test_columns_are_no_reward(rewards, function):
    texts = ["Zebra", "Apple", ""]
    outcomes, notes = judged(rewards, "{}:" + function + "*2", texts)
    assert [one.value for one in outcomes] == [2.0, 0.0, 0.0]
    assert [dict(one.parts) for one in outcomes] == [{function: 2.0}, {function: 0.0}, {function: 0.0}]
    assert [dict(one.columns) for one in outcomes] == [columns_of(text) for text in texts]
    assert notes == []


def test_kinds_of_values(rewards):
    texts = ["numpy", "true", "none", "list", "nan", "half", "text", "long"]
    outcomes, notes = judged(rewards, "{}:kinds", texts)
    found = {text: dict(one.columns) for text, one in zip(texts, outcomes, strict=True)}
    assert all(one.value == 1.0 for one in outcomes)
    assert found["numpy"] == {"answer": 3.0, "prediction": 3.0, "stratum": 3.0}
    assert found["true"] == {"answer": 1.0, "prediction": 1.0, "stratum": 1.0}
    assert found["none"] == found["list"] == found["nan"] == {}
    assert found["half"] == {"answer": 0.5, "prediction": 0.5}
    assert found["text"] == {"answer": "three"}
    assert len(found["long"].pop("answer")) == 64
    assert not found["long"]
    assert "the reward gave 'stratum' as 0.5, not a whole number; it is left out" in notes
    assert "the reward gave 'prediction' as str, not a number; it is left out" in notes


def test_a_term_without_score_gives_its_columns(rewards):
    outcomes, _ = judged(rewards, "exact+{}:only_strata", ["right", "no"], reference="right")
    assert outcomes == [
        Outcome(1.0, {"exact": 1.0}, columns={"stratum": 5.0}),
        Outcome(0.0, {"exact": 0.0}, columns={"stratum": 2.0}),
    ]


def test_terms_that_disagree_fail(rewards):
    outcomes, _ = judged(rewards, "{0}:only_strata+{0}:other_strata", ["", "abc"])
    assert outcomes[0].value == 1.0
    assert outcomes[1].failure == "[other_strata] gives 'stratum', which another part of the reward gives differently"


def test_a_wrong_number_of_values_fails_the_call(rewards):
    outcomes, _ = judged(rewards, "{}:too_few", ["a", "b"])
    assert [one.failure for one in outcomes] == ["log_extra('answer') was given 1 values for 2 completions"] * 2


def test_columns_survive_a_batch_that_is_judged_again_one_by_one(rewards):
    outcomes, _ = judged(rewards, "{}:fails_in_a_batch", ["a", "bad", "b"])
    assert [dict(one.columns) for one in outcomes] == [{"answer": "a"}, {}, {"answer": "b"}]
    assert [one.value for one in outcomes] == [1.0, None, 1.0]


def test_other_columns_are_named(rewards):
    outcomes, notes = judged(rewards, "{}:unknown", ["a"])
    assert outcomes == [Outcome(1.0, {"unknown": 1.0})]
    assert notes == ["log_extra('mood'): no method reads such a column, so it is not recorded"]


def opened(toy, questions, reward, method, **settings):
    return Trainer(
        method, data=str(questions), reward=reward, model=toy, steps=1, prompts_per_step=2, max_tokens=8, threads=1,
        reward_timeout=20.0, **{"eval": {"prompts": 2, "samples": 1}, **settings},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "function"),
    [
        ("q_hawkeye", {}, "single"),
        ("prs_vspo", {"stage_from": "stratum"}, "batched"),
        ("stratified_grpo", {}, "single"),
        ("copo", {"group_size": 4}, "batched"),
        ("polychromic_ppo", {"size": 2}, "single"),
    ],
)
def test_methods_learn_from_a_reward_file(toy, questions, rewards, method, settings, function):
    events = []
    with opened(toy, questions, f"{rewards}:{function}", method, **settings) as trainer:
        trainer._on_event = lambda step, event: events.append(event)
        found, _ = trainer.collector.collect({"cursor": 0}, prompts=2, sampling=Sampling(8), key=("test",))
        given = [columns_of(text) for text in found.rollouts.text]
        for name in ("prediction", "stratum"):
            if name in found.batch:
                assert getattr(found.batch, name).tolist() == [one[name] for one in given]
        if "answer" in found.batch:
            first = [one["answer"] for one in given]
            assert [[a == b for b in first] for a in first] == [
                [a == b for b in found.batch.answer.tolist()] for a in found.batch.answer.tolist()
            ]
        read = trainer.parts.recipe.needs & {"answer", "prediction", "stratum"}
        assert len(read) == 1
        assert read <= set(found.batch)
        trainer.train()
    assert trainer.rows[-1]["rewards/failed"] == 0
    assert 0 <= trainer.rows[-1]["reward"] <= 1
    assert [event for event in events if event.kind in ("step skipped", "reward failed", "reward note")] == []


def test_a_reward_that_never_gives_it_is_refused_at_once(toy, questions, rewards):
    with opened(toy, questions, f"{rewards}:plain", "stratified_grpo") as trainer:
        message = r"reads 'stratum' \(structural label.*does not give it for 16 of 16.*log_extra\(\"stratum\", values\)"
        with pytest.raises(UsageError, match=message):
            trainer.train()


def test_a_completion_without_it_is_a_failure(toy, questions, rewards):
    with opened(toy, questions, f"{rewards}:sometimes", "stratified_grpo") as trainer:
        found, _ = trainer.collector.collect({"cursor": 0}, prompts=4, sampling=Sampling(8), key=("test",))
    odd = [len(text) % 2 == 1 for text in found.rollouts.text]
    assert 0 < sum(odd) < len(odd)
    assert found.batch.valid.tolist() == odd
    assert found.metrics["rewards/failed"] == odd.count(False)
    (event,) = [event for event in found.events if event.kind == "reward failed"]
    assert event.message == "the reward gives no 'stratum', which the method reads"
    assert event.count == odd.count(False)


def rollouts_of(texts):
    rows, ones = len(texts), torch.ones(len(texts), 1)
    return Rollouts(
        [[1]], torch.zeros(rows, dtype=torch.int64), ones.long(), ones.bool(), ones[:, 0].long(), -ones, -ones,
        ["stop"] * rows, texts,
    )  # fmt: skip


def batch_of_outcomes(outcomes, texts=("x\n1", "y\n1", "z")):
    return first_batch(rollouts_of(texts), outcomes, [Example("k", "q")] * 3, frozenset({"answer"}))


def test_answers_are_the_last_lines_unless_they_are_given():
    given = [Outcome(1.0, columns={"answer": one}) for one in (0.5, 0.7, 0.5)]
    assert batch_of_outcomes(given).answer.tolist() == [0, 1, 0]
    assert batch_of_outcomes([Outcome(1.0)] * 3).answer.tolist() == [0, 0, 1]
    parts = [Outcome(1.0, {"answer": float(row)}) for row in range(3)]
    assert batch_of_outcomes(parts).answer.tolist() == [0, 0, 1], "a part of the reward is no column"
    failed = [Outcome(None, failure="no"), *given[1:]]
    assert batch_of_outcomes(failed).answer.tolist() == [0, 1, 2]


def test_only_what_the_method_reads_may_be_missing():
    outcomes = [Outcome(1.0, columns={"answer": "a"}), Outcome(1.0), Outcome(None, failure="no")]
    assert with_columns(outcomes, frozenset({"reward"})) == outcomes
    assert with_columns(outcomes[1:], frozenset({"answer"})) == outcomes[1:]
    assert [one.value for one in with_columns(outcomes, frozenset({"answer"}))] == [1.0, None, None]


def test_columns_are_kept_for_replay():
    outcomes = [Outcome(1.0, columns={"answer": "a"}), Outcome(0.0, columns={"answer": "b"})]
    kept = Kept(rollouts_of(["a", "b"]), [Example("k", "q")] * 2, outcomes, torch.zeros(2, dtype=torch.int64))
    memory = remember([], kept, step=1, window=2)
    again, _ = recall(memory, chance=1.0, window=2, step=2, generator=torch.Generator())
    assert list(again.outcomes) == outcomes
