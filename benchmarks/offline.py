"""Learning from logs made at home: do the published orderings of offline methods hold?

    make offline-data                             # the logs, once
    python benchmarks/offline.py [NAME ...]       # trains what is not trained yet, and writes docs/results/offline.md
    python benchmarks/offline.py --report         # writes it of what has finished

Called again, it goes on where it was stopped. Seed by seed, so that a study that is stopped early is balanced.
"""

import argparse
import functools
import itertools
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arms import course, write_figure
from offline_data import SOURCES
from readings import READINGS

from upslope import make
from upslope.actor_critic.log import open_log
from upslope.compare import Job, finished, run_jobs
from upslope.offline.making import split
from upslope.offline.minari import METADATA
from upslope.offline.spaces import space_of
from upslope.offline.writing import write_minari
from upslope.runs.statistics import Interval, bootstrap, interquartile_mean, paired_difference

SCORE = "eval/normalized_score"
MIXTURE = "95 % random, 5 % expert"
EPISODES = 25


@dataclass(frozen=True)
class Arm:
    """Methods on one log. An entry is METHOD or METHOD:SETTING=VALUE,...; beside it what it is compared with (None: nothing)."""

    source: str
    quality: str
    entries: dict[str, str | None]
    width: int = 64
    seeds: int = 5
    steps: int = 20
    settings: tuple[str, ...] = ()


WEIGHTED = "iql:selection=harness_tw"
MAIN = {"bc": None, "td3_bc": "bc", "rebrac": "td3_bc", "iql": "bc", "cql": "bc", "a2pr": "td3_bc", "prdc": "td3_bc"}
FREER = "td3_bc:behavior.alpha=100"  # about as free of the log as rebrac: is that what sets the two apart?
ALL = MAIN | {
    FREER: "td3_bc",
    "awac": "bc",
    "awr": "bc",
    "percent_bc": "bc",
    "cal_ql": "cql",
    "sac_n": "bc",
    "edac": "sac_n",
}
MIXED = {"bc": None, "td3_bc": "bc", "harness_tw": "td3_bc", "iql": "bc", WEIGHTED: "iql", "percent_bc": "bc"}
PLAYS_ON = {"iql": None, "awac": None, "cql": None, "cal_ql": "cql"}
ONLINE = ("rollout.offline_steps=10", "rollout.steps=1000")
SLOW = frozenset({"cql", "cal_ql", "sac_n", "edac"})  # ten times the time of the others: they come last,
SLOW_SEEDS = 3  # with fewer seeds


def rebrac(actor: float, critic: float) -> str:
    """ReBRAC with the coefficients that its authors' search found for their log of such an environment."""
    return f"rebrac:behavior.coefficient={actor},target.coefficient={critic}"


ARMS = {
    "pendulum": Arm("pendulum", "medium-replay", ALL),
    "pointmaze": Arm("pointmaze", "medium-replay", ALL | {rebrac(0.003, 0.001): "td3_bc"}),
    "pendulum-mixed": Arm("pendulum", MIXTURE, MIXED),
    "pointmaze-mixed": Arm("pointmaze", MIXTURE, MIXED),
    "pointmaze-online": Arm("pointmaze", "medium-replay", PLAYS_ON, settings=ONLINE),
    "hopper": Arm("hopper", "medium-replay", MAIN | {rebrac(0.05, 0.5): "td3_bc"}, width=128, seeds=3, steps=50),
    "cheetah": Arm("cheetah", "medium-replay", MAIN | {rebrac(0.01, 0.001): "td3_bc"}, width=128, seeds=3, steps=50),
}


def settings_of(entry: str, arm: Arm) -> tuple[str, ...]:
    """The settings of an entry's runs: its layers, as many as the method has, all of one width, and learning rates of 1e-3."""
    method, _, own = entry.partition(":")
    recipe = make(method)
    found = [*arm.settings, "batch_size=128", "update.actor_lr=1e-3", "update.critic_lr=1e-3"]
    for stage in ("policy", "critic", "value", "proposer"):
        hidden = getattr(getattr(recipe, stage), "hidden", None)
        if hidden is not None:
            found.append(f"{stage}.hidden={json.dumps([arm.width] * len(hidden))}")
    if hasattr(recipe.temperature, "lr"):
        found.append("temperature.lr=1e-3")
    if method in ("cql", "cal_ql"):
        found.append("penalty.samples=4")
    found += [f"eval.episodes={EPISODES}", "eval.every=5", "checkpoint_every=0", "sinks=[]", "self_checks=false"]
    return (*found, *filter(None, own.split(",")))


def seeds_of(entry: str, arm: Arm) -> int:
    """How many runs an entry has."""
    return min(arm.seeds, SLOW_SEEDS) if entry.partition(":")[0] in SLOW else arm.seeds


def jobs_of(name: str, arm: Arm, runs: Path, seeds: range) -> list[Job]:
    """The runs of an arm, seed by seed."""
    jobs = []
    for seed in seeds:
        for entry in arm.entries:
            plain = "".join(c if c.isalnum() or c in "._-@=" else "-" for c in entry)
            folder = runs / name / plain / f"seed-{seed}"
            jobs.append(Job(entry, entry.partition(":")[0], settings_of(entry, arm), seed, folder))
    return jobs


def log_of(arm: Arm, logs: Path) -> Path | None:
    """The arm's log; the mixture is made here, of the same run's. None: its parts have not been made."""
    folder = logs / arm.source
    if arm.quality != MIXTURE:
        place = folder / arm.quality
        return place if (place / "data" / METADATA).exists() else None
    place, parts = folder / "mixed", (folder / "random", folder / "expert")
    if not all((part / "data" / METADATA).exists() for part in parts):
        return None
    if not (place / "data" / METADATA).exists():
        mix(parts, (0.95, 0.05), SOURCES[arm.source].transitions, place)
    return place


def mix(parts: Sequence[Path], shares: Sequence[float], transitions: int, out: Path) -> None:
    """A log of the first episodes of each part, until they have its share of so many transitions."""
    chosen = []
    about = json.loads((parts[0] / "data" / METADATA).read_text())
    for part, share in zip(parts, shares, strict=True):
        log, count = open_log(str(part), None), 0
        assert log.actions is not None
        columns = (log.observation, log.next_observation, log.actions.to_environment(log.action, "scale"))
        for episode in split(*columns, log.reward, log.terminated, log.truncated):
            if count >= share * transitions:
                break
            chosen.append(episode)
            count += len(episode.rewards)
    kept = ("algorithm_name", "ref_min_score", "ref_max_score", "num_episodes_average_score", "env_spec")
    facts = {name: about[name] for name in kept if name in about} | {
        "dataset_id": f"upslope/{out.parent.name}-mixed-v0"
    }
    write_minari(out, chosen, space_of(about["observation_space"]), space_of(about["action_space"]), facts)


def run(names: Sequence[str], runs: Path, logs: Path, seeds: int | None, parallel: int) -> bool:
    """Trains what is not trained yet, one seed of every arm after the other, slow methods last; whether all went well."""
    well = True
    chosen = {name: ARMS[name] for name in names}
    data_of = {name: log_of(arm, logs) for name, arm in chosen.items()}
    for name in (name for name, data in data_of.items() if data is None):
        print(f"{name}: there is no log; make it: make offline-data ONLY={chosen[name].source}", flush=True)
    count = max(seeds or arm.seeds for arm in chosen.values())
    for slow, seed, (name, arm) in itertools.product((False, True), range(count), chosen.items()):
        jobs = [job for job in jobs_of(name, arm, runs, range(seed, seed + 1)) if (job.method in SLOW) == slow]
        jobs = [job for job in jobs if seed < (seeds or seeds_of(job.label, arm))]
        if all(finished(job.folder, arm.steps) for job in jobs):
            continue
        data = data_of[name]
        if data is None:
            continue
        print(f"== {name}, seed {seed}", flush=True)
        options = ("--data", str(data), "--steps", str(arm.steps))
        say = functools.partial(print, flush=True)
        failed = run_jobs(jobs, options, steps=arm.steps, parallel=parallel, threads=1, say=say)
        well &= not failed
        if any(job not in failed and not finished(job.folder, arm.steps) for job in jobs):  # a signal asked for a stop
            return False
    return well


def scores(job: Job) -> list[tuple[float, float]]:
    """A run's normalized score over its steps."""
    return course(job, SCORE)


@dataclass(frozen=True)
class Found:
    """What an arm's finished runs came to: (step, score) by entry and seed."""

    arm: Arm
    courses: dict[str, dict[int, list[tuple[float, float]]]]

    def last(self, entry: str) -> dict[int, float]:
        """The last score by seed."""
        return {seed: points[-1][1] for seed, points in self.courses.get(entry, {}).items()}


def found_in(runs: Path) -> dict[str, Found]:
    """The arms of which runs have finished."""
    found = {}
    for name, arm in ARMS.items():
        courses: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for job in jobs_of(name, arm, runs, range(20)):
            if finished(job.folder, arm.steps):
                courses.setdefault(job.label, {})[job.seed] = scores(job)
        if courses:
            found[name] = Found(arm, courses)
    return found


def table(found: Found) -> list[str]:
    """One row per entry: the last score, and its difference from what it is compared with, paired by seed."""
    lines = ["| method | seeds | last score | compared with | difference |", "|---|---|---|---|---|"]
    for entry, other in found.arm.entries.items():
        mine = found.last(entry)
        if not mine:
            lines.append(f"| `{entry}` | 0 | | | |")
            continue
        cells = [f"`{entry}`", str(len(mine)), _cell(np.array(list(mine.values())))]
        shared = sorted(mine.keys() & (found.last(other) if other else {}).keys())
        if other and shared:
            theirs = found.last(other)
            apart = paired_difference(*(np.array([which[seed] for seed in shared]) for which in (mine, theirs)))
            cells += [f"`{other}`", _difference(apart, len(shared))]
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference(found: Interval, seeds: int) -> str:
    """With its interval, where there is more than one seed."""
    bounds = f" [{found.low:+.1f}, {found.high:+.1f}]" if seeds > 1 else ""
    return f"{found.value:+.1f}{bounds}"


def _cell(values: np.ndarray) -> str:
    found = bootstrap(values, interquartile_mean)
    if len(values) < 2:
        return f"{found.value:.1f}"
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def online_table(found: Found) -> list[str]:
    """The score before playing, at its lowest after that, and at the end."""
    before = float(next(setting.split("=")[1] for setting in found.arm.settings if "offline_steps" in setting))
    lines = ["| method | seeds | before | lowest after | last | rise |", "|---|---|---|---|---|---|"]
    for entry in found.arm.entries:
        mine = found.courses.get(entry, {})
        if not mine:
            continue
        first = np.array([max(point for point in points if point[0] <= before)[1] for points in mine.values()])
        least = np.array([min(score for step, score in points if step > before) for points in mine.values()])
        last = np.array(list(found.last(entry).values()))
        rise = paired_difference(last, first)
        cells = [f"`{entry}`", str(len(mine)), _cell(first), _cell(least), _cell(last)]
        lines.append(f"| {' | '.join(cells)} | {_difference(rise, len(mine))} |")
    return lines


SETUP = f"""The logs are those of `make offline-data`.
All methods of a table learn from the same log with the same widths (64; 128 for
MuJoCo), as many layers as the method has, batches of 128 and Adam at 1e-3 for every network: 20,000 updates (MuJoCo:
50,000), where the papers take a million with smaller rates. `cql` and `cal_ql` draw 3 x 4 actions, not 3 x 10. Everything
else is as published, and nothing was chosen by its result. Scores are of the last checkpoint, over {EPISODES} episodes,
likeliest actions: 0 is random actions, 100 the expert of the same training run. Interquartile means over seeds with 95 %
bootstrap intervals; differences are paired by seed. With three or five seeds intervals are narrower than they say."""


def logs_table(logs: Path) -> Iterator[str]:
    """What the logs are, from their metadata."""
    yield "| log | transitions | episodes | mean return | score | random | expert |"
    yield "|---|---|---|---|---|---|---|"
    for name in SOURCES:
        for quality in ("random", "medium", "medium-replay", "medium-expert", "expert"):
            place = logs / name / quality / "data" / METADATA
            if place.exists():
                f = json.loads(place.read_text())["upslope"]
                cells = [
                    f"{f['task']} {quality}",
                    f"{f['steps_logged']:,}",
                    f"{f['episodes']:,}",
                    f"{f['return_mean']:.4g}",
                ]
                cells += [f"{f['score_mean']:.1f}", f"{f['random_return']:.4g}", f"{f['expert_return']:.4g}"]
                yield "| " + " | ".join(cells) + " |"


def report(runs: Path, logs: Path, out: Path) -> None:
    """docs/results/offline.md and its figures, of what has finished."""
    found = found_in(runs)
    lines = ["# Study: learning from logs made at home", "", "Do the published orderings of offline methods hold?", ""]
    lines += [*_wrapped(SETUP), "", *logs_table(logs)]
    done = sum(len(seeds) for one in found.values() for seeds in one.courses.values())
    planned = sum(seeds_of(entry, arm) for arm in ARMS.values() for entry in arm.entries)
    if done < planned:
        text = f"Not all of it has been run: {done} of {planned} runs have finished, and `python benchmarks/offline.py` goes on."
        lines += ["", text]
    for name, one in found.items():
        about = f"{SOURCES[one.arm.source].env}, {one.arm.quality}"
        lines += ["", f"## {name}: {about}", ""]
        if name.endswith("-online"):
            text = "10,000 updates on the log, then 10,000 actions with an update each; `cal_ql` draws half of each from the log."
            lines += [text, "", *online_table(one), "", "![score over steps](offline_online.svg)"]
            courses = {entry: list(seeds.values()) for entry, seeds in one.courses.items()}
            axes = {"x": "step (1000 updates; from 10 on, 1000 actions)", "y": "normalized score"}
            write_figure(courses, out / "offline_online.svg", title=about, **axes)
        else:
            lines += table(one)
    still = {name: one for name, one in found.items() if not name.endswith("-online")}
    if still:
        draw(still, out / "offline.svg")
        lines += ["", "![last scores of every method and log](offline.svg)"]
    if "offline" in READINGS:
        lines += ["", "## Reading", "", READINGS["offline"]]
    (out / "offline.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 128, break_long_words=False, break_on_hyphens=False)


def draw(found: dict[str, Found], out: Path) -> None:
    """Last scores: a panel per log, a row per entry, a dot per seed, the interquartile mean as a bar."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(found), figsize=(3.1 * len(found) + 1, 4.4), layout="constrained", squeeze=False
    )
    for axes, (name, one) in zip(panels[0], found.items(), strict=True):
        entries = [entry for entry in one.arm.entries if one.last(entry)]
        for row, entry in enumerate(entries):
            values = np.array(list(one.last(entry).values()))
            center = bootstrap(values, interquartile_mean)
            axes.plot(values, [row] * len(values), "o", markersize=3, color="tab:gray", alpha=0.7)
            axes.plot([center.low, center.high], [row, row], linewidth=2, color="tab:blue")
            axes.plot([center.value], [row], "|", markersize=12, markeredgewidth=2, color="tab:blue")
        axes.set(yticks=range(len(entries)), yticklabels=entries, xlabel="normalized score", title=name)
        axes.invert_yaxis()
        axes.grid(alpha=0.25)
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, help="5, of MuJoCo 3, where not given")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--logs", type=Path, default=Path("runs/offline-data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/offline"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in ARMS]:
        parser.error(f"no arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
    well = True
    if not arguments.report:
        names = arguments.names or list(ARMS)
        well = run(names, arguments.runs, arguments.logs, arguments.seeds, arguments.parallel)
    report(arguments.runs, arguments.logs, arguments.out)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
