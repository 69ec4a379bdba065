"""Given completions are evaluated by a task, by a reward on the same data's held-out prompts, or by their own loss."""

import json

import pytest

from upslope.errors import UsageError
from upslope.trainer import Trainer

SMALL = {"steps": 1, "prompts_per_step": 2, "max_tokens": 6, "self_checks": False, "eval": {"prompts": 4, "samples": 2}}


@pytest.fixture
def file(tmp_path):
    def write(**columns):
        rows = [{"prompt": f"What is {n} + 1?", "completion": str(n + 1), **columns} for n in range(60)]
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_a_reward_evaluates_completions_that_the_model_samples_to_held_out_prompts(file):
    with Trainer("sft", data=file(), reward="exact", **SMALL) as trainer:
        trainer.train()
        row, parts = trainer.rows[-1], trainer.parts
        assert "eval/pass@1" in row
        trained = {example.prompt for example in parts.train_examples}
        assert trained.isdisjoint(example.prompt for example in parts.eval_examples)
        example = parts.eval_examples[0]
        (right, wrong) = parts.task.judge.score([example, example], [example.data["completion"], "x"])
        assert (right.value, wrong.value) == (1.0, 0.0)


def test_a_column_of_answers_is_the_reference_before_the_demonstration(file):
    with Trainer(
        "sft", data=file(answer="7"), reward="exact", task_settings={"completion_key": "completion"}, **SMALL
    ) as t:
        (outcome,) = t.parts.task.judge.score([t.parts.eval_examples[0]], ["7"])
        assert outcome.value == 1.0


def test_without_a_reward_it_is_the_loss(file):
    with Trainer("sft", data=file(), **SMALL) as trainer:
        trainer.train()
        assert "eval/loss" in trainer.rows[-1]
        assert "eval/pass@1" not in trainer.rows[-1]


def test_a_reward_that_nothing_would_read_is_refused(file):
    with pytest.raises(UsageError, match="Leave one of them out"):
        Trainer("sft", data=file(), reward="exact", task="chain_sum", **SMALL)
