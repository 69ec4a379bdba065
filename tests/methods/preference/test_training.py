"""Methods whose step is more than one loss over pairs, trained for a few steps: on whole batches and in passes of single groups."""

import json

import pytest

from upslope import Trainer
from upslope.rollout import Example, Outcome

SMALL = {"max_tokens": 6, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 4, "threads": 1, "steps": 2}


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "abc"[: 1 + i % 3], "rejected": "XYZ"[: 1 + i % 2]} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("name", ["slic_hinge", "rpo_sft@trl", "simpo", "kto"])
def test_the_step_does_not_depend_on_passes(toy, pairs, name):
    found = []
    for tokens in (1, 4096):
        with Trainer(
            name, model=toy, data=str(pairs), tokens_per_pass=tokens, optimizer={"lr": 1e-3}, **SMALL
        ) as trainer:
            rows = trainer.train().rows
        found.append([rows[-1]["loss"], rows[-1]["grad_norm"], rows[-1]["eval/loss"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][1] > 1e-3


class Letters:
    """A task of which the letter b is the better the more of it there is."""

    name, settings, solved_at = "letters", {}, 1.0

    def __init__(self):
        self.judge = self

    def score(self, examples, texts, ids=None):
        return [Outcome(text.count("b") / 2) for text in texts]

    def examples(self, split):
        return [Example(f"{split}{i}", f"p{i}") for i in range(8)]

    def close(self):
        pass


def test_soft_preferences_over_sampled_completions(toy):
    with Trainer("osp", model=toy, task=Letters(), **SMALL) as trainer:
        rows = trainer.train().rows
    assert {"pairs/accuracy", "pairs/margin", "pairs/paired"} <= rows[-1].keys()
    assert rows[-1]["pairs/paired"] == 1.0, "equal rewards make pairs, too"


class Characters(Letters):
    """The share of whole characters in what random bytes decode to: from the start there are many, and many are not."""

    def score(self, examples, texts, ids=None):
        return [Outcome(1 - text.count("\ufffd") / max(len(text), 1)) for text in texts]


@pytest.mark.parametrize("name", ["dpo@online", "dpo@iterative", "ipo@online", "simpo@online", "kto@online"])
def test_online_forms_learn_from_rewards(toy, name):
    settings = {**SMALL, "steps": 12, "prompts_per_step": 8, "optimizer": {"lr": 1e-2}}
    settings |= {"fresh_reference": 4} if name == "dpo@iterative" else {}
    with Trainer(name, model=toy, task=Characters(), **settings) as trainer:
        rows = trainer.train().rows
        anew = trainer._reference_reset
    assert rows[-1]["reward"] > rows[1]["reward"] + 0.1
    assert anew == (name == "dpo@iterative")
    assert all(row["sampler_gap/max"] < 1e-3 for row in rows[1:])


def test_a_reset_of_no_reference_is_said(toy):
    said = []
    with Trainer(
        "simpo@online",
        model=toy,
        task=Letters(),
        fresh_reference=2,
        on_event=lambda step, event: said.append(event),
        **SMALL,
    ) as trainer:
        trainer.train()
    assert "update.fresh_reference=2: 'simpo@online' reads no frozen reference" in said[0].message
