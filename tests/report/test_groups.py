import numpy as np

from upslope.report.groups import group_line, group_runs, results_of, varying_settings
from upslope.report.read import read_run


def runs(tmp_path, make_run, *configs, curve=None):
    made = []
    for index, config in enumerate(configs):
        metrics = [{"step": s, "reward": float(s * (index + 1)), "eval/pass@1": index / 10} for s in range(curve or 3)]
        made.append(read_run(make_run(tmp_path / str(index), metrics=metrics, samples=[], config=config)))
    return made


def test_seeds_belong_together_and_settings_set_apart(tmp_path, make_run):
    lr = {"optimizer": {"lr": 1e-4, "weight_decay": 0.0}}
    found = runs(tmp_path, make_run, {"seed": 0}, {"seed": 1}, {"method": "dapo"}, {"seed": 2, **lr})
    groups = group_runs(found)
    assert {name: len(group) for name, group in groups.items()} == {
        "grpo, optimizer.lr=3e-05": 2, "dapo, optimizer.lr=3e-05": 1, "grpo, optimizer.lr=0.0001": 1
    }  # fmt: skip
    assert varying_settings(found) == ["method", "optimizer.lr"]


def test_what_leaves_the_training_alone_sets_nothing_apart(tmp_path, make_run):
    found = runs(tmp_path, make_run, {"threads": 1}, {"threads": 2, "sinks": []}, {"eval": {"temperature": 0.5}})
    assert {name: len(group) for name, group in group_runs(found).items()} == {
        "grpo, eval.temperature=unset": 2, "grpo, eval.temperature=0.5": 1
    }  # fmt: skip


def test_the_line_is_the_mean_over_seeds_inside_its_interval(tmp_path, make_run):
    found = runs(tmp_path, make_run, {"seed": 0}, {"seed": 1}, {"seed": 2})
    line = group_line(found, "reward", "grpo", 0)
    np.testing.assert_allclose(line.y, [0, 2, 4])  # the mean of s, 2s and 3s
    assert (line.low <= line.y).all()
    assert (line.y <= line.high).all()
    assert line.low[2] < 4 < line.high[2]
    assert group_line(found[:1], "reward", "grpo", 0).low is None
    assert group_line(found, "absent", "grpo", 0) is None


def test_only_steps_that_all_runs_reached_are_joined(tmp_path, make_run):
    (a,) = runs(tmp_path / "a", make_run, {"seed": 0}, curve=3)
    (b,) = runs(tmp_path / "b", make_run, {"seed": 1}, curve=5)
    assert list(group_line([a, b], "reward", "grpo", 0).x) == [0, 1, 2]


def test_results_take_the_last_value_of_every_run(tmp_path, make_run):
    found = runs(tmp_path, make_run, {}, {}, {})
    with_none, without = results_of({"grpo": found, "none": []}, "eval/pass@1")
    assert with_none.values == [0.0, 0.1, 0.2]
    assert abs(with_none.interval.value - 0.1) < 1e-12
    assert without.interval is None
