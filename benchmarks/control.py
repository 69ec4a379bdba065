"""Learning in environments, over seeds: python benchmarks/control.py [--only TEXT] [--runs DIR] [--out docs/results]

Do the control methods reach what other libraries publish, at the same number of actions? `upslope compare` trains each line of the
table, with the method's defaults; called again, it goes on where it was stopped. About eight hours of one core.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import compare, jobs_of, mpl

from upslope import make
from upslope.actor_critic.recipe import ActorCritic
from upslope.runs.metrics import read_metrics
from upslope.runs.statistics import bootstrap, mean


@dataclass(frozen=True)
class Line:
    """One comparison: `steps` of the run, over `seeds`; `aim` in words, `goal` the number."""

    task: str
    methods: tuple[str, ...]
    steps: int
    seeds: int
    every: int
    episodes: int
    aim: str
    goal: float

    @property
    def name(self) -> str:
        return f"{'-'.join(name.partition('@')[0] for name in self.methods)}-{self.task}"


LINES = (
    Line("CartPole-v1", ("ppo",), 976, 5, 244, 100, "500; cleanrl 490 ± 6 (500k)", 500),
    Line("Acrobot-v1", ("ppo",), 976, 5, 244, 100, "above -90; cleanrl -86.4 ± 1.3 (500k)", -90),
    Line("Pendulum-v1", ("sac", "td3"), 20, 5, 5, 100, "above -170; rl-zoo SAC -157 ± 89, TD3 -152 ± 90 (20k)", -170),
    Line("HalfCheetah-v4", ("ppo@continuous",), 488, 3, 122, 10, "cleanrl 1443 ± 46 (1M)", 1443),
    Line("Hopper-v4", ("ppo@continuous",), 488, 3, 122, 10, "cleanrl 2383 ± 272 (1M)", 2383),
    Line("Walker2d-v4", ("ppo@continuous",), 488, 3, 122, 10, "cleanrl 2288 ± 572 (1M)", 2288),
    Line("Hopper-v4", ("sac@cleanrl",), 300, 3, 10, 10, "cleanrl 2310 ± 343 (1M)", 2310),
)
HEAD = "| environment | method | seeds | actions | training return | evaluation | published, or asked for |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="lines whose name has this in it, e.g. Hopper or sac")
    parser.add_argument("--runs", type=Path, default=Path("runs/control"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    for line in LINES:
        if arguments.only in line.name:
            shared = (f"eval.every={line.every}", f"eval.episodes={line.episodes}", "sinks=[]")
            options = ("--task", line.task)
            compare(
                line.methods, runs / line.name, steps=line.steps, seeds=line.seeds, options=options, settings=shared
            )
    write(runs, arguments.out)


def write(runs: Path, out: Path) -> None:
    """The table and the figure of every run that is finished; of one that went on, its first `steps`."""
    rows, courses = [HEAD, "|---" * 7 + "|"], {}
    for line in LINES:
        for method in line.methods:
            jobs = jobs_of([method], runs / line.name, steps=line.steps, seeds=line.seeds)
            if not jobs:
                continue
            played = [
                [row for row in read_metrics(job.folder / "metrics.jsonl") if row["step"] <= line.steps] for job in jobs
            ]
            last = [run[-1] for run in played]
            trained = [training_return(method, run) for run in played]
            cells = [spread(values) for values in (trained, [row["eval/return"] for row in last])]
            actions = f"{last[0]['env_steps']:,.0f}"
            rows.append(f"| {line.task} | `{method}` | {len(jobs)} | {actions} | {' | '.join(cells)} | {line.aim} |")
            courses[f"{line.task}, {method}"] = (
                [[(row["env_steps"], row["return"]) for row in run if row.get("return") is not None] for run in played],
                line.goal,
            )
    out.joinpath("control_seeds.md").write_text("\n".join([*TEXT.splitlines(), "", *rows, *ENDING.splitlines()]) + "\n")
    draw(courses, out / "control_seeds.svg")


def training_return(method: str, rows: list[dict[str, Any]]) -> float:
    """With exploration: of the last 100 episodes, which is what a row of PPO's has; of SAC and TD3, whose rows are of the episodes
    that ended in 1,000 actions, in the last tenth of the actions, where a row counts by its number of episodes, about actions over
    mean length."""
    if not isinstance(make(method), ActorCritic):
        return float(rows[-1]["return"])
    last = [row for row in rows[-(len(rows) // 10) :] if row.get("return") is not None]
    return float(np.average([row["return"] for row in last], weights=[1 / row["episode_length"] for row in last]))


def spread(values: list[float]) -> str:
    """Mean, its bootstrap interval over seeds, and every seed's."""
    found = bootstrap(np.array(values)[:, None], mean)
    seeds = ", ".join(f"{value:.0f}" for value in values)
    return f"**{found.value:.1f}** [{found.low:.1f}, {found.high:.1f}] ({seeds})"


def draw(courses: dict[str, tuple[list[list[tuple[float, float]]], float]], file: Path) -> None:
    """One panel per line of the table: a thin curve per seed, their mean, and the goal."""
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(courses) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(11, 2.7 * rows), layout="constrained", squeeze=False)
    for panel in panels.flat[len(courses) :]:
        panel.set_axis_off()
    for panel, (title, (seeds, goal)) in zip(panels.flat, courses.items(), strict=False):
        shortest = min(map(len, seeds))
        points = np.array([one[-shortest:] for one in seeds])  # [seeds, points, 2]
        for one in points:
            panel.plot(*one.T, color="C0", alpha=0.3, linewidth=0.8)
        panel.plot(*points.mean(0).T, color="C0")
        panel.axhline(goal, color="0.5", linestyle="--", linewidth=0.8)
        panel.set_title(title, fontsize="small")
        panel.grid(alpha=0.25)
        panel.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    figure.supxlabel("actions", fontsize="small")
    figure.supylabel("training return", fontsize="small")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


TEXT = """\
# Control over seeds

Made by `python benchmarks/control.py`, which calls `upslope compare` with the methods' defaults. Training return, with
exploration: of the last 100 episodes, which is what cleanrl publishes; SAC and TD3: of the episodes in the last tenth of the
actions. Evaluation: the likeliest actions on 100 episodes (MuJoCo: 10) that nothing is learned from, which is how rl-zoo evaluates.
Means over seeds with 95 % bootstrap intervals, which are narrower than they say for so few seeds, and every seed's figure.
"""
ENDING = """
![Return over actions](control_seeds.svg)

cleanrl's rows are means and standard deviations over three seeds of its own (docs/benchmark), rl-zoo's the mean and deviation over
episodes of one run (benchmark.md). Dashed: the goal. PPO on MuJoCo and SAC have cleanrl's settings (`ppo@continuous`,
`sac@cleanrl`); SAC had three tenths of the actions of cleanrl's row, as many as there was time for. Its mean, 1817 at 250,000
actions, is within a deviation of that row at 300,000; its seeds are far apart, and from one evaluation to the next it still moves
between 700 and 3,200. At a time limit the value of what was reached is counted on, where cleanrl's PPO takes it for 0.
"""

if __name__ == "__main__":
    main()
