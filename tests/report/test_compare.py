import json

import pytest

from report.test_page import HOSTILE, Page
from upslope.errors import UsageError
from upslope.report import write_compare_report, write_report


@pytest.fixture
def comparison(tmp_path, make_run):
    """compare(names, seeds) writes a folder as `upslope compare` does."""

    def compare(names=("grpo", "dapo"), seeds=3, **more):
        folder = tmp_path / "compare"
        methods = {}
        for index, name in enumerate(names):
            runs = []
            for seed in range(seeds):
                metrics = make_run.metrics(20, end=0.7 + 0.1 * index, seed=seed)
                path = make_run(
                    folder / f"m{index}" / f"seed-{seed}",
                    metrics=metrics,
                    samples=[],
                    config={"method": name, "seed": seed},
                )
                runs.append(str(path.relative_to(folder)))
            methods[name] = {"iqm": 0.7 + 0.1 * index, "low": 0.6, "high": 0.9, "runs": runs}
        results = {"task": "countdown", "metric": "eval/pass@1", "methods": methods, **more}
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return compare


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_the_table_has_the_recorded_results_best_first(comparison):
    folder = comparison()
    page = read(write_compare_report(folder, folder))
    assert "2 methods on countdown" in page.text
    assert page.text.index("dapo") < page.text.index("grpo")
    assert "0.800" in page.text
    assert "[0.600, 0.900]" in page.text
    assert page.text.count("seed-2") == 2
    assert "interquartile mean over up to 3 runs" in page.text


def test_differences_are_shown_with_their_sign(comparison):
    folder = comparison()
    results = json.loads((folder / "results.json").read_text())
    results["methods"]["dapo"]["difference"] = {"from": "grpo", "mean": 0.1, "low": -0.02, "high": 0.2}
    (folder / "results.json").write_text(json.dumps(results))
    page = read(write_compare_report(folder, folder))
    assert "Difference from grpo" in page.text
    assert "+0.100 [-0.020, +0.200]" in page.text


def test_a_moved_comparison_is_found_and_a_missing_run_is_named(comparison, tmp_path):
    folder = comparison()
    results = json.loads((folder / "results.json").read_text())
    paths = [f"/elsewhere/{path}" for path in results["methods"]["grpo"]["runs"]]
    results["methods"]["grpo"]["runs"] = [*paths, "m0/seed-9"]
    (folder / "results.json").write_text(json.dumps(results))
    page = read(write_compare_report(folder, tmp_path / "page.html"))
    assert f"A run of grpo is left out: {folder}/m0/seed-9 is not a folder" in page.text
    assert page.text.count("seed-1") == 2


def test_what_many_runs_lack_is_said_once(comparison, tmp_path):
    folder = comparison()
    for path in folder.glob("*/*/describe.txt"):
        path.unlink()
    (folder / "m1" / "seed-2" / "status.json").write_text("{")
    page = read(write_compare_report(folder, tmp_path / "page.html"))
    assert page.text.count("6 runs: describe.txt is missing.") == 1
    assert "m1/seed-2: status.json could not be read" in page.text


def test_runs_link_to_their_own_pages_relatively(comparison):
    folder = comparison()
    own = folder / "m0" / "seed-0"
    write_report([own], own)
    page = read(write_compare_report(folder, folder))
    assert [value for tag, name, value in page.attributes if (tag, name) == ("a", "href") and value[0] != "#"] == [
        "./m0/seed-0/report.html"
    ]


@pytest.mark.parametrize("text", HOSTILE[:7])
def test_hostile_names_are_text(comparison, tmp_path, text):
    plain = read(write_compare_report(comparison(("benign", "dapo"), 2, metric="eval/pass@4"), tmp_path / "plain.html"))
    page = read(
        write_compare_report(comparison((text, "dapo"), 2, metric="eval/pass@4", task=text), tmp_path / "page.html")
    )
    assert page.elements == plain.elements


def test_runs_given_one_by_one_are_grouped_by_what_differs(comparison, tmp_path):
    folder = comparison(seeds=2)
    runs = sorted(path.parent for path in folder.glob("*/*/config.yaml"))
    page = read(write_report(runs, tmp_path / "page.html"))
    assert "4 runs of 2 configurations" in page.text
    assert "interquartile mean over up to 2 runs" in page.text


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"methods": []}', '{"methods": {"grpo": {"runs": ["x"]}}}', '{"methods": {"grpo": 1}}']
)
def test_unreadable_results_are_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UsageError, match=r"results\.json"):
        write_compare_report(tmp_path, tmp_path / "page.html")


def test_runs_on_given_completions_are_compared_by_their_loss_with_its_sign_turned(tmp_path, make_run):
    runs = []
    for name, loss in (("sft", 0.9), ("dft", 0.4)):
        rows = [{"step": s, "loss": 1.0, "eval/loss": 2.0 - s * (2 - loss)} for s in range(2)]
        runs.append(make_run(tmp_path / name, metrics=rows, samples=[], config={"method": name}))
    page = read(write_report(runs, tmp_path / "page.html"))
    assert "-eval/loss at the last evaluation" in page.text
    assert "-0.900" in page.text
    assert page.text.index("dft") < page.text.index("sft")
    assert "losses of different methods are not on one scale" in page.text
    assert "Held-out before" in page.text
    assert "pass@1" not in page.text


def test_the_page_of_a_run_on_given_completions_speaks_of_no_rewards(tmp_path, make_run):
    rows = [
        {"step": s, "loss": 0.7, "pairs/accuracy": 0.5, "eval/loss": 0.7, "eval/pairs/accuracy": 0.5} for s in (0, 1)
    ]
    sample = {
        "split": "eval",
        "key": "k",
        "prompt": "p",
        "completion": "c",
        "reward": 1.0,
        "parts": {},
        "failure": None,
    }
    samples = [{**sample, "step": s, "finish": "stop"} for s in (0, 1)]
    page = read(write_report([make_run(tmp_path / "run", metrics=rows, samples=samples)], tmp_path / "page.html"))
    assert "nothing was sampled, so there is nothing to compare" in page.text
    assert "Label or score" in page.text
    for title in ("Held-out loss", "Held-out pair accuracy", "Pair accuracy"):
        assert title in page.text
    assert "Training reward" not in page.text
