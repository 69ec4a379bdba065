"""What a run shows while it works: a live view on a terminal, plain lines elsewhere."""

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from upslope.config import Config

SHOWN = {
    "return": "return",
    "eval/return": "held-out return",
    "critic/explained_variance": "value explains",
    "reward": "reward",
    "rewards/verifier/mean": "verified reward",
    "loss": "loss",
    "pairs/accuracy": "pair accuracy",
    "eval/pass@1": "held-out pass@1",
    "eval/reward": "held-out reward",
    "eval/loss": "held-out loss",
    "eval/teacher/kl": "held-out KL to the teacher",
    "eval/teacher/gap": "held-out distance from the teacher",
    "eval/pairs/accuracy": "held-out pair accuracy",
    "critic_loss": "critic loss",
    "actor_loss": "actor loss",
    "q": "Q",
    "entropy": "entropy",
    "alpha": "temperature",
    "kl": "KL to reference",
    "teacher/kl": "KL to the teacher",
    "teacher/gap": "distance from the teacher",
    "ratio/clip_fraction": "clipped share",
    "groups/zero_variance": "groups without variance",
    "length/mean": "length",
    "grad_norm": "gradient norm",
    "rewards/failed": "rewards failed",
    "tokens_per_second": "tokens/s",
    "steps_per_second": "steps/s",
    "updates_per_second": "updates/s",
}


def shown(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(metric, name) of what a row tells; of the loss only where there is no reward, since with rewards its level says little,
    and of the held-out reward only where nothing says what is solved.
    """
    instead = {"loss": "reward", "eval/reward": "eval/pass@1"}
    return [(key, name) for key, name in SHOWN.items() if key in row and instead.get(key) not in row]


class View(Protocol):
    """Where a session tells what happens."""

    def say(self, message: str) -> None: ...

    def row(self, step: int, row: dict[str, Any]) -> None: ...


class PlainView:
    """One line per step, for logs and pipes."""

    def __init__(self, config: Config) -> None:
        self.steps, self.started = config.steps, time.monotonic()
        self.first: int | None = None

    def say(self, message: str) -> None:
        print(message, flush=True)

    def row(self, step: int, row: dict[str, Any]) -> None:
        self.first = step if self.first is None else self.first
        cells = [
            f"step {step}/{self.steps}",
            *(f"{name} {_number(row[key])}" for key, name in shown(row)),
        ]
        left = time_left(self.started, self.first, step, self.steps)
        print("  ".join([*cells, left] if left else cells), flush=True)


class LiveView:
    """A table that is drawn over, with a progress bar; what is said scrolls above it."""

    def __init__(self, config: Config, live: Any) -> None:
        self.config, self.live, self.started = config, live, time.monotonic()
        self.latest: dict[str, Any] = {}
        self.first: int | None = None
        self.curve: list[float] = []
        self.followed = "reward"

    def say(self, message: str) -> None:
        self.live.console.print(message, markup=False, highlight=False)

    def row(self, step: int, row: dict[str, Any]) -> None:
        self.first = step if self.first is None else self.first
        self.latest |= row
        self.followed = next((name for name in ("return", "reward") if name in self.latest), "loss")
        if row.get(self.followed) is not None:
            self.curve.append(float(row[self.followed]))
        self.live.update(self._table(step))

    def _table(self, step: int) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for key, name in shown(self.latest):
            value = _number(self.latest[key])
            if key + "_low" in self.latest:
                value += f"  [{_number(self.latest[key + '_low'])}, {_number(self.latest[key + '_high'])}]"
            table.add_row(name, value)
        table.add_row(f"{self.followed} so far", sparkline(self.curve, 48))
        left = time_left(self.started, self.first or 0, step, self.config.steps)
        heading = f"{self.config.method}  step {step}/{self.config.steps}  {left}"
        return Group(heading, ProgressBar(total=max(self.config.steps, 1), completed=step, width=60), table)


@contextmanager
def progress(config: Config) -> Iterator[View]:
    """A live view where standard output is a terminal, else plain lines."""
    if not sys.stdout.isatty():
        yield PlainView(config)
        return
    from rich.live import Live

    with Live(refresh_per_second=8) as live:
        yield LiveView(config, live)


def time_left(started: float, first: int, step: int, steps: int) -> str:
    """Minutes and seconds left at the pace so far; "" before the first step is done."""
    if step <= first or step >= steps:
        return ""
    seconds = (time.monotonic() - started) / (step - first) * (steps - step)
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"


def sparkline(values: list[float], width: int) -> str:
    """The values as bars of eight heights, means over equal spans where there are more than `width`."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low)) if high > low else 0] for value in means)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}"
