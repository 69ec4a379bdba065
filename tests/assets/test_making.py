"""The parts of scripts/make_tiny.py: demonstrators, and answers packed as branches of their question."""

import json
import sys
from importlib import resources
from itertools import islice
from pathlib import Path

import pytest
import reasoning_gym
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from tiny.demonstrators import TASKS, right, with_right_share
from tiny.training import Question, Size, collate, entries, new_model, question_of, target_logp

from upslope.tasks.holdout import is_held_out

TINY = Path(str(resources.files("upslope"))) / "assets" / "tiny"
TOKENIZER = AutoTokenizer.from_pretrained(TINY)


def test_shipped_settings_are_the_ones_trained_on():
    assert json.loads((TINY / "tasks.json").read_text()) == {task: dict(r.settings) for task, r in TASKS.items()}
    assert sum(recipe.part for recipe in TASKS.values()) == pytest.approx(1)


@pytest.mark.parametrize("task", TASKS)
def test_one_demonstrator_is_right_and_a_wrong_one_is_likelier(task):
    dataset = reasoning_gym.create_dataset(task, seed=3, size=1, **TASKS[task].settings)
    first, rival, *others = TASKS[task].demonstrators
    assert first.answer is right
    assert rival.share > first.share > max(other.share for other in others)
    sample = list(islice(entries(task, 3, held_out=True), 300))
    scores = [[dataset.score_answer(d.answer(e), e) >= 1 for e in sample] for d in TASKS[task].demonstrators]
    accuracy = torch.tensor(scores).float().mean(1)
    assert accuracy[0] == 1
    # Wrong procedures hit the right answer now and then; imitation must stay below 45 % all the same.
    assert accuracy[1:].max() < 0.25
    assert sum(d.share * float(a) for d, a in zip(TASKS[task].demonstrators, accuracy, strict=True)) < 0.45


@pytest.mark.parametrize("task", TASKS)
def test_the_teachers_demonstrators_are_the_same_in_another_proportion(task):
    team = with_right_share(TASKS[task].demonstrators, 0.8)
    assert sum(member.share for member in team) == pytest.approx(1)
    assert team[0].share == 0.8
    assert [member.answer for member in team] == [member.answer for member in TASKS[task].demonstrators]
    rates = [one.share / other.share for one, other in zip(team[1:], TASKS[task].demonstrators[1:], strict=True)]
    assert rates == pytest.approx([rates[0]] * len(rates))


def test_the_teacher_has_the_same_tokens():
    teacher = AutoTokenizer.from_pretrained(TINY.parent / "tiny-teacher")
    assert teacher.get_vocab() == TOKENIZER.get_vocab()
    assert teacher.chat_template == TOKENIZER.chat_template


def test_nothing_held_out_is_trained_on():
    assert not any(is_held_out(e["question"]) for e in islice(entries("chain_sum", 0, held_out=False), 2000))


def test_branches_equal_separate_sequences():
    """Packing a question's answers behind one prompt changes no log-prob, and padding none either."""
    torch.manual_seed(0)
    model = new_model(TOKENIZER, Size(128, 4))
    model.set_attn_implementation("sdpa")
    batch = [
        question_of(entry, TASKS[task].demonstrators, TOKENIZER)
        for task in TASKS
        for entry in islice(entries(task, 1, held_out=True), 2)
    ]
    with torch.no_grad():
        packed = target_logp(model, collate(batch), autocast=False)
        separate = [logp_of(model, question, answer) for question in batch for answer in question.answers]
    torch.testing.assert_close(packed, torch.cat(separate), atol=1e-5, rtol=1e-5)


def logp_of(model, question: Question, answer):
    ids = torch.tensor([question.prompt + answer])
    logp = model(input_ids=ids).logits[0, len(question.prompt) - 1 : -1].log_softmax(-1)
    return logp.gather(1, torch.tensor(answer)[:, None])[:, 0]
