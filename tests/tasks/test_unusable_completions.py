"""Files with given completions that cannot be used as they are: rows left out and counted, or named with their place."""

import re

import pytest

from upslope.errors import UsageError
from upslope.tasks.completions import Completion, open_completions

from .completion_rows import BAD, GOOD, HH, LONG, PAIRS, SYSTEM, USER, examples, jsonl


def test_rows_without_a_lesson_are_left_out_counted_and_named(tmp_path):
    bad = [
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"prompt": "b", "chosen": "same", "rejected": "same"},
        {"prompt": "c", "chosen": " \n", "rejected": "x"},
        {"prompt": "d", "chosen": "x", "rejected": None},
        {"prompt": "e", "chosen": [], "rejected": [BAD]},
        {"prompt": "f", "chosen": [{**GOOD, "content": ""}], "rejected": [BAD]},
        {"prompt": "g", "chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "h", "chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]},
        {"prompt": "i", "chosen": [GOOD, USER], "rejected": [BAD]},
    ]
    data = open_completions(jsonl(tmp_path / "d.jsonl", [*PAIRS, *bad]), "pairs")
    assert len(examples(data)) == 40
    assert [note for note in data.notes if "left out" in note] == [
        "2 rows left out: chosen and rejected are the same (e.g. d.jsonl line 41)",
        "3 rows left out: chosen is empty (e.g. d.jsonl line 43)",
        "1 row left out: rejected is empty (e.g. d.jsonl line 44)",
        "1 row left out: chosen and rejected part before the assistant's last turn (e.g. d.jsonl line 47)",
        "1 row left out: chosen and rejected share no prompt before the assistant's turn (e.g. d.jsonl line 48)",
        "1 row left out: a completion holds turns that are not the assistant's (e.g. d.jsonl line 49)",
    ]
    with pytest.raises(
        UsageError, match=r"data has no usable row. 2 rows left out: .*; 3 rows left out: chosen is empty .*; 1 row"
    ):
        open_completions(bad, "pairs")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER]}, "last turn is not the assistant's"),
        ({"messages": [USER, GOOD, USER]}, "last turn is not the assistant's"),
        ({"messages": [GOOD]}, "no prompt before the assistant's turn"),
        ({"messages": [USER, {**GOOD, "content": " "}]}, "messages is empty"),
        ({"completion": HH + "  "}, "completion is empty"),
        ({"completion": LONG + " 2\n\nHuman: thanks"}, "last turn is not the assistant's"),
        ({"completion": "\n\nAssistant: 2"}, "no prompt before the assistant's turn"),
    ],
)
def test_conversations_without_a_lesson(row, reason):
    with pytest.raises(UsageError, match=f"data has no usable row. 1 row left out: .*{reason}"):
        open_completions([row], "demonstrations")


def test_hh_conversations_that_part_early_are_left_out():
    early = {"chosen": LONG + " 2", "rejected": LONG.replace("hello", "yo") + " 2"}
    data = open_completions([early, {"chosen": HH + " 2", "rejected": HH + " 3"}], "pairs")
    assert len(examples(data)) == 1
    assert any("1 row left out: chosen and rejected part before" in note for note in data.notes)


def test_scores_against_the_preference_are_kept_and_counted_but_not_if_they_are_most():
    rows = [{**row, "score_chosen": 2, "score_rejected": 3 if n < 5 else 1} for n, row in enumerate(PAIRS)]
    data = open_completions(rows, "pairs")
    assert len(examples(data)) == 40
    assert any(
        "5 pairs whose preferred completion has the lower score (e.g. data row 1): kept" in note for note in data.notes
    )
    first = next(one for one in examples(data) if one.prompt == "0 + 1 = ?")
    assert first.data["completions"] == (Completion("1", 1.0, 2.0), Completion("0", 0.0, 3.0))
    with pytest.raises(UsageError, match=r"in 40 of 40 scored pairs .* Are the columns exchanged"):
        open_completions([{**row, "score_chosen": 1, "score_rejected": 2} for row in PAIRS], "pairs")
    soft = [{**row, "p": 0.2, "score_chosen": 1, "score_rejected": 2} for row in PAIRS]
    assert not any("lower score" in note for note in open_completions(soft, "pairs").notes)
    equal = [{**row, "score_chosen": 1, "score_rejected": 1} for row in PAIRS]
    assert not any("lower score" in note for note in open_completions(equal, "pairs").notes)


LABELLED = {"prompt": "1+1?", "completion": "2", "label": True}
SCORED = {**PAIRS[0], "score_chosen": 1.0, "score_rejected": 0.0}


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        ("pairs", PAIRS[0], {"prompt": "x", "chosen": "y"}, "has no column 'rejected'. Its columns: prompt, chosen"),
        ("pairs", PAIRS[0], {"chosen": "y", "rejected": "z"}, "has no column 'prompt'. Its columns: chosen, rejected"),
        ("pairs", PAIRS[0], {**PAIRS[0], "chosen": 5}, "chosen is a number. It must be a text or a list"),
        ("pairs", PAIRS[0], {**PAIRS[0], "prompt": 5}, "prompt is a number"),
        ("pairs", PAIRS[0], {**PAIRS[0], "prompt": " "}, "prompt is empty"),
        ("pairs", PAIRS[0], {**PAIRS[0], "chosen": ["x"]}, "chosen: message 1 is a text, not an object with role"),
        ("pairs", PAIRS[0], {**PAIRS[0], "chosen": [GOOD]}, "one of chosen and rejected is a text, the other a list"),
        (
            "pairs",
            PAIRS[0],
            {"prompt": [SYSTEM], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "does not begin with the messages of prompt",
        ),
        ("pairs", SCORED, {**SCORED, "score_chosen": float("nan")}, "score_chosen is nan. It must be a finite number"),
        ("pairs", SCORED, {**SCORED, "score_rejected": float("-inf")}, "score_rejected is -inf"),
        ("pairs", SCORED, {**SCORED, "score_rejected": 10**400}, "score_rejected is inf"),
        ("pairs", SCORED, {**SCORED, "score_chosen": "high"}, "score_chosen is 'high', not a number"),
        ("pairs", SCORED, {**SCORED, "score_chosen": [1]}, "score_chosen is a list, not a number"),
        ("pairs", {**PAIRS[0], "p": 0.5}, {**PAIRS[0], "p": 1.5}, "p is 1.5. Beside a pair it must be the probability"),
        ("pairs", {**PAIRS[0], "p": 0.5}, {**PAIRS[0], "p": -1}, "p is -1. Beside a pair it must be the probability"),
        ("pairs", {**PAIRS[0], "p": 0.5}, {**PAIRS[0], "p": float("nan")}, "p is nan. It must be a finite"),
        ("pairs", {**PAIRS[0], "p": 0.5}, PAIRS[0], "p is empty. Beside a pair it must be the probability"),
        ("labels", {**PAIRS[0], "p": 1}, {**PAIRS[0], "p": 0.5}, "p is 0.5. A pair is taken apart"),
        ("labels", LABELLED, {**LABELLED, "label": 0.5}, "label is 0.5. It must be true or false, 1 or 0"),
        ("labels", LABELLED, {**LABELLED, "label": 2}, "label is 2. It must be true or false, 1 or 0"),
        ("labels", LABELLED, {**LABELLED, "label": float("nan")}, "label is nan. It must be true or false"),
        ("labels", LABELLED, {**LABELLED, "label": "so-so"}, "label is 'so-so'. It must be true or false"),
        ("labels", LABELLED, {**LABELLED, "label": None}, "label is null. It must be true or false"),
        ("labels", LABELLED, {"prompt": "1+1?", "completion": "2"}, "has no column 'label'"),
        ("demonstrations", {"question": "1", "answer": "2"}, {"question": "1"}, "has no column 'answer'"),
        (
            "demonstrations",
            {"messages": [USER, GOOD]},
            {"messages": [{"role": "user"}]},
            "messages: message 1: content is missing",
        ),
        (
            "demonstrations",
            {"instruction": "a", "input": "b", "output": "c"},
            {"instruction": "a", "input": 3, "output": "c"},
            "instruction and input must both be texts",
        ),
    ],
)
def test_what_breaks_a_file_is_named_with_its_line(tmp_path, kind, good, bad, message):
    path = jsonl(tmp_path / "d.jsonl", [good] * 16 + [bad] + [good] * 3)
    with pytest.raises(UsageError, match=re.escape("d.jsonl line 17") + ".*" + re.escape(message)):
        open_completions(path, kind)


@pytest.mark.parametrize(
    ("kind", "rows", "settings", "message"),
    [
        ("pair", PAIRS, {}, "kind 'pair': it must be pairs, labels, demonstrations"),
        ("pairs", PAIRS, {"chosen_kay": "x"}, "no setting 'chosen_kay'. Its settings: input_key, chosen_key"),
        ("demonstrations", PAIRS, {"label_key": "x"}, "a file of demonstrations has no setting 'label_key'"),
        (
            "pairs",
            PAIRS,
            {"chosen_key": "best"},
            "no column 'best', which chosen_key names. Its columns: prompt, chosen",
        ),
        (
            "pairs",
            [LABELLED],
            {},
            "no two columns can be the pair. Its columns: prompt, completion, label. Expected: chosen",
        ),
        ("pairs", PAIRS, {"chosen_key": "rejected"}, "no two columns can be the pair"),
        ("labels", PAIRS, {"chosen_key": "chosen", "completion_key": "chosen"}, "not both"),
        ("labels", [{"prompt": "a", "completion": "b"}], {}, "no column can be the label"),
        ("demonstrations", [{"prompt": "a"}], {}, "no column can be the completion. .*completion_key=COLUMN"),
        (
            "pairs",
            [{"q": "a", "chosen": "b", "rejected": "c"}],
            {},
            "no column can be the prompt, and chosen holds no conversations",
        ),
        (
            "labels",
            [LABELLED, {**LABELLED, "label": 0}, {**LABELLED, "label": -1}],
            {},
            "label is 0 in data row 2 and -1 in data row 3",
        ),
        (
            "pairs",
            PAIRS,
            {"eval_data": [{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}]},
            "data has no usable row. 1 row left out: chosen and",
        ),
        ("pairs", [{**PAIRS[0], "split": "test"}], {}, "there is none to train on"),
    ],
)
def test_wrong_files_and_settings(kind, rows, settings, message):
    with pytest.raises(UsageError, match=message):
        open_completions(rows, kind, settings)


def test_wrong_size():
    with pytest.raises(UsageError, match="train_size must be at least 1, got 0"):
        open_completions(PAIRS, "pairs", train_size=0)
