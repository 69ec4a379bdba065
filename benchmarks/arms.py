"""What the studies share: runs of `upslope compare`, tables over seeds with intervals, and a figure."""

import argparse
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from readings import READINGS

from upslope.compare import Job, finished, plan_jobs
from upslope.runs.metrics import read_metrics
from upslope.runs.statistics import bootstrap, interquartile_mean, mean, paired_difference

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "upslope",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Values = Mapping[str, Mapping[int, Sequence[float]]]
"""Figures by label and seed, in the order of the table's columns."""


def compare(
    methods: Sequence[str], out: Path, *, steps: int, seeds: int, options: Sequence[str], settings: Sequence[str]
) -> int:
    """Trains what is not trained yet; the exit status of `upslope compare`."""
    command = [sys.executable, "-m", "upslope", "compare", *methods, *options]
    command += ["--steps", str(steps), "--seeds", str(seeds), "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.run(command).returncode


def jobs_of(methods: Sequence[str], out: Path, *, steps: int, seeds: int) -> list[Job]:
    """The finished runs among those that `compare` trains."""
    return [job for job in plan_jobs(methods, seeds, out) if finished(job.folder, steps)]


def parse(doc: str, name: str) -> argparse.Namespace:
    """--seeds, --runs (a folder, made) and --out, for a study whose module docstring is `doc`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs", name))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    arguments.runs = arguments.runs.resolve()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    return arguments


def publish(
    name: str,
    doc: str,
    labels: Sequence[str],
    setup: str,
    values: "Values",
    figures: Sequence[str],
    courses: Mapping[str, "Mapping[int, Points]"],
    axes: Mapping[str, str],
    out: Path,
) -> None:
    """study_NAME.md, with the table of `values`, and study_NAME.svg, with `courses` by label and seed on `axes` (x, y, title).

    doc     of the script: its title up to the first colon, then the question
    setup   how the runs were made and read, one paragraph
    """
    title, _, question = doc.partition(": ")[0], *doc.partition("\n\n")[1:]
    lines = [f"# Study: {title[0].lower()}{title[1:]}", "", question.strip(), ""]
    lines += textwrap.wrap(" ".join(setup.split()), 128, break_long_words=False, break_on_hyphens=False)
    lines += ["", *table(labels, values, figures), "", f"![{axes['y']} over {axes['x']}](study_{name}.svg)"]
    if name in READINGS:
        lines += ["", "## Reading", "", READINGS[name]]
    (out / f"study_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_figure(
        {label: list(courses[label].values()) for label in labels if label in courses},
        out / f"study_{name}.svg",
        **axes,
    )


def table(labels: Sequence[str], values: Values, figures: Sequence[str]) -> list[str]:
    """One row per label: interquartile means with intervals, and the first figure's paired difference from the first label."""
    head = ["method", "seeds", *figures, f"{figures[0]} against the first"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label in labels:
        mine = values.get(label, {})
        if not mine:
            lines.append(f"| `{label}` | 0 |" + " |" * (len(head) - 2))
            continue
        columns = np.array([mine[seed] for seed in sorted(mine)]).T
        cells = [interval(column) for column in columns]
        first = values.get(labels[0], {})
        shared = sorted(mine.keys() & first.keys())
        against = ""
        if label != labels[0] and shared:
            found = paired_difference(*(np.array([which[seed][0] for seed in shared]) for which in (mine, first)))
            against = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        lines.append("| " + " | ".join([f"`{label}`", str(len(mine)), *cells, against]) + " |")
    return lines


def interval(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "-"
    found = bootstrap(values, interquartile_mean)
    if found.value > 100:
        return f"{found.value:.0f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


Points = Sequence[tuple[float, float]]
"""A run's course: (x, y) pairs, as many in every run of a label."""


def course(job: Job, metric: str) -> list[tuple[float, float]]:
    """The steps and values of a metric that a run recorded."""
    rows = read_metrics(job.folder / "metrics.jsonl")
    return [(row["step"], float(row[metric])) for row in rows if row.get(metric) is not None]


def write_figure(runs: Mapping[str, Sequence[Points]], out: Path, *, x: str, y: str, title: str) -> None:
    """One line per label: means over its runs (in x, too), a band for the 95 % bootstrap interval of y."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.2), layout="constrained")
    for label, courses in runs.items():
        points = np.array(courses, dtype=float)  # [runs, points, 2]
        found = [bootstrap(points[:, index, 1], mean) for index in range(points.shape[1])]
        at = points[:, :, 0].mean(0)
        (line,) = axes.plot(at, points[:, :, 1].mean(0), marker="o", markersize=3, label=label)
        axes.fill_between(
            at, [one.low for one in found], [one.high for one in found], alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)
