import json

import pytest

from upslope.report.read import read_run
from upslope.report.timing import draw_timing, timing_of


def timing(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return timing_of(read_run(tmp_path))


def test_shares_add_up_and_the_rest_of_a_step_is_other(tmp_path):
    rows = [{"step": s, "time/update": 2.0, "time/rollout": 1.0, "time/total": 4.0} for s in range(1, 6)]
    found = timing(tmp_path, rows)
    assert [(p.name, p.seconds, p.share) for p in found.phases] == [
        ("rollout", 5.0, 0.25), ("update", 10.0, 0.5), ("other", 5.0, 0.25)
    ]  # fmt: skip
    assert found.total == 20.0


def test_the_stack_fills_the_chart(tmp_path):
    rows = [{"step": s, "time/rollout": s + 0.1, "time/update": 3.0} for s in range(1000)]
    svg = draw_timing(timing(tmp_path, rows))
    corners = [[float(n) for n in pair.split()] for pair in list(svg.iter("path"))[-1].get("d").strip("MZ").split("L")]
    assert min(y for _, y in corners) == pytest.approx(10.0)
    first = [[float(n) for n in pair.split()] for pair in next(svg.iter("path")).get("d").strip("MZ").split("L")]
    assert max(y for _, y in first) == pytest.approx(202.0)


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1, "reward": 1}], [{"step": 1, "time/rollout": 0.0}], [{"step": 1, "time/x": None}]]
)
def test_nothing_recorded(tmp_path, rows):
    assert timing(tmp_path, rows) is None
