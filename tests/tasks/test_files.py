"""The user's own data: formats, columns, splits; every defect is named with its place."""

import csv
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.tasks.base import open_task
from upslope.tasks.columns import detect_layout
from upslope.tasks.files import hold_out
from upslope.tasks.holdout import is_held_out
from upslope.tasks.rows import given_rows, read_rows

ROWS = [{"question": f"{n} + 1 = ?", "answer": str(n + 1), "level": n % 3} for n in range(40)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(data, reward="exact", **options):
    with open_task(data=data, reward=reward, **options) as task:
        return task


def all_examples(task):
    return [*task.examples("train"), *task.examples("eval")]


def write(path, rows):
    kind = path.suffix
    if kind == ".jsonl":
        jsonl(path, rows)
    elif kind == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.parquet", "folder"])
def test_every_format_gives_the_same_task(tmp_path, name):
    task = opened(write(tmp_path / name, ROWS))
    expected = opened(ROWS)
    for split in ("train", "eval"):
        assert [one.prompt for one in task.examples(split)] == [one.prompt for one in expected.examples(split)]
        assert [one.key for one in task.examples(split)] == [one.key for one in expected.examples(split)]
    assert task.name == name
    assert task.notes[0] == f"{name}: 40 rows, columns of question/answer (question, answer)"


@given(
    st.lists(
        st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.none())),
        min_size=1,
    )
)
def test_jsonl_is_read_as_written(tmp_path_factory, rows):
    path = jsonl(tmp_path_factory.mktemp("d") / "d.jsonl", rows)
    assert [row.columns for row in read_rows(path)] == rows
    assert [row.place for row in read_rows(path)] == [f"d.jsonl line {n}" for n in range(1, len(rows) + 1)]


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_csv_is_read_as_written(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("d") / "d.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "answer"], ["p", "a"], *values])
    rows = read_rows(path)
    assert [list(row.columns.values()) for row in rows] == [["p", "a"], *values]


MESSAGES = [{"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    ("row", "options", "family", "prompt", "reference"),
    [
        ({"prompt": "1+1?", "solution": "2"}, {}, "TRL (prompt, solution)", "1+1?", "2"),
        ({"prompt": MESSAGES, "answer": "2", "question": "x"}, {}, "TRL (prompt, answer)", MESSAGES, "2"),
        (
            {"data_source": "gsm8k", "prompt": MESSAGES, "reward_model": {"style": "rule", "ground_truth": "2"}},
            {},
            "verl (prompt, reward_model.ground_truth)",
            MESSAGES,
            "2",
        ),
        ({"input": "1+1?", "label": 2}, {}, "OpenRLHF (input, label)", "1+1?", 2),
        (
            {"q": {"text": "1+1?"}, "gold": 2},
            {"input_key": "q.text", "label_key": "gold"},
            "OpenRLHF, by input_key and label_key (q.text, gold)",
            "1+1?",
            2,
        ),
        ({"problem": "1+1?", "target": "2"}, {}, "problem/target (problem, target)", "1+1?", "2"),
        ({"question": "1+1?"}, {}, "question/no reference answer (question)", "1+1?", None),
    ],
)
def test_columns_are_recognized_and_said(row, options, family, prompt, reference):
    task = opened([row], reward="regex:2", settings=options)
    (example,) = task.examples("train")
    assert task.notes[0] == f"data: 1 row, columns of {family}"
    assert example.prompt == prompt
    assert task.judge.reference(example) == reference
    assert example.data == row


def test_data_with_a_reward_file_of_the_users(tmp_path):
    (tmp_path / "my.py").write_text(
        "def f(prompts, completions, answer, level, **columns):\n"
        "    return [float(c == a) + l for c, a, l in zip(completions, answer, level)]\n"
    )
    with open_task(data=jsonl(tmp_path / "d.jsonl", ROWS), reward=f"{tmp_path / 'my.py'}:f") as task:
        examples = task.examples("train")[:6]
        outcomes = task.judge.score(examples, [example.data["answer"] for example in examples])
        assert [one.value for one in outcomes] == [1.0 + example.data["level"] for example in examples]


@given(st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1))
def test_hold_out_keeps_equal_prompts_together_and_both_sides_filled(prompts):
    held = hold_out(prompts)
    assert len({(prompt, side) for prompt, side in zip(prompts, held, strict=True)}) == len(set(prompts))
    assert len(set(held)) == min(len(set(prompts)), 2)
    assert hold_out(prompts[::-1]) == held[::-1]


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("of_task", [True, False], ids=["held out", "trained on"])
@pytest.mark.parametrize("count", [2, 3, 19, 40, 400, 4000])
def test_hold_out_is_neither_tiny_nor_nearly_all(count, of_task, times):
    """Of data whose prompts all come from one split of a task, about a twentieth is held out, and 128 rows are enough."""
    prompts = (
        list(itertools.islice((p for n in itertools.count() if is_held_out(p := f"q{n}") is of_task), count)) * times
    )
    held = hold_out(prompts)
    wanted = max(1, min(128, round(len(prompts) / 20)))
    assert wanted <= sum(held) < wanted + times or sum(held) == times
    both = {prompt for prompt, side in zip(prompts, held, strict=True) if side}
    assert not both & {prompt for prompt, side in zip(prompts, held, strict=True) if not side}
    assert {p for p, side in zip(prompts[::-1], hold_out(prompts[::-1]), strict=True) if side} == both


def test_hold_out_does_not_take_the_prompt_that_most_rows_have():
    prompts = [f"q{n}" for n in range(9)]
    for often in prompts:
        held = hold_out([*prompts, *[often] * 90])
        assert 1 <= sum(held) <= 5


def test_hold_out_is_the_rule_of_the_package():
    task = opened([{"question": f"question {n}", "answer": n} for n in range(500)])
    assert all(is_held_out(example.prompt) for example in task.examples("eval"))
    assert not any(is_held_out(example.prompt) for example in task.examples("train"))
    assert f"{len(task.examples('train'))} for training, {len(task.examples('eval'))} for evaluation" in task.notes[1]


def test_split_column_and_eval_file_and_folder_of_files(tmp_path):
    rows = [{**row, "split": "test" if n < 7 else "train"} for n, row in enumerate(ROWS)]
    assert len(opened(rows).examples("eval")) == 7
    train, held = jsonl(tmp_path / "train.jsonl", ROWS), jsonl(tmp_path / "test-00.jsonl", ROWS[:5])
    by_file = opened(train, settings={"eval_data": str(held)})
    by_folder = opened(tmp_path)
    for task in (by_file, by_folder):
        assert [len(task.examples(split)) for split in ("train", "eval")] == [40, 5]
        assert "5 of 5 evaluation prompts are also trained on" in task.notes
    assert len({example.key for example in all_examples(by_folder)}) == 45


def test_saved_dataset_dict_with_its_splits(tmp_path):
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS[5:]), "validation": datasets.Dataset.from_list(ROWS[:5])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    task = opened(tmp_path / "saved")
    assert [len(task.examples(split)) for split in ("train", "eval")] == [35, 5]


def test_duplicates_are_counted_and_have_their_own_keys():
    task = opened([ROWS[0], ROWS[0], *ROWS[:3]])
    assert len({example.key for example in all_examples(task)}) == 5
    assert any("repeat an earlier prompt" in note for note in task.notes)


def test_sizes_and_one_row():
    task = opened(ROWS, train_size=3, eval_size=1)
    assert [len(task.examples(split)) for split in ("train", "eval")] == [3, 1]
    assert any(note.startswith("train: the first 3 of") for note in task.notes)
    single = opened(ROWS[:1])
    assert [len(single.examples(split)) for split in ("train", "eval")] == [1, 0]
    assert "nothing to evaluate on" in single.notes[1]


def numbered(bad):
    good = [json.dumps(row) for row in ROWS]
    return "\n".join([*good[:16], bad, *good[17:]]).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "d.jsonl",
            numbered('{"question": "1", "answer": }'),
            r"d.jsonl line 17 is not JSON: Expecting value at column 29",
        ),
        (
            "d.jsonl",
            numbered('{"question": "1'),
            r"line 17 is not JSON: Unterminated string .* It begins '\{\"question",
        ),
        ("d.jsonl", numbered("[1, 2]"), "line 17 is a list, not an object"),
        ("d.jsonl", numbered("3"), "line 17 is a number, not an object"),
        ("d.jsonl", numbered('{"prompt": "x"}'), "line 17 has no column 'question'. Its columns: prompt"),
        ("d.jsonl", numbered('{"question": 5, "answer": "1"}'), "line 17: question is a number. It must be a text or"),
        ("d.jsonl", numbered('{"question": " ", "answer": "1"}'), "line 17: question is empty"),
        ("d.jsonl", numbered('{"question": [], "answer": "1"}'), "line 17: question is empty"),
        (
            "d.jsonl",
            numbered('{"question": ["hi"], "answer": "1"}'),
            "line 17: message 1 is a text, not an object with role",
        ),
        ("d.jsonl", numbered('{"question": [{"role": "user"}], "answer": "1"}'), "message 1: content is missing"),
        ("d.jsonl", numbered('{"question": [{"role": "user", "content": []}]}'), "message 1: content is a list"),
        ("d.jsonl", numbered("[" * 100_000), "line 17 is not usable JSON"),
        ("d.jsonl", numbered("9" * 5000), "line 17 is not usable JSON"),
        ("d.jsonl", numbered("@").replace(b"@", b'{"question": "\xff"}'), r"line 17 is not UTF-8 \(byte 0xff\)"),
        ("d.jsonl", b"", "d.jsonl is empty"),
        ("d.jsonl", b"\n\n  \n", "d.jsonl is empty"),
        ("d.json", b"", "d.json is empty"),
        ("d.json", b"[]", "d.json is empty"),
        ("d.json", b'{"question": "1"}', "is one object. It must be a list"),
        ("d.json", b'"text"', "is a text, not a list"),
        ("d.json", b'[{"question": "1"},\n {"question": }]', "d.json is not JSON: Expecting value at line 2 column 15"),
        ("d.json", b'[{"question": "1"},\n "\xff"]', "d.json line 2 is not UTF-8"),
        ("d.json", b'[{"question": "1", "answer": "2"}, 7]', "d.json row 2 is a number"),
        ("d.csv", b"", "d.csv is empty"),
        ("d.csv", b"question,answer\n", "d.csv is empty"),
        ("d.csv", b"question,answer\n1,2\n1,2,3\n", "d.csv line 3 has 3 fields, but the header has 2"),
        ("d.csv", b"question,question\n1,2\n", "line 1: the header has an empty or repeated name"),
        ("d.csv", b'question,answer\n"1"x,2\n', "d.csv line 2: "),
        ("d.parquet", b"PAR1 no", "d.parquet is no readable Parquet file"),
        ("d.parquet", b"", "d.parquet is no readable Parquet file"),
        ("d.txt", b"hello", r"d.txt: data files end in .jsonl"),
        ("d.jsonl", b'{"text": "1"}', "no column can be the prompt. Its columns: text. Expected: prompt"),
        (
            "d.jsonl",
            b'{"question": "1"}',
            "compares with a reference answer, but d.jsonl has none; its columns: question",
        ),
        (
            "d.jsonl",
            numbered('{"question": "1", "answer": null}'),
            "has no answer, which the reward exact compares with",
        ),
        (
            "d.jsonl",
            b'{"question": "1", "answer": 1, "split": "blue"}',
            "line 1: split 'blue'. A split is train, or one of",
        ),
        ("d.jsonl", b'{"question": "1", "answer": 1, "split": "test"}', "there is none to train on"),
    ],
)
def test_defects_are_named_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        opened(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"label_kay": "x"}}, "no setting 'label_kay'. Its settings: input_key, label_key, eval_data"),
        (
            {"settings": {"label_key": "gold"}},
            "no column 'gold', which label_key names. Its columns: question, answer, level",
        ),
        ({"settings": {"eval_data": "no.jsonl"}}, "there is no data file .*no.jsonl"),
        ({"settings": {"eval_data": [{"question": "1"}]}}, "Give both the same columns"),
        ({"reward": None}, "say how answers to data are verified: --reward FILE.py:FUNCTION or --reward math"),
        ({"reward": "task"}, "a data file has none"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        opened(ROWS, **options)


def test_missing_files_and_folders(tmp_path):
    for data, message in (
        (tmp_path / "no.jsonl", "there is no data file"),
        (tmp_path, "holds no data files"),
        ([], "data is empty"),
        ([3], "data row 1 is a number"),
    ):
        with pytest.raises(UsageError, match=message):
            opened(data)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded"):
        opened(tmp_path)
    (tmp_path / "dataset_info.json").unlink()
    jsonl(tmp_path / "train.jsonl", ROWS)
    jsonl(tmp_path / "other.jsonl", ROWS)
    with pytest.raises(UsageError, match=r"other.jsonl does not\. Rename it"):
        opened(tmp_path)


def test_json_file_with_one_object_per_line_and_a_byte_order_mark(tmp_path):
    path = jsonl(tmp_path / "d.json", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_rows(path)) == 40


def test_a_column_may_be_absent_from_some_rows():
    layout = detect_layout("data", given_rows([{"prompt": "a"}, {"prompt": "b", "answer": 1}]), None, None)
    assert layout.columns == ("prompt", "answer")
    assert layout.describe() == "columns of TRL (prompt, answer)"
