"""Files with given completions: layouts, labels, scores, splits."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.tasks.completions import Completion, open_completions
from upslope.tasks.conversations import UnusableRowError, split_conversation
from upslope.tasks.holdout import is_held_out

from .completion_rows import BAD, GOOD, HH, LONG, PAIRS, SYSTEM, USER, examples, jsonl, only, texts


@pytest.mark.parametrize(
    ("row", "prompt", "completions"),
    [
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, "1+1?", ["2", "3"]),
        ({"question": "1+1?", "chosen": "2", "rejected": "3"}, "1+1?", ["2", "3"]),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER], [[GOOD], [BAD]]),
        ({"prompt": [USER], "chosen": "2", "rejected": "3"}, [USER], ["2", "3"]),
        ({"prompt": "1+1?", "chosen": [GOOD], "rejected": [BAD]}, [USER], [[GOOD], [BAD]]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [[GOOD], [BAD]]),
        (
            {"prompt": "x", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            [SYSTEM, USER],
            [[GOOD], [BAD]],
        ),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [[GOOD], [BAD]]),
        (
            {"chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            [USER, BAD, USER],
            [[GOOD], [BAD]],
        ),
        ({"chosen": [USER, GOOD, BAD], "rejected": [USER, GOOD]}, [USER], [[GOOD, BAD], [GOOD]]),
        ({"chosen": HH + " 2", "rejected": HH + " 3"}, HH, [" 2", " 3"]),
        ({"chosen": LONG + " 2", "rejected": LONG + " 23"}, LONG, [" 2", " 23"]),
    ],
)
def test_layouts_of_pairs(row, prompt, completions):
    assert texts(row) == (prompt, completions)


@pytest.mark.parametrize(
    ("row", "settings", "prompt", "completion"),
    [
        ({"prompt": "1+1?", "completion": "2"}, {}, "1+1?", "2"),
        ({"prompt": [USER], "completion": [GOOD]}, {}, [USER], [GOOD]),
        ({"prompt": "1+1?", "response": "2"}, {}, "1+1?", "2"),
        ({"input": "1+1?", "output": "2"}, {}, "1+1?", "2"),
        ({"question": "1+1?", "answer": "2"}, {}, "1+1?", "2"),
        ({"instruction": "Add.", "input": "1+1?", "output": "2"}, {}, "Add.\n\n1+1?", "2"),
        ({"instruction": "1+1?", "input": "", "output": "2"}, {}, "1+1?", "2"),
        ({"instruction": "1+1?", "input": None, "output": "2"}, {}, "1+1?", "2"),
        ({"instruction": "Add.", "input": "1+1?", "output": "2"}, {"input_key": "instruction"}, "Add.", "2"),
        ({"messages": [SYSTEM, USER, GOOD]}, {}, [SYSTEM, USER], [GOOD]),
        ({"prompt": "1+1?", "prompt_id": "7", "messages": [USER, BAD, USER, GOOD]}, {}, [USER, BAD, USER], [GOOD]),
        (
            {"extra_info": {"question": "1+1?", "answer": "2"}},
            {"input_key": "extra_info.question", "completion_key": "extra_info.answer"},
            "1+1?",
            "2",
        ),
        ({"chosen": LONG + " 2", "rejected": "x"}, {"completion_key": "chosen"}, LONG, " 2"),
        ({"prompt": [USER, GOOD]}, {"completion_key": "prompt"}, [USER], [GOOD]),
        ({"answer": "1+1?", "solution": "2"}, {"input_key": "answer"}, "1+1?", "2"),
    ],
)
def test_layouts_of_demonstrations(row, settings, prompt, completion):
    assert only(row, "demonstrations", **settings) == (prompt, (Completion(completion, 1.0, None),))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, 1),
        (False, 0),
        (1, 1),
        (0, 0),
        (-1, 0),
        (1.0, 1),
        ("desirable", 1),
        ("Undesirable ", 0),
        ("True", 1),
        ("-1", 0),
        ("0", 0),
        ("1.0", 1),
    ],
)
def test_labels_in_every_spelling(value, label):
    expected = ("1+1?", (Completion("2", label, None),))
    assert only({"prompt": "1+1?", "completion": "2", "label": value}, "labels") == expected
    assert (
        only({"q": "1+1?", "a": "2", "l": value}, "labels", input_key="q", completion_key="a", label_key="l")
        == expected
    )


def test_scores_and_soft_labels():
    pair = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    (soft, rest) = only({**pair, "p": 0.75, "score_chosen": 4, "score_rejected": -0.5}, "pairs")[1]
    assert (soft, rest) == (Completion("2", 0.75, 4.0), Completion("3", 0.25, -0.5))
    for names in (
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("reward_chosen", "reward_rejected"),
    ):
        rows = [{**pair, **dict(zip(names, scores, strict=True))} for scores in (("2", "1"), (3, None), ("", 1))]
        found = examples(open_completions(rows, "pairs"))
        assert [[one.score for one in row.data["completions"]] for row in found] == [[2, 1], [3, None], [None, 1]]
    assert [one.score for one in only({**pair, "score_chosen": 1}, "pairs")[1]] == [None, None]
    assert [one.label for one in only({**pair, "label": False}, "pairs")[1]] == [0, 1]
    assert [one.label for one in only({**pair, "label": "harmless"}, "pairs")[1]] == [1, 0]
    assert [one.label for one in only({**pair, "weight": "0.5"}, "pairs", label_key="weight")[1]] == [0.5, 0.5]
    assert only({"prompt": "a", "completion": "b", "label": 1, "reward": 3}, "labels")[1] == (
        Completion("b", 1.0, 3.0),
    )
    assert only({"prompt": "a", "completion": "b", "score": 0.5}, "demonstrations")[1] == (Completion("b", 1.0, 0.5),)


def test_rows_columns_stay_beside_the_completions_and_notes_say_the_columns():
    data = open_completions([{**PAIRS[0], "source": "x", "score_chosen": 1, "score_rejected": 0}], "pairs")
    (example,) = examples(data)
    assert {**example.data, "completions": None} == {
        **PAIRS[0],
        "source": "x",
        "score_chosen": 1,
        "score_rejected": 0,
        "completions": None,
    }
    assert data.notes[0] == "data: 1 row, pairs in columns prompt, chosen, rejected; score_chosen and score_rejected"
    assert data.describe() == "\n".join(data.notes)
    assert (data.name, data.kind, data.judge, data.solved_at) == ("data", "pairs", None, 1.0)
    with data as same:
        assert same is data
    note = open_completions([{"messages": [USER, GOOD]}], "demonstrations").notes[0]
    assert note == "data: 1 row, completions in columns messages, each a whole conversation with its prompt"
    note = open_completions([{"prompt": "a", "completion": "b", "label": 1}], "labels").notes
    assert "completions in columns prompt, completion; label: label" in note[0]
    assert "1 desirable, 0 undesirable" in note


def test_pairs_are_taken_apart_for_labels():
    rows = [{"prompt": "1+1?", "chosen": "2", "rejected": "3", "score_chosen": 1, "score_rejected": 0}]
    data = open_completions(rows, "labels")
    assert [one.data["completions"] for one in examples(data)] == [
        (Completion("2", 1.0, 1.0),),
        (Completion("3", 0.0, 0.0),),
    ]
    assert len({one.key for one in examples(data)}) == 2
    assert "1 desirable, 1 undesirable" in data.notes
    swapped = open_completions([{**PAIRS[0], "label": 0}], "labels")
    assert [one.data["completions"][0].label for one in examples(swapped)] == [0, 1]
    named = open_completions(
        [{"prompt": "p", "answer": "x", "a": "2", "b": "3"}], "labels", {"chosen_key": "a", "rejected_key": "b"}
    )
    assert [one.data["completions"][0].text for one in examples(named)] == ["2", "3"]


@pytest.mark.parametrize(
    ("row", "completion", "score"),
    [
        ({}, "2", None),
        ({"answer": "5", "response": "6", "messages": [USER, BAD]}, "2", None),
        ({"score_chosen": 3, "score_rejected": 1, "p": 0.5}, "2", 3.0),
        ({"rejected": "2"}, "2", None),
        ({"completion": "7", "score": 1}, "7", 1.0),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [GOOD], None),
    ],
)
def test_of_pairs_the_chosen_one_is_the_demonstration(row, completion, score):
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3", **row}
    assert only(row, "demonstrations")[1] == (Completion(completion, 1.0, score),)


def test_demonstrations_of_pairs_are_named_and_never_the_one_that_the_label_rejects():
    data = open_completions([{**row, "p": 0.2 if n < 3 else 0.9} for n, row in enumerate(PAIRS)], "demonstrations")
    assert len(examples(data)) == 37
    assert data.notes[:2] == [
        "data: 40 rows, completions in columns prompt, chosen; probability of the preference: p; rejected is not read",
        "3 rows left out: rejected is the preferred one, by p (e.g. data row 1)",
    ]
    alone = open_completions([{"prompt": "a", "chosen": "b"}], "demonstrations")
    assert alone.notes[0] == "data: 1 row, completions in columns prompt, chosen"
    with pytest.raises(UsageError, match=r"data row 1: p is 1.5. Beside a pair it must be the probability"):
        open_completions([{**PAIRS[0], "p": 1.5}], "demonstrations")
    labelled = open_completions([{"prompt": "a", "completion": "b", "label": 0}], "demonstrations")
    assert "the column label is not read: every completion is learned, whatever its label" in labelled.notes


def test_a_file_of_pairs_with_an_answer_is_taken_apart_all_the_same():
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3", "answer": "2"}
    assert [one.data["completions"][0].text for one in examples(open_completions([row], "labels"))] == ["2", "3"]


def test_several_pairs_of_a_prompt_have_distinct_keys_and_one_side():
    rows = [{**row, "rejected": f"{row['rejected']}{n}"} for row in PAIRS for n in range(3)]
    data = open_completions(rows, "pairs")
    assert len({one.key for one in examples(data)}) == 120
    assert "120 pairs of 40 prompts" in data.notes
    assert not {one.prompt for one in data.examples("train")} & {one.prompt for one in data.examples("eval")}
    assert all(is_held_out(one.prompt) for one in data.examples("eval"))
    assert data.examples("eval")


def test_splits_sizes_and_settings(tmp_path):
    named = open_completions([{**row, "split": "test" if n < 7 else "train"} for n, row in enumerate(PAIRS)], "pairs")
    assert [len(named.examples(split)) for split in ("train", "eval")] == [33, 7]
    held = jsonl(tmp_path / "held.jsonl", [*PAIRS[:4], {**PAIRS[5], "chosen": ""}])
    data = open_completions(jsonl(tmp_path / "d.jsonl", PAIRS), "pairs", {"eval_data": held}, train_size=3, eval_size=2)
    assert [len(data.examples(split)) for split in ("train", "eval")] == [3, 2]
    assert data.settings == {"eval_data": str(held)}
    assert any("1 row left out: chosen is empty (e.g. held.jsonl line 5)" in note for note in data.notes)
    assert any("4 of 4 evaluation prompts are also trained on" in note for note in data.notes)
    assert any(note.startswith("train: the first 3 of 40") for note in data.notes)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
TURNS = st.lists(WORDS, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)
TWO = st.tuples(WORDS, WORDS).filter(lambda two: two[0] != two[1])


def said(turns, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


@given(TURNS, TWO)
def test_conversations_are_split_where_they_were_joined(turns, pair):
    prompt, answers = said(turns), [said([one], "assistant") for one in pair]
    whole = {name: prompt + answer for name, answer in zip(("chosen", "rejected"), answers, strict=True)}
    assert texts(whole) == (prompt, answers)
    assert texts({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}) == (prompt, answers)
    assert texts({"messages": whole["chosen"]}, "demonstrations") == (prompt, answers[:1])


@given(TURNS, TWO)
def test_hh_texts_are_split_where_they_were_joined(turns, pair):
    marks = ("\n\nHuman:", "\n\nAssistant:")
    if any(mark.strip() in text for mark in marks for text in (*turns, *pair)):
        return
    prompt = "".join(f"{marks[n % 2]} {turn}" for n, turn in enumerate(turns)) + marks[1]
    chosen, rejected = (f" {one}" for one in pair)
    assert texts({"chosen": prompt + chosen, "rejected": prompt + rejected}) == (prompt, [chosen, rejected])
    assert texts({"completion": prompt + chosen}, "demonstrations") == (prompt, [chosen])


@given(st.lists(st.tuples(WORDS, TWO, st.floats(0, 1), st.floats(0, 9), st.floats(-9, 0)), min_size=1, max_size=8))
def test_pairs_come_back_as_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("d") / "d.jsonl"
    names = ("prompt", "chosen", "rejected", "p", "score_chosen", "score_rejected")
    flat = [(prompt, *pair, max(p, 1 - p), high, low) for prompt, pair, p, high, low in rows]
    data = open_completions(jsonl(path, [dict(zip(names, row, strict=True)) for row in flat]), "pairs")
    expected = [(prompt, (Completion(c, p, high), Completion(r, 1 - p, low))) for prompt, c, r, p, high, low in flat]
    found = [(one.prompt, one.data["completions"]) for one in examples(data)]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert len({one.key for one in examples(data)}) == len(rows)


@given(
    st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=8),
    st.sampled_from([int, bool, lambda one: 2 * one - 1]),
)
def test_labels_come_back_as_written(rows, spelled):
    data = open_completions([{"prompt": p, "completion": c, "label": spelled(one)} for p, c, one in rows], "labels")
    found = [(one.prompt, *one.data["completions"]) for one in examples(data)]
    assert sorted(found, key=repr) == sorted(((p, Completion(c, float(one))) for p, c, one in rows), key=repr)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_other_formats(tmp_path, suffix):
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**row, "p": 0.75, "score_chosen": 1.5, "score_rejected": None} for row in PAIRS]
    path = tmp_path / f"d{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    first = next(one for one in examples(open_completions(path, "pairs")) if one.prompt == "0 + 1 = ?")
    assert first.data["completions"][0].label == 0.75
    assert first.data["completions"][1] == Completion("0", 0.25, None)


def test_messages_in_a_csv_file(tmp_path):
    import csv

    def write(*values):
        with (tmp_path / "d.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["messages"], *([value] for value in values)])
        return tmp_path / "d.csv"

    (example,) = examples(open_completions(write(json.dumps([SYSTEM, USER, GOOD])), "demonstrations"))
    assert (example.prompt, example.data["completions"][0].text) == ([SYSTEM, USER], [GOOD])
    with pytest.raises(UsageError, match=r"d.csv line 3: messages is a list of messages as Python shows it"):
        open_completions(write(json.dumps([USER, GOOD]), str([USER, GOOD])), "demonstrations")
    (tmp_path / "e.csv").write_text('question,answer\n"[{1, 2}]","[{""a"": 1}]"\n')
    (example,) = examples(open_completions(tmp_path / "e.csv", "demonstrations"))
    assert (example.prompt, example.data["completions"][0].text) == ("[{1, 2}]", '[{"a": 1}]')


@given(st.lists(TURNS.map(said), min_size=2, max_size=2))
def test_a_split_is_a_split(conversations):
    """Whatever is split: prompt and completion joined are the conversation."""
    try:
        prompt, completions = split_conversation(conversations)
    except UnusableRowError:
        return
    assert [prompt + one for one in completions] == conversations
