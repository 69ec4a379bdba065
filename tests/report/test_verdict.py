import json

import pytest

from upslope.report.read import read_run
from upslope.report.verdict import verdict


def judge(tmp_path, rows, **files):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_text(content)
    return verdict(read_run(tmp_path))


def evaluated(step, value, half=0.03, **more):
    interval = {} if half is None else {"eval/pass@1_low": value - half, "eval/pass@1_high": value + half}
    return {"step": step, "eval/pass@1": value, "eval/prompts": 256, **interval, **more}


def test_a_rise_beyond_the_intervals_is_a_rise(tmp_path):
    found = judge(tmp_path, [evaluated(0, 0.38), evaluated(40, 0.91)])
    assert found.sentence == (
        "Held-out pass@1 rose from 0.38 [0.35, 0.41] to 0.91 [0.88, 0.94] in 40 steps, on 256 instances never trained on."
    )
    assert (found.tone, found.reasons) == ("better", [])


def test_a_fall_is_a_fall(tmp_path):
    found = judge(tmp_path, [evaluated(0, 0.9), evaluated(40, 0.5)])
    assert found.tone == "worse"
    assert "fell from 0.90" in found.sentence


@pytest.mark.parametrize("after", [0.39, 0.43, 0.37])
def test_overlapping_intervals_are_no_change(tmp_path, after):
    found = judge(tmp_path, [evaluated(0, 0.38), {"step": 1, "reward": 0.4}, evaluated(40, after)])
    assert found.tone == "unclear"
    assert "did not change measurably" in found.sentence
    assert "rose" not in found.sentence


def test_an_interval_without_width_is_not_believed(tmp_path):
    """A bootstrap over equal scores has width zero; 0 of 256 does not exclude 1 of 256."""
    found = judge(tmp_path, [evaluated(0, 0.0, 0), evaluated(40, 0.015, 0.01)])
    assert found.tone == "unclear"
    assert "0.00 [0.00, 0.01] before" in found.sentence
    assert judge(tmp_path, [evaluated(0, 0.0, 0), evaluated(40, 0.5)]).tone == "better"
    assert judge(tmp_path, [evaluated(0, 0.5), evaluated(40, 1.0, 0)]).sentence.count("1.00 [0.99, 1.00]") == 1


def test_without_intervals_nothing_is_claimed(tmp_path):
    found = judge(tmp_path, [evaluated(0, 0.1, None), evaluated(40, 0.9, None)])
    assert found.tone == "unclear"
    assert "no interval to judge this by" in found.sentence


def test_a_peak_before_the_end_is_told(tmp_path):
    found = judge(tmp_path, [evaluated(0, 0.1), evaluated(20, 0.95), evaluated(40, 0.5)])
    assert "It was highest at step 20: 0.95" in found.sentence
    noise = judge(tmp_path, [evaluated(0, 0.1), evaluated(20, 0.53), evaluated(40, 0.5)])
    assert "highest" not in noise.sentence


def test_no_variance_is_given_as_the_reason(tmp_path):
    rows = [{"step": step, "reward": 0.0, "groups/zero_variance": 1.0} for step in range(1, 41)]
    found = judge(tmp_path, [evaluated(0, 0.02, 0.01), *rows, evaluated(40, 0.02, 0.01)])
    assert any("No group had any reward variance in 40 of 40 steps" in reason for reason in found.reasons)
    assert "The reward was 0 in every step." in found.reasons


def test_other_reasons(tmp_path):
    rows = [{"step": step, "reward": 0.1, "length/truncated": 0.9, "rewards/failed": 2} for step in range(1, 11)]
    event = '{"step": 3, "kind": "step skipped", "message": "the gradient\'s norm is nan", "count": 1}\n'
    status = '{"state": "failed", "message": "5 steps in a row were skipped"}'
    found = judge(tmp_path, [evaluated(0, 0.97), *rows], events__jsonl=event, status__json=status)
    text = " ".join(found.reasons)
    for part in (
        "length limit in 10 of 10 steps",
        "verifier failed on 20 completions",
        "the gradient's norm is nan",
        "5 steps in a row",
    ):
        assert part in text
    assert "no later evaluation" in found.sentence


def test_no_evaluation_and_nothing_at_all(tmp_path):
    found = judge(tmp_path, [{"step": s, "reward": s / 40} for s in range(1, 41)])
    assert found.sentence.startswith(
        "No held-out evaluation was recorded. Mean training reward: 0.0625 in the first 4 steps,"
    )
    assert judge(tmp_path, []).sentence == "No held-out evaluation was recorded."
