"""Which metrics a page charts, under which title, in which order; those it does not know come last, by their name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from upslope.report.chart import Chart, Line
from upslope.report.groups import group_line
from upslope.report.read import Run
from upslope.report.scale import smooth, smoothing_width

CHARTS_LIMIT = 60


@dataclass(frozen=True)
class Metric:
    """One chart: its columns (the pattern may match several), what they mean, and hints for the value axis.

    `smooth` is off where single steps matter. `other` charts are folded away.
    """

    pattern: str
    title: str
    help: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    smooth: bool = True
    other: bool = False


PASS_AT_1 = Metric(r"eval/pass@1", "Held-out pass@1", "Share of held-out answers that pass; band: 95 % interval.", 0, 1)
HELD_OUT_RETURN = Metric(
    r"eval/return", "Held-out return", "Mean over episodes that nothing is learned from; band: 95 %."
)
RETURN = Metric(r"return", "Training return", "Mean over the last episodes that ended, with exploration.")
REWARD = Metric(r"reward", "Training reward", "Mean reward of the step's completions, or of its actions.")
HELD_OUT_LOSS = Metric(
    r"eval/loss", "Held-out loss", "The method's loss on completions that were held out; band: 95 % interval."
)
HELD_OUT_TEACHER = Metric(
    r"eval/teacher/kl",
    "Held-out KL to the teacher",
    "Mean over the tokens of held-out answers, in nats; band: 95 % interval.",
    0,
)
HELD_OUT_PAIRS = Metric(
    r"eval/pairs/accuracy",
    "Held-out pair accuracy",
    "Share of held-out pairs whose preferred completion scores higher.",
    0,
    1,
)
LEARNING = (PASS_AT_1, HELD_OUT_RETURN, RETURN, REWARD, HELD_OUT_LOSS, HELD_OUT_TEACHER, HELD_OUT_PAIRS)
CATALOG = (
    *LEARNING,
    Metric(
        r"pairs/accuracy", "Pair accuracy", "Share of the step's pairs whose preferred completion scores higher.", 0, 1
    ),
    Metric(
        r"(?:eval/)?pairs/ranking_accuracy",
        "Ranking accuracy",
        "Share of pairs whose preferred completion is the likelier one, whatever the reference says.",
        0,
        1,
    ),
    Metric(r"(?:eval/)?pairs/margin", "Pair margin", "By how much the preferred completion scores higher, times beta."),
    Metric(r"eval/pass@\d+", "Held-out pass@k", "Share of held-out prompts that pass once in k answers.", 0, 1),
    Metric(r"eval/normalized_score", "Normalized score", "Held-out return: 0 is random actions, 100 the log's expert."),
    Metric(r"eval/reward", "Held-out reward", "Mean reward of the held-out answers."),
    Metric(r"eval/reward_model", "Held-out score", "Mean score that the reward model gives the held-out answers."),
    Metric(r"rewards/.+/mean", "Reward parts", "Means of the named parts; verifier: what the task's own reward says."),
    Metric(r"reward_std", "Reward spread", "Standard deviation of the reward within the step.", 0),
    Metric(r"groups/zero_variance", "Groups without variance", "All answers earn the same: nothing to prefer.", 0, 1),
    Metric(r"rewards/failed", "Failed rewards", "Completions that the verifier could not judge.", 0, smooth=False),
    Metric(
        r"(?:eval/)?episode_length|eval/length",
        "Length of held-out answers or episodes",
        "Mean tokens of an answer, or steps of an episode.",
        0,
    ),
    Metric(
        r"critic/explained_variance", "Explained variance", "Share of the returns' variance that the critic foretells."
    ),
    Metric(
        r"q|target|policy_q", "Values", "Means of Q at stored actions, of its target, and of Q at the policy's actions."
    ),
    Metric(
        r"critic_loss|value_loss", "Losses of the critics", "What is minimized of Q, without penalties, and of V.", 0
    ),
    Metric(r"penalty/.+", "Penalties", "What is added to the critics' loss."),
    Metric(r"actor_loss", "Loss of the actor", "What the policy minimizes; its level says little."),
    Metric(r"alpha", "Temperature", "What a nat of the policy's entropy is worth.", 0, log=True),
    Metric(r"weight", "Weight of stored actions", "Mean of what multiplies their log-probs.", 0),
    Metric(r"entropy", "Entropy", "Of the distribution of the next token or action, in nats.", 0),
    Metric(r"kl", "KL to the reference", "Estimated divergence per token, in nats.", 0, log=True),
    Metric(r"teacher/kl", "KL to the teacher", "Estimated from the tokens of the step, in nats per token."),
    Metric(
        r"(?:eval/)?teacher/gap", "Distance from the teacher", "Mean of |difference| of the given tokens' log-probs.", 0
    ),
    Metric(r"teacher/divergence", "Divergence from the teacher", "Of next-token distributions; what is minimized.", 0),
    Metric(
        r"ratio/kl",
        "KL to the sampling policy",
        "How far one step's updates move, in nats per token or action.",
        0,
        log=True,
    ),
    Metric(
        r"ratio/clip_fraction(?:_low|_high)?",
        "Clipped share",
        "Share of tokens or actions whose ratio left the clip interval.",
        0,
    ),
    Metric(
        r"ratio/(?:mean|max|min)", "Probability ratio", "Policy over sampling policy, per token or action.", log=True
    ),
    Metric(r"loss", "Loss", "What is minimized; its level says little where rewards are learned from."),
    Metric(r"grad_norm", "Gradient norm", "Before clipping.", 0, log=True),
    Metric(r"lr", "Learning rate", "", 0, smooth=False),
    Metric(r"sampler_gap/(?:mean|max)", "Sampler gap", "Log-probs, sampler against trainer; should stay tiny.", 0),
    Metric(r"length/mean", "Completion length", "Mean tokens of a completion.", 0),
    Metric(r"length/truncated", "Truncated completions", "Share that reached the length limit.", 0, 1),
    Metric(r"steps_per_second", "Steps per second", "Of all copies of the environment, learning included.", 0),
    Metric(r"updates_per_second", "Updates per second", "Of the critics, with the acting between them.", 0),
    Metric(r"tokens_per_second", "Tokens per second", "Of completions, over the time of the whole step.", 0),
)
NOT_CHARTED = re.compile(r"step|nonfinite|env_steps|updates|time/.*")


def charts_of(runs: Mapping[str, Sequence[Run]]) -> list[tuple[Metric, Chart]]:
    """A chart for every metric that any of the runs recorded, all over the same steps.

    With a single run, each column of a metric is a line (raw and smoothed, with its recorded interval); otherwise each
    group of runs is one, see `group_line`.
    """
    members = [run for group in runs.values() for run in group]
    present = list(dict.fromkeys(name for run in members for name in run.columns()))
    bounds = {f"{name}{end}" for name in present for end in ("_low", "_high")} & set(present)
    charts: list[tuple[Metric, Chart]] = []
    taken: set[str] = set()
    for metric in CATALOG:
        columns = [name for name in present if name not in taken and re.fullmatch(metric.pattern, name)]
        taken |= set(columns)
        charts += _charts(metric, columns, runs)
    for name in present:
        if name not in taken | bounds and not NOT_CHARTED.fullmatch(name):
            charts += _charts(Metric(re.escape(name), name, other=True), [name], runs)
        if len(charts) >= CHARTS_LIMIT:
            break
    steps = [step for run in members if run.metrics for step in (run.metrics[0]["step"], run.metrics[-1]["step"])]
    return [(metric, replace(chart, steps=(min(steps), max(steps)))) for metric, chart in charts]


def run_lines(run: Run, column: str, color: int, *, smoothed: bool = True) -> list[Line]:
    """A column of one run: raw and smoothed where it is long, with its recorded interval where it has one."""
    x, y = run.column(column)
    if not len(x):
        return []
    bounds = [_aligned(run, f"{column}_{end}", x) for end in ("low", "high")]
    if bounds[0] is not None and bounds[1] is not None:
        return [Line(column, x, y, bounds[0], bounds[1], color, marks=True)]
    width = smoothing_width(len(x)) if smoothed and not column.startswith("eval/") else 0.0
    if not width:
        return [Line(column, x, y, color=color, marks=len(x) <= 20)]
    return [Line(column, x, y, color=color, raw=True), Line(f"{column}, smoothed", x, smooth(y, width), color=color)]


def _charts(metric: Metric, columns: Sequence[str], runs: Mapping[str, Sequence[Run]]) -> list[tuple[Metric, Chart]]:
    single = sum(len(group) for group in runs.values()) == 1
    if single:
        (run,) = (run for group in runs.values() for run in group)
        lines = [
            line for color, name in enumerate(columns) for line in run_lines(run, name, color, smoothed=metric.smooth)
        ]
        return [(metric, _chart(metric, metric.title, lines))] if lines else []
    charts = []
    for name in columns:
        title = metric.title if len(columns) == 1 else f"{metric.title}: {name}"
        lines = [
            line for color, (label, group) in enumerate(runs.items()) if (line := group_line(group, name, label, color))
        ]
        if lines:
            charts.append((metric, _chart(metric, title, lines)))
    return charts


def _chart(metric: Metric, title: str, lines: list[Line]) -> Chart:
    return Chart(title, lines, metric.help, metric.low, metric.high, metric.log)


def _aligned(run: Run, column: str, steps: np.ndarray) -> np.ndarray | None:
    """A column at exactly these steps, or None if it lacks one."""
    values = dict(zip(*run.column(column), strict=True))
    return np.array([values[step] for step in steps]) if all(step in values for step in steps) else None
