"""upslope compare A B ... --task NAME --seeds K --steps N --out DIR"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from upslope.cli.train import Repeated, resolve
from upslope.config import Config
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.compare import Job


def command(
    methods: tyro.conf.Positional[tuple[str, ...]],
    *,
    out: Path,
    task: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    reward_model: str | None = None,
    model: str = "tiny",
    teacher: str | None = None,
    seeds: int = 5,
    steps: int = 60,
    parallel: int | None = None,
    set: Repeated = (),
) -> int:
    """Train several methods over the same seeds and prompts, and compare held-out pass@1.

    Methods that learn from given completions are compared on --task where that is given beside --data, else by the share of
    held-out pairs that they order rightly, else by their held-out loss. Reports interquartile means over seeds with bootstrap
    intervals, and differences from the first method, paired by seed: in the terminal, as results.json and as report.html.
    Called again, it goes on where it was stopped.

    Example: `upslope compare grpo dr_grpo grpo:ratio_high=1.28 --task chain_sum --out runs/compare`

    Args:
        methods: names, each perhaps with settings of its own: NAME:SETTING=VALUE,SETTING=VALUE
        out: the folder of all runs.
        task: a name that `upslope tasks` lists; with methods that learn from --data, what they are evaluated on.
        data: your own data, as for train.
        reward: your own reward, as for train.
        reward_model: a reward model to train on, as for train; the task's reward is what they are compared by.
        model: tiny, a Hugging Face folder, a run's folder, or a hub id.
        teacher: a model as for --model, for methods that distill; or the policy itself: frozen, live or ema.
        seeds: runs per method.
        steps: training steps of each run.
        parallel: runs at once; as many as there are cores where not given.
        set: path=value for every run, as for train; repeatable.
    """
    from upslope.compare import check_jobs, plan_jobs, run_jobs
    from upslope.registry import make
    from upslope.threads import available_cores

    _check(methods, parallel)
    given: dict[str, Any] = {"model": model, "task": task, "data": data, "reward": reward, "reward_model": reward_model}
    given |= {"teacher": teacher, "steps": steps}

    def config_of(job: "Job") -> Config:
        overrides = (*set, *job.overrides)
        return resolve(job.method, {**given, "seed": job.seed}, overrides, config=None, out=None, resume=False)

    jobs = plan_jobs(methods, seeds, out)
    for job in jobs[: len(methods)]:
        make(job.method, **config_of(job).settings)
    check_jobs(jobs, config_of)
    parallel = parallel or available_cores()
    say, threads = functools.partial(print, flush=True), max(1, available_cores() // parallel)
    failed = run_jobs(jobs, _options(given, set), steps=steps, parallel=parallel, threads=threads, say=say)
    _conclude(jobs, out, task or str(data), steps)
    return 1 if failed else 0


def _options(given: dict[str, Any], overrides: tuple[str, ...]) -> list[str]:
    """The words of train's command line that say the same."""
    named = {f"--{name.replace('_', '-')}": str(value) for name, value in given.items() if value is not None}
    return [word for pair in [*named.items(), *(("--set", override) for override in overrides)] for word in pair]


def _check(methods: tuple[str, ...], parallel: int | None) -> None:
    if not methods:
        raise UsageError(
            "compare: name at least one method. Example: upslope compare grpo dr_grpo --task chain_sum --out runs/c"
        )
    if parallel is not None and parallel < 1:
        raise UsageError(f"compare: --parallel is {parallel}; it must be at least 1.")


def _conclude(jobs: "list[Job]", out: Path, task: str, steps: int) -> None:
    """Prints the table, what is left to do, and where the report is."""
    from upslope.compare import finished, summarize
    from upslope.report import write_compare_report

    results = summarize(jobs, out, task, steps)
    for line in table(results):
        print(line)
    left = [job for job in jobs if not finished(job.folder, steps)]
    if left:
        print(f"{len(left)} of {len(jobs)} runs are not finished; the same command goes on with them.")
    if results["methods"]:
        print(f"report: {write_compare_report(out, out / 'report.html')}")


def table(results: dict) -> list[str]:
    """The methods with interquartile mean, interval and difference from the first, best first."""
    methods = results["methods"]
    if not methods:
        return ["no run has finished."]
    width = max(map(len, methods))
    lines = [f"{'':<{width}}  {results['metric']} at step {results['steps']}: interquartile mean [95 % interval]"]
    for label, found in sorted(methods.items(), key=lambda item: -item[1]["iqm"]):
        line = f"{label:<{width}}  {found['iqm']:.3f} [{found['low']:.3f}, {found['high']:.3f}]  {len(found['seeds'])} seeds"
        if "difference" in found:
            d = found["difference"]
            line += f"  {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] from {d['from']}"
        lines.append(line)
    if results["metric"] == "-eval/loss" and len({label.partition(":")[0] for label in methods}) > 1:
        lines.append("Losses of different methods are not on one scale: give a --task to compare them on.")
    return lines
