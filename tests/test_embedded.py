"""What runs of the embedded model get that they do not name, and who gets nothing."""

import pytest

from upslope.config import Config
from upslope.embedded import with_embedded
from upslope.tasks.completions import open_completions
from upslope.trainer import Trainer

SMALL = {"prompts_per_step": 2, "max_tokens": 4, "self_checks": False, "eval": {"prompts": 4, "samples": 1}}


@pytest.mark.parametrize("method", ["dpo", "sft", "kto", "hypo_online_kl"])
def test_given_completions_are_the_shipped_pairs_evaluated_on_sums(method):
    config = with_embedded(Config(method=method))
    assert (config.data, config.task) == ("tiny-preferences", "chain_sum")


def test_a_reward_model_has_no_task_and_a_reward_takes_its_place():
    assert with_embedded(Config(method="rm")).task is None
    rewarded = with_embedded(Config(method="sft", reward="exact"))
    assert (rewarded.data, rewarded.task) == ("tiny-preferences", None)


def test_what_distills_gets_the_sibling_unless_it_is_its_own_teacher_or_wants_another_model():
    assert with_embedded(Config(method="opd", task="gcd")).teacher == "tiny-teacher"
    assert with_embedded(Config(method="opd", task="gcd", teacher="other")).teacher == "other"
    assert with_embedded(Config(method="opsd_sdft", task="gcd")).teacher is None
    assert with_embedded(Config(method="salsa", task="gcd")).teacher is None


@pytest.mark.parametrize(
    "config",
    [
        Config(method="dpo", model="org/name"),
        Config(method="opd", model="org/name"),
        Config(method="dpo", data="mine.jsonl"),
        Config(method="dpo", task="gcd"),
        Config(method="grpo"),
        Config(method="sac", task="Pendulum-v1"),
    ],
)
def test_everything_else_stays_as_it_is(config):
    assert with_embedded(config) == config


def test_the_shipped_pairs_are_pairs_with_prompts_to_train_on_and_to_hold_out():
    data = open_completions("tiny-preferences", "pairs")
    assert len(data.examples("train")) > 1500
    assert len(data.examples("eval")) > 50
    assert len(open_completions("tiny-preferences", "demonstrations").examples("train")) > 1500


@pytest.mark.parametrize("method", ["dpo", "gkd"])
def test_python_gets_them_too(method):
    task = {"task": "chain_sum"} if method == "gkd" else {}
    with Trainer(method, steps=1, **task, **SMALL) as trainer:
        trainer.train()
        assert "eval/pass@1" in trainer.rows[-1]
