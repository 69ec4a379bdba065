import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.runs.files import RunError
from upslope.runs.metrics import JsonLines, encode_row, read_metrics, read_samples

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text().filter(lambda name: name != "step"), VALUES, max_size=3), max_size=6)


def strict(text):
    """Parse as a reader that takes only what the JSON standard names."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "metrics.jsonl"


def write(path, rows):
    path.unlink(missing_ok=True)
    lines = JsonLines(path)
    for row in rows:
        lines.append([row])
    return lines


@given(rows=ROWS)
def test_rows_come_back_as_they_were(path, rows):
    rows = [{"step": step, **row} for step, row in enumerate(rows)]
    write(path, rows).close()
    assert read_metrics(path) == rows
    assert read_metrics(path.parent) == rows
    assert [strict(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == rows


@given(rows=ROWS, cut=st.integers(0, 10_000), step=st.integers(-1, 6))
def test_torn_anywhere_then_resumed_ends_with_the_same_bytes(path, rows, cut, step):
    """Killed after any byte beyond the checkpoint's rows; the resumed run writes the rest again."""
    rows = [{"step": step, **row} for step, row in enumerate(rows)]
    write(path, rows).close()
    whole = path.read_bytes()
    kept = len(b"".join(whole.splitlines(keepends=True)[: step + 1]))
    torn = whole[: kept + cut % (len(whole) - kept + 1)]
    path.write_bytes(torn)
    assert read_metrics(path) == rows[: torn.count(b"\n")]
    lines = JsonLines(path)
    dropped = lines.rewind(step)
    assert dropped == torn[kept:].count(b"\n") + (not torn.endswith(b"\n") and torn != b"")
    assert path.read_bytes() == whole[:kept]
    for row in rows[step + 1 :]:
        lines.append([row])
    lines.close()
    assert path.read_bytes() == whole


def test_several_rows_of_a_step_stay_or_go_together(path):
    lines = write(path, [{"step": step, "key": key} for step in (1, 1, 2, 2, 3) for key in "a"])
    assert lines.rewind(2) == 1
    assert [row["step"] for row in read_samples(path)] == [1, 1, 2, 2]


def test_numbers_without_a_name_in_json_are_null_and_named():
    row = {
        "step": 4,
        "loss": float("nan"),
        "kl": torch.tensor(float("inf")),
        "parts": {"a": np.float32("-inf"), "b": 0.5},
        "list": [1.0, float("nan")],
    }
    assert strict(encode_row(row)) == {
        "step": 4,
        "loss": None,
        "kl": None,
        "parts": {"a": None, "b": 0.5},
        "list": [1.0, None],
        "nonfinite": {"loss": "nan", "kl": "inf", "parts.a": "-inf", "list[1]": "nan"},
    }


def test_tensors_and_arrays_become_numbers():
    row = {
        "step": 1,
        "a": torch.tensor(3),
        "b": np.float64(0.1),
        "c": torch.ones(2),
        "d": np.int64(7),
        "e": np.bool_(True),
    }
    assert strict(encode_row(row)) == {"step": 1, "a": 3, "b": 0.1, "c": [1.0, 1.0], "d": 7, "e": True}


def test_text_that_is_no_unicode_is_kept(path):
    write(path, [{"step": 1, "completion": "a\ud800\u2028\n\x00b"}]).close()
    assert read_samples(path)[0]["completion"] == "a\ud800\u2028\n\x00b"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reward": 1.0}, 'needs an integer "step", got None'),
        ({"step": 1.5}, "got 1.5"),
        ({"step": 1, "parts": {"a": object()}}, r"'parts\.a' in a row is a object"),
    ],
)
def test_rows_that_cannot_be_written(path, row, message):
    lines = write(path, [{"step": 0}])
    with pytest.raises(UsageError, match=message):
        lines.append([{"step": 1}, row])
    assert read_metrics(path) == [{"step": 0}]


def test_a_damaged_line_in_the_middle_is_named(path, caplog):
    path.write_bytes(b'{"step": 1}\n{"st\x00p": \n[]\n{"step": 2}\n{"step": 3')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert "metrics.jsonl, line 2 is damaged" in caplog.text
    assert "metrics.jsonl, line 3 is damaged" in caplog.text
    lines = JsonLines(path)
    assert lines.rewind(2) == 1
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_after_the_step_goes_with_the_rest(path):
    path.write_bytes(b'{"step": 1}\n{"step": 3}\n{"st\x00p": 4}\n{"step": 5}\n')
    lines = JsonLines(path)
    assert lines.rewind(1) == 3
    assert path.read_bytes() == b'{"step": 1}\n'


def test_absent_files(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*samples.jsonl: No such file"):
        read_samples(tmp_path)
    with pytest.raises(RunError, match="cannot write"):
        JsonLines(tmp_path / "no" / "metrics.jsonl")
