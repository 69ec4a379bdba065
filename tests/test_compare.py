"""The plan of a comparison and its numbers, against the statistics they are made of. The command: tests/cli/test_compare.py."""

import json

import numpy as np
import pytest

from upslope import UsageError
from upslope.cli.compare import table
from upslope.compare import (
    METRIC,
    area,
    check_jobs,
    final,
    finished,
    metric_of,
    parse_entry,
    plan_jobs,
    run_jobs,
    summarize,
)
from upslope.config import config_from
from upslope.runs.config import write_config
from upslope.runs.statistics import bootstrap, interquartile_mean, paired_difference

ENTRIES = ["grpo", "dr_grpo:ratio_high=1.5,beta=0"]
CURVES = {0: [0.1, 0.3, 0.5], 1: [0.2, 0.2, 0.8], 2: [0.0, 0.6, 0.6], 3: [0.3, 0.4, 0.7]}


def wanted(job, **changes):
    values = {"method": job.method, "task": "chain_sum", "seed": job.seed, "steps": 20, **changes}
    return config_from(values)


def write_run(job, values, state="finished"):
    job.folder.mkdir(parents=True)
    write_config(job.folder / "config.yaml", wanted(job).to_dict())
    rows = [{"step": 10 * i, METRIC: value} for i, value in enumerate(values)] + [{"step": 20, "reward": 1.0}]
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (job.folder / "status.json").write_text(json.dumps({"state": state, "message": ""}))


@pytest.fixture
def jobs(tmp_path):
    """Four seeds of two methods, the second 0.1 better at the end; the second has not finished seed 3."""
    found = plan_jobs(ENTRIES, 4, tmp_path)
    for job in found:
        better = 0.1 if job.label != "grpo" else 0.0
        state = "stopped" if better and job.seed == 3 else "finished"
        write_run(job, [*CURVES[job.seed][:2], CURVES[job.seed][2] + better], state)
    return found


def test_entries_have_settings_of_their_own():
    assert parse_entry("grpo") == ("grpo", ())
    assert parse_entry("grpo@trl:ratio_high=1.28,beta=0") == ("grpo@trl", ("ratio_high=1.28", "beta=0"))


def test_jobs_come_seed_by_seed_in_folders_of_their_own(tmp_path):
    jobs = plan_jobs([*ENTRIES, "my/method.py"], 2, tmp_path)
    assert [(job.label, job.seed) for job in jobs] == [
        (label, seed) for seed in (0, 1) for label in [*ENTRIES, "my/method.py"]
    ]
    assert len({job.folder for job in jobs}) == 6
    assert all(job.folder.parents[1] == tmp_path for job in jobs)


def test_summary_is_the_statistics_of_finished_runs(jobs, tmp_path):
    results = summarize(jobs, tmp_path, "chain_sum", 20)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    one, other = (results["methods"][entry] for entry in ENTRIES)
    x, y = np.array([0.5, 0.8, 0.6, 0.7]), np.array([0.6, 0.9, 0.7])
    for found, values in ((one, x), (other, y)):
        expected = bootstrap(values, interquartile_mean)
        assert found["final"] == pytest.approx(values.tolist())
        assert (found["iqm"], found["low"], found["high"]) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )
    assert one["seeds"] == [0, 1, 2, 3] and other["seeds"] == [0, 1, 2]  # noqa: PT018
    expected = paired_difference(y, x[:3])
    assert other["difference"]["from"] == "grpo"
    assert other["difference"]["mean"] == pytest.approx(expected.value) == pytest.approx(0.1)
    assert "difference" not in one
    assert [tmp_path / run for run in other["runs"]] == [job.folder for job in jobs if job.label != "grpo"][:3]
    areas = [np.trapezoid(CURVES[seed], [0, 10, 20]) / 20 for seed in range(4)]
    assert one["area"]["iqm"] == pytest.approx(float(interquartile_mean(np.array(areas)[:, None])))


def test_final_and_area_of_a_curve(jobs):
    assert final(jobs[0].folder, METRIC) == 0.5
    assert area(jobs[0].folder, METRIC) == pytest.approx(0.3)
    assert np.isnan(final(jobs[0].folder, "absent")) and np.isnan(area(jobs[0].folder, "reward"))  # noqa: PT018


def test_table_is_best_first(jobs, tmp_path):
    lines = table(summarize(jobs, tmp_path, "chain_sum", 20))
    assert lines[0].endswith("eval/pass@1 at step 20: interquartile mean [95 % interval]")
    assert lines[1].startswith("dr_grpo:ratio_high=1.5,beta=0  0.7") and "+0.100" in lines[1]  # noqa: PT018
    assert lines[2].split()[0] == "grpo" and lines[2].endswith("4 seeds")  # noqa: PT018
    assert table({"methods": {}}) == ["no run has finished."]


def test_finished_means_all_the_steps(jobs):
    assert finished(jobs[0].folder, 20)
    assert not finished(jobs[0].folder, 21)
    assert not finished(jobs[-1].folder, 20)
    (jobs[0].folder / "status.json").write_text("{")
    assert not finished(jobs[0].folder, 20)


def test_finished_runs_are_not_run_again(jobs):
    said = []
    assert run_jobs([jobs[0], jobs[1]], [], steps=20, parallel=2, threads=1, say=said.append) == []
    assert said == ["2 of 2 runs are finished already."]


def test_runs_of_other_settings_are_refused(jobs):
    check_jobs(jobs, lambda job: wanted(job, threads=3))
    check_jobs(jobs, lambda job: wanted(job, steps=30))
    with pytest.raises(
        UsageError, match=r"grpo/seed-0 is of other settings: optimizer.lr was None, now 0.5. Choose another --out"
    ):
        check_jobs(jobs, lambda job: wanted(job, optimizer={"lr": 0.5}))
    with pytest.raises(UsageError, match="steps was 20, now 10"):
        check_jobs(jobs, lambda job: wanted(job, steps=10))


@pytest.mark.parametrize(
    ("entries", "seeds", "message"), [(["a", "b", "a"], 1, "named twice"), (["a"], 0, "--seeds is 0")]
)
def test_wrong_plans(tmp_path, entries, seeds, message):
    with pytest.raises(UsageError, match=message):
        plan_jobs(entries, seeds, tmp_path)


def test_runs_on_given_completions_have_a_metric_of_their_own(jobs, tmp_path):
    pairs, losses = tmp_path / "pairs", tmp_path / "losses"
    for folder, accuracy in ((pairs, {"eval/pairs/accuracy": 0.8}), (losses, {})):
        folder.mkdir()
        rows = [{"step": step, "eval/loss": 1.5 - step / 20, **accuracy} for step in (0, 20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert metric_of([jobs[0].folder]) == metric_of([]) == METRIC
    assert metric_of([pairs, pairs]) == "eval/pairs/accuracy"
    assert metric_of([pairs, losses]) == "-eval/loss"
    assert metric_of([pairs, jobs[0].folder]) == METRIC, "nothing that all have: the usual one, not recorded by some"
    assert final(losses, "-eval/loss") == -0.5
    assert area(losses, "-eval/loss") == -1.0


def test_the_table_warns_of_losses_on_different_scales():
    found = {"iqm": -1.0, "low": -1.0, "high": -1.0, "seeds": [0]}
    results = {"metric": "-eval/loss", "steps": 2, "methods": {"sft": found, "sft:lr=1": found}}
    assert len(table(results)) == 3
    assert "not on one scale" in table({**results, "methods": {"sft": found, "dft": found}})[-1]
