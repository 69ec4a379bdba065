import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.report.read import read_rows, read_run


def test_reads_what_a_run_wrote(tmp_path, make_run):
    run = read_run(make_run(tmp_path / "run"))
    assert run.notes == []
    assert run.setting("task.name") == "countdown"
    assert run.settings["optimizer.lr"] == 3e-5
    assert (run.steps, len(run.metrics), run.state) == (60, 61, "finished")
    x, y = run.column("eval/pass@1")
    np.testing.assert_array_equal(x, np.arange(0, 61, 10))
    assert y[0] < y[-1]
    assert [check.ok for check in run.checks] == [True, True, False]
    assert [event.count for event in run.events] == [9, 8, 1]


def test_every_missing_or_damaged_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1}\n[1]\n{"step": 2, "rew')
    (tmp_path / "self_checks.json").write_text("{}")
    (tmp_path / "status.json").write_text("{")
    run = read_run(tmp_path)
    text = " ".join(run.notes)
    assert run.metrics == [{"step": 1, "reward": 1}]
    assert "2 lines skipped, not a JSON object or cut off (line 2, 3)" in text
    assert "self_checks.json could not be read: it holds no JSON list" in text
    assert "status.json could not be read: it is not JSON" in text
    for name in ("config.yaml", "samples.jsonl", "describe.txt"):
        assert f"{name} is missing." in text


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "a: &a\n  b: *a\n", "\x00"], ids=["torn", "list", "loop", "NUL"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    run = read_run(tmp_path)
    assert run.settings == {}
    assert any(note.startswith("config.yaml") for note in run.notes)


def test_rows_of_one_step_are_merged_and_ordered(tmp_path):
    rows = [
        {"step": 2, "reward": 1},
        {"step": 1, "reward": 0},
        {"step": 2, "eval/pass@1": 0.5},
        {"reward": 3},
        {"step": True},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path)
    assert run.metrics == [{"step": 1, "reward": 0}, {"step": 2, "reward": 1, "eval/pass@1": 0.5}]
    assert any("2 rows without a step number" in note for note in run.notes)


def test_values_that_are_no_finite_numbers_are_left_out(tmp_path):
    lines = [
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": "x"}',
        '{"step": 3, "loss": 1e999}',
        '{"step": 4, "loss": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5, "loss": ' + "9" * 400 + "}"]))
    x, y = read_run(tmp_path).column("loss")
    assert (list(x), list(y)) == ([4], [2])


@given(st.binary(max_size=200))
def test_no_bytes_in_a_rows_file_raise(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    path.write_bytes(content)
    notes: list[str] = []
    assert all(isinstance(row, dict) for row in read_rows(path, notes))


def test_deeply_nested_lines_are_skipped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + "\n" + '{"step": 1}\n')
    assert len(read_run(tmp_path).metrics) == 1


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"neither config\.yaml nor metrics\.jsonl"):
        read_run(tmp_path)
