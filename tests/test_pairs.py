"""Pairs from a model's own completions: what is preferred is right, and the same seed gives the same."""

import pytest

from upslope.pairs import sample_pairs
from upslope.policies.language import LanguagePolicy
from upslope.rollout import Outcome
from upslope.tasks.base import open_task


@pytest.fixture(scope="module")
def task():
    with open_task("chain_sum", for_model="tiny", train_size=12) as task:
        yield task


def test_the_chosen_completion_is_right_and_the_rejected_one_is_not(task):
    pairs = sample_pairs(LanguagePolicy.load("tiny"), task, prompts=12, samples=6, max_tokens=8)
    examples = {example.prompt: example for example in task.examples("train")}
    assert len(pairs) > 4
    for pair in pairs:
        example = examples[pair["prompt"]]
        right, wrong = task.judge.score([example, example], [pair["chosen"], pair["rejected"]])
        assert right.value == 1.0
        assert wrong.value < 1.0


def test_the_seed_decides(task):
    policy = LanguagePolicy.load("tiny")
    settings = {"prompts": 6, "samples": 4, "max_tokens": 8}
    first = sample_pairs(policy, task, **settings)
    assert first == sample_pairs(policy, task, **settings)
    assert first != sample_pairs(policy, task, **settings, seed=1)


def test_blank_completions_and_failed_judgements_are_in_no_pair(task):
    class Failing:
        def score(self, examples, texts, ids=None):
            return [Outcome(None, failure="down") for _ in texts]

    class Judged:
        judge, solved_at, examples = Failing(), 1.0, task.examples

    assert sample_pairs(LanguagePolicy.load("tiny"), Judged(), prompts=3, samples=2, max_tokens=8) == []
