"""Tasks by name: settings, deterministic and disjoint splits, scoring through workers."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.policies.language import LanguagePolicy
from upslope.tasks import base
from upslope.tasks.base import list_tasks, open_task
from upslope.tasks.holdout import is_held_out
from upslope.tasks.procedural import make_dataset
from upslope.tasks.reasoning_gym import EvalSplit, Stream, TrainSplit


def splits(name, seed=0, train=1000, held=50, **options):
    dataset = make_dataset(name, options, seed)
    stream = Stream(name, dataset, dataset.config.size)
    return TrainSplit(stream, train), EvalSplit(stream, held, [])


def prompts(examples):
    return [example.prompt for example in examples]


@settings(deadline=None, max_examples=10)
@given(st.integers(-3, 2**40))
def test_splits_are_disjoint_and_decided_by_the_seed(seed):
    train, held = splits("chain_sum", seed)
    assert not any(is_held_out(prompt) for prompt in prompts(train[:200]))
    assert all(is_held_out(prompt) for prompt in prompts(held))
    assert len(set(prompts(held))) == len(held) == 50
    again = splits("chain_sum", seed)
    assert prompts(again[0][:20]) == prompts(train[:20])
    assert [(one.key, one.prompt, one.data) for one in again[1]] == [(one.key, one.prompt, one.data) for one in held]
    assert prompts(splits("chain_sum", seed + 1)[0][:20]) != prompts(train[:20])


@pytest.mark.parametrize("index", [0, 1, 7, 999, -1, -1000])
def test_order_of_access_does_not_matter(index):
    assert splits("gcd")[0][index].prompt == prompts(splits("gcd")[0][:])[index]


def test_slices_agree_with_indices_and_ends_are_ends():
    train, held = splits("gcd", held=10)
    assert prompts(held[2:5]) == [held[n].prompt for n in (2, 3, 4)]
    assert prompts(held[-3:]) == prompts(held)[-3:]
    assert prompts(held[::-1]) == prompts(held)[::-1]
    assert len(held[:99]) == 10
    for split, size in ((train, 1000), (held, 10)):
        with pytest.raises(IndexError):
            split[size]


def test_asking_for_a_few_makes_only_a_few():
    train, held = splits("chain_sum", train=10**6, held=10**6)
    assert train[999_999].key
    assert held[2].key
    assert len(train.stream.made) < 500


def test_a_small_task_has_a_short_evaluation_split_and_says_so():
    train, held = splits("chain_sum", held=5000, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    assert 0 < len(held) < 5000
    assert held.notes == [f"chain_sum has few questions: only {len(held)} for evaluation"]
    assert not set(prompts(held)) & set(prompts(train[:]))


def test_a_generator_that_gives_up_in_places_is_stepped_over():
    train, _ = splits("word_ladder", min_word_length=3, max_word_length=3)
    train.stream.dataset._generate_word_pair = fail_at_times(train.stream.dataset._generate_word_pair)
    assert len({example.key for example in train[:20]}) > 10
    assert "Dataset exhausted" in train.stream.problem


def fail_at_times(function):
    calls = iter(range(10**6))

    def wrapped(*arguments):
        if next(calls) % 3 == 0:
            raise RuntimeError("no pair")
        return function(*arguments)

    return wrapped


def test_scores_come_from_the_dataset():
    with open_task("chain_sum", settings={"min_terms": 2, "max_terms": 2}, seed=1) as task:
        examples = task.examples("eval")[:8]
        answers = [example.data["answer"] for example in examples]
        assert [one.value for one in task.judge.score(examples, answers)] == [1.0] * 8
        assert all(one.value < 1 for one in task.judge.score(examples, ["no"] * 8))
        assert task.settings == {"min_terms": 2, "max_terms": 2}
        assert task.describe().endswith("reward: chain_sum")


def test_a_named_task_takes_another_reward(tmp_path):
    path = tmp_path / "r.py"
    path.write_text("def f(completions, answer, **columns): return [a == c for a, c in zip(answer, completions)]")
    with open_task("gcd", reward=f"task*0.25+{path}:f*0.75") as task:
        example = task.examples("train")[0]
        (outcome,) = task.judge.score([example], [example.data["answer"]])
        assert outcome.parts == {"gcd": 0.25, "f": 0.75}
    path.write_text("def f(completions, solution): ...")
    with pytest.raises(UsageError, match="needs 'solution', but the columns of task 'gcd' are: question, answer"):
        open_task("gcd", reward=f"{path}:f")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, r"no task 'chain_sums'. Did you mean .*chain_sum"),
        ("qqqq", {}, "`upslope tasks` lists all"),
        ("chain_sum", {"terms": 2}, r"has no setting 'terms'. Its settings: min_terms=2, max_terms=6"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "does not accept these settings: .*min_terms=5, max_terms=2"),
        ("chain_sum", {"min_terms": "two"}, "setting min_terms takes int such as 2, got 'two'"),
        ("chain_sum", {"min_terms": True}, "takes int such as 2, got True"),
        ("chain_sum", {"min_terms": 2.5}, "takes int such as 2, got 2.5"),
        ("chain_sum", {"seed": 3}, "'seed' is no setting of a task"),
        ("word_sorting", {"transformation": "sideways"}, "transformation cannot be 'sideways'"),
        ("composite", {}, "Must specify at least one dataset"),
        ("composite", {"datasets": [{"weight": 1}]}, "datasets cannot be"),
    ],
)
def test_wrong_names_and_settings(name, options, message):
    with pytest.raises(UsageError, match=message):
        open_task(name, settings=options)


def test_settings_from_yaml_become_what_the_dataset_wants():
    assert make_dataset("word_sorting", {"transformation": "uppercase"}, 0).config.transformation.value == "uppercase"
    assert make_dataset("time_intervals", {"min_date": "1999-01-02"}, 0).config.min_date.year == 1999
    assert make_dataset("countdown", {"operators": ["+", "-"]}, 0).config.operators == ("+", "-")
    specs = [{"name": "gcd"}, {"name": "lcm", "weight": 2.0, "config": {"max_value": 20}}]
    train, _ = splits("composite", datasets=specs)
    assert {example.data["metadata"]["source_dataset"] for example in train[:20]} == {"gcd", "lcm"}


def test_every_task_is_listed_and_accepts_its_own_defaults():
    rows = list_tasks()
    assert len(rows) > 100
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert set(row) == {"name", "source", "description", "settings", "recommended"}
        assert row["description"]
        if row["name"] != "composite":
            make_dataset(row["name"], row["settings"], seed=0, size=100)
    assert {row["name"] for row in list_tasks("SUDOKU")} == {"sudoku", "mini_sudoku"}


def test_recommended_settings_give_way_to_explicit_ones(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tasks.json").write_text('{"chain_sum": {"min_terms": 2, "max_terms": 3}}')
    monkeypatch.setattr(base, "ASSETS", tmp_path)
    with open_task("chain_sum", for_model="tiny", settings={"max_terms": 2}) as task:
        assert task.settings == {"min_terms": 2, "max_terms": 2}
    for model in (None, "some/model", "../tiny", "other"):
        assert base.recommended(model) == {}
    assert list_tasks("chain_sum")[0]["recommended"] == {"tiny": {"min_terms": 2, "max_terms": 3}}


def test_a_model_made_from_the_embedded_one_keeps_its_settings(tmp_path):
    LanguagePolicy.load("tiny", packing="padded").save(tmp_path / "first")
    LanguagePolicy.load(tmp_path / "first", packing="padded").save(tmp_path / "second")
    assert base.recommended(str(tmp_path / "second")) == base.recommended("tiny") != {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither was given"),
        ({"name": "gcd", "data": "x.jsonl"}, "not both"),
        ({"name": "gcd", "eval_size": 0}, "eval_size must be at least 1"),
        ({"name": "gcd", "timeout": -1.0}, "timeout must be positive"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        open_task(**options)


def test_listing_needs_no_torch():
    program = "import sys; from upslope.tasks.base import list_tasks; list_tasks(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
