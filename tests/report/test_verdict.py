import json

import pytest

from upslope.report.given import wilson
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


def test_without_a_verifier_the_reward_is_judged(tmp_path):
    """Where only a reward model says what is good, its mean score over prompts is the headline; its interval has no bounds."""

    def scored(step, value):
        around = {"eval/reward_low": value - 0.5, "eval/reward_high": value + 0.5}
        return {"step": step, "eval/reward": value, "eval/prompts": 64, **around}

    found = judge(tmp_path, [scored(0, -1.2), scored(20, 3.4)])
    assert found.sentence == (
        "Held-out reward rose from -1.20 [-1.70, -0.70] to 3.40 [2.90, 3.90] in 20 steps, on 64 instances never trained on."
    )
    assert found.tone == "better"
    assert judge(tmp_path, [scored(0, 1.0), scored(20, 1.2)]).reasons == []
    both = judge(tmp_path, [evaluated(0, 0.38, **{"eval/reward": 5.0}), evaluated(40, 0.91, **{"eval/reward": 1.0})])
    assert both.sentence.startswith("Held-out pass@1 rose")


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


def measured(step, loss, accuracy=None, margin=1.0, prompts=100):
    pairs = {} if accuracy is None else {"eval/pairs/accuracy": accuracy, "eval/pairs/margin": margin}
    return {"step": step, "eval/loss": loss, "eval/prompts": prompts, **pairs}


@pytest.mark.parametrize("half", [0.5, 0.4999999701976776])
def test_given_pairs_are_judged_by_those_ordered_rightly(tmp_path, half):
    trained = [{"step": step, "loss": 0.6} for step in range(1, 4)]
    found = judge(tmp_path, [measured(0, 0.6931, half, 0.0), *trained, measured(40, 0.4, 0.9)])
    assert found.sentence == (
        "Held-out loss fell from 0.693 to 0.400 in 40 steps, on 100 instances never trained on. Of the pairs, it orders "
        "0.90 [0.83, 0.94] rightly, none by the reference it began as."
    )
    assert (found.tone, found.reasons, found.before.value, found.after.value) == ("better", [], 0.5, 0.9)


@pytest.mark.parametrize(("after", "tone"), [(0.95, "better"), (0.75, "unclear"), (0.5, "worse")])
def test_pairs_that_were_ordered_before(tmp_path, after, tone):
    found = judge(tmp_path, [measured(0, 0.5, 0.7), measured(40, 0.45, after)])
    assert found.tone == tone
    assert "0.70 [0.60, 0.78] before." in found.sentence


def test_a_loss_alone_is_told_without_a_judgement(tmp_path):
    rows = [measured(0, 2.0), {"step": 1, "loss": 1.5}, measured(20, 0.4), measured(40, 1.0)]
    found = judge(tmp_path, rows)
    assert (
        found.sentence
        == "Held-out loss fell from 2.00 to 1.00 (lowest at step 20: 0.400) in 40 steps, on 100 instances never trained on."
    )
    assert (found.tone, found.reasons, found.after.value) == ("unclear", [], 1.0)
    assert "rose from 1.00 to 2.00 in 4 steps" in judge(tmp_path, [measured(0, 1.0), measured(4, 2.0)]).sentence
    assert "stayed at 1.00 in 4 steps" in judge(tmp_path, [measured(0, 1.0), measured(4, 1.00001)]).sentence
    once = judge(tmp_path, [measured(0, 1.0, 0.7)])
    assert once.sentence == (
        "Held-out loss was 1.00 at step 0, on 100 instances never trained on; no later evaluation was recorded."
    )
    assert str(once.before) == "0.70 [0.60, 0.78]"


def bounded(step, metric, value, low, high):
    return {"step": step, metric: value, f"{metric}_low": low, f"{metric}_high": high, "eval/prompts": 100}


@pytest.mark.parametrize(
    ("after", "tone", "course", "end"),
    [
        ((1.0, 0.9, 1.2), "better", "fell from 2.00 [1.80, 2.20] to 1.00 [0.900, 1.20]", "."),
        ((1.9, 1.7, 2.1), "unclear", "fell from 2.00 [1.80, 2.20] to 1.90 [1.70, 2.10]", "; the intervals overlap."),
        ((3.0, 2.5, 3.5), "worse", "rose from 2.00 [1.80, 2.20] to 3.00 [2.50, 3.50]", "."),
        ((2.0, 1.7, 2.1), "unclear", "stayed at 2.00 [1.70, 2.10]", "."),
    ],
)
def test_of_a_loss_less_is_better_where_the_intervals_do_not_overlap(tmp_path, after, tone, course, end):
    for metric, name in (("eval/loss", "loss"), ("eval/teacher/kl", "KL to the teacher")):
        found = judge(tmp_path, [bounded(0, metric, 2.0, 1.8, 2.2), bounded(4, metric, *after)])
        told = f"Held-out {name} {course} in 4 steps, on 100 instances never trained on{end}"
        assert found.sentence.startswith(told)
        assert found.tone == tone
        assert ("No reward is measured" in found.sentence) == (metric == "eval/teacher/kl")


def test_without_rewards_the_training_loss_is_told(tmp_path):
    found = judge(tmp_path, [{"step": step, "loss": 1 / step} for step in (1, 2, 4)])
    assert found.sentence.endswith("Mean training loss: 1.00 in the first step, 0.250 in the last step.")
    assert found.reasons == []
    task = judge(tmp_path, [evaluated(0, 0.38), {"step": 1, "loss": 0.5}, evaluated(40, 0.39)])
    assert "The reward was 0" not in " ".join(task.reasons)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_wilson_interval_is_where_the_share_is_just_not_excluded(share):
    """Both ends p solve |share - p| = 1.96 sqrt(p (1 - p) / n)."""
    low, high = wilson(share, 50)
    assert low <= share <= high
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.96 * (end * (1 - end) / 50) ** 0.5)
