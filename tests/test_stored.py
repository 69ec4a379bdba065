"""A teacher's log-probs in the data stand for the teacher: same run, no model loaded; and what does not fit is named."""

import json
import shlex

import pytest
import torch

from upslope import Trainer, UsageError
from upslope.__main__ import main
from upslope.policies.language import LanguagePolicy
from upslope.registry import make
from upslope.stored import takes_stored

SMALL = {
    "steps": 3, "max_tokens": 6, "eval": {"prompts": 6, "every": 0}, "prompts_per_step": 4, "threads": 1, "self_checks": False,
    "optimizer": {"lr": 1e-2},
}  # fmt: skip


@pytest.fixture
def rows():
    return [{"prompt": f"p{i}", "completion": "abcdefgh"[: 1 + i % 8]} for i in range(40)]


@pytest.fixture
def file(tmp_path):
    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def written(file, rows, toy, other_toy, tmp_path, capsys):
    """The rows with the column, as the command writes it."""
    out = tmp_path / "with.jsonl"
    line = f"diagnose teacher-logps {other_toy} --data {file(rows)} --policy {toy} --out {out}"
    assert main(shlex.split(line)) == 0
    assert "40 rows with teacher_logps" in capsys.readouterr().out
    return out


def trained(toy, data, method="lightning_opd", **settings):
    with Trainer(method, model=toy, data=str(data), **{**SMALL, **settings}) as trainer:
        return trainer.train()


def same_weights(one, other):
    pairs = zip(one.parts.actors.policy.parameters(), other.parts.actors.policy.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_command_keeps_the_rows_and_adds_one_log_prob_per_token(written, rows, other_toy):
    found = [json.loads(line) for line in written.read_text().splitlines()]
    assert [{k: row[k] for k in ("prompt", "completion")} for row in found] == rows
    policy = LanguagePolicy.load(other_toy)
    for row in (found[0], found[7]):
        ids = policy.encode(row["prompt"]) + policy.encode_completion(row["prompt"], row["completion"])[0]
        with torch.no_grad():
            logp = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(policy.encode(row["prompt"]))
        expected = [float(logp[place - 1, ids[place]]) for place in range(start, len(ids))]
        assert row["teacher_logps"] == pytest.approx(expected, abs=1e-5)
        assert len(row["teacher_logps"]) == len(row["completion"]) + 1, "bytes, and the end token"


def test_training_on_it_is_training_with_the_teacher(toy, written, rows, file, other_toy):
    stored, asked = trained(toy, written), trained(toy, file(rows), teacher=other_toy)
    assert stored.parts.actors.teacher is None
    for one, other in zip(stored.rows, asked.rows, strict=True):
        for name in {"loss", "teacher/gap", "eval/loss", "eval/teacher/gap"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    assert "column teacher_logps; no teacher is asked" in stored.parts.task.describe()


def test_it_resumes_bit_for_bit(toy, written, tmp_path):
    whole = trained(toy, written, out=tmp_path / "whole")
    trained(toy, written, out=tmp_path / "parts", steps=1)
    assert same_weights(whole, trained(toy, written, out=tmp_path / "parts", resume=True))


def test_a_teacher_that_is_given_is_asked(toy, file, rows, other_toy):
    data = file([{**row, "teacher_logps": "?"} for row in rows])
    trainer = trained(toy, data, teacher=other_toy)
    assert trainer.parts.actors.teacher is not None
    assert f"teacher_logps is not read, since --teacher {other_toy} is asked" in trainer.parts.task.describe()


def test_other_methods_do_not_read_the_column(toy, file, rows):
    trained(toy, file([{**row, "teacher_logps": "?"} for row in rows]), "sft")


def test_a_column_by_another_name(toy, written, file):
    found = [json.loads(line) for line in written.read_text().splitlines()]
    data = file(
        [{"prompt": r["prompt"], "completion": r["completion"], "big": {"lp": r["teacher_logps"]}} for r in found]
    )
    named = trained(toy, data, task_settings={"teacher_logps_key": "big.lp"})
    assert same_weights(named, trained(toy, written))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            [-1.0],
            r"line 4: teacher_logps has 1 numbers, but the completion is 5 tokens of the model's, its end token included",
        ),
        (None, r"line 4 has no teacher_logps, which other rows have"),
        ("-1, -1, -1, -1, -1", r"line 4: teacher_logps must be a list of numbers, one per token"),
        ([-1, -1, None, -1, -1], r"line 4: teacher_logps must be a list of numbers"),
        ([-1, -1, True, -1, -1], r"line 4: teacher_logps must be a list of numbers"),
        (
            [-1, -1, 0.3, -1, -1],
            r"line 4: teacher_logps has 0.3 at token 3\. Log-probs are finite numbers of at most 0",
        ),
        ([-1, -1, float("nan"), -1, -1], r"line 4: teacher_logps has nan at token 3"),
        ([-1, float("-inf"), -1, -1, -1], r"line 4: teacher_logps has -inf at token 2"),
    ],
)
def test_what_does_not_fit_is_named_with_its_row_before_the_first_step(toy, written, file, value, said):
    found = [json.loads(line) for line in written.read_text().splitlines()]
    found[3]["teacher_logps"] = value
    with pytest.raises(
        UsageError, match=rf"^bad.jsonl {said}.* `upslope diagnose teacher-logps TEACHER .* or give --teacher"
    ):
        trained(toy, file(found, "bad.jsonl"))


def test_held_out_rows_are_checked_too(toy, written, file, rows):
    held = file([{"prompt": "new", "completion": "abc"}], "held.jsonl")
    with pytest.raises(UsageError, match=r"held.jsonl line 1 has no teacher_logps"):
        trained(toy, written, task_settings={"eval_data": str(held)})


def test_without_both_it_says_what_is_missing(toy, file, rows):
    with pytest.raises(
        UsageError, match=r"give --teacher MODEL, .* Or data with its log-probs: `upslope diagnose teacher-logps`"
    ):
        trained(toy, file(rows))


def test_which_recipes_take_it():
    assert takes_stored(make("lightning_opd"))
    assert not takes_stored(make("sft"))
    assert not takes_stored(make("opd")), "it samples"
    assert not takes_stored(make("gkd", rollout="sft")), "it reads whole distributions"


def test_the_embedded_model_gets_no_teacher_where_the_data_has_one(written):
    from upslope.config import Config
    from upslope.embedded import with_embedded

    plain = Config(method="lightning_opd", data=str(written))
    assert with_embedded(plain).teacher is None
    assert with_embedded(Config(method="lightning_opd")).teacher == "tiny-teacher"
    other = Config(method="lightning_opd", data=str(written), task_settings={"teacher_logps_key": "absent"})
    assert with_embedded(other).teacher == "tiny-teacher"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("TEACHER --data DATA", "missing --out. Example: upslope diagnose teacher-logps"),
        ("TEACHER --out new.jsonl", "missing --data"),
        ("TEACHER --data DATA --out DATA", "exists already"),
        ("TEACHER --data DATA --out no/new.jsonl", "is in a folder that does not exist"),
        ("TEACHER --data DATA --out new.parquet", "will hold JSON lines. Name a file that ends in .jsonl"),
        ("TEACHER --data DATA --out new.jsonl --reward exact", "diagnose teacher-logps does not read --reward"),
        ("TEACHER --data none.jsonl --out new.jsonl", "there is no data file"),
        ("TEACHER --data DATA --out new.jsonl --policy tiny", "the teacher has another vocabulary than tiny"),
        ("TEACHER --data DATA --out new.jsonl --set task_settings.label_key=x", "has no setting 'label_key'"),
        ("no-such-model --data DATA --out new.jsonl", "no-such-model"),
    ],
)
def test_wrong_use_of_the_command(file, rows, other_toy, tmp_path, monkeypatch, no_hub, capsys, line, said):
    monkeypatch.chdir(tmp_path)
    file(rows)
    status = main(
        shlex.split("diagnose teacher-logps " + line.replace("TEACHER", other_toy).replace("DATA", "data.jsonl"))
    )
    assert status == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))


def test_rows_too_long_for_the_teacher_are_left_out_and_counted(file, rows, other_toy, tmp_path, capsys):
    data = file([*rows[:2], {"prompt": "p", "completion": "x" * 200}])
    assert (
        main(["diagnose", "teacher-logps", other_toy, "--data", str(data), "--out", str(tmp_path / "new.jsonl")]) == 0
    )
    assert "1 rows left out: longer than the teacher's context (e.g. data.jsonl line 3)" in capsys.readouterr().out
    assert len((tmp_path / "new.jsonl").read_text().splitlines()) == 2
