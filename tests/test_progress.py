"""What is shown while a run works."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.config import Config
from upslope.progress import LiveView, PlainView, progress, sparkline, time_left

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, max_size=200), st.integers(1, 60))
def test_sparkline_has_its_width_and_its_extremes(values, width):
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    if values and len(values) <= width and max(values) > min(values):
        assert line[values.index(max(values))] == "█"
        assert line[values.index(min(values))] == "▁"


@given(st.lists(FINITE, min_size=2, max_size=40))
def test_sparkline_keeps_order(values):
    line = sparkline(values, 40)
    for i in range(1, len(values)):
        assert (line[i] >= line[i - 1]) if values[i] > values[i - 1] else (line[i] <= line[i - 1])


def test_sparkline_takes_means_of_equal_spans():
    assert sparkline([1, -1, 0, 2, 3, 1, 2, 4, 5, 3, 4, 6, 7, 5, 6, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0], 5) == "▁▁"
    assert sparkline([], 5) == ""


@pytest.mark.parametrize(
    ("seconds", "first", "step", "steps", "text"),
    [
        (10, 0, 5, 20, "0:30 left"),
        (60, 10, 20, 40, "2:00 left"),
        (5, 3, 3, 9, ""),
        (5, 0, 9, 9, ""),
        (400, 0, 4, 64, "100:00 left"),
    ],
)
def test_time_left_is_at_the_pace_since_the_first_step(seconds, first, step, steps, text):
    assert time_left(time.monotonic() - seconds - 0.001, first, step, steps) == text


def test_plain_lines(capsys):
    with progress(Config(steps=4)) as view:
        assert isinstance(view, PlainView)
        view.say("hello [red]")
        view.row(0, {"eval/pass@1": 0.25})
        view.row(1, {"reward": 0.5, "tokens_per_second": 12345.6, "kl": 0.00012, "loss": 3.0, "grad_norm": None})
    hello, zero, one = capsys.readouterr().out.splitlines()
    assert hello == "hello [red]"
    assert zero == "step 0/4  held-out pass@1 0.250"
    assert one.startswith(
        "step 1/4  reward 0.500  KL to reference 0.00012  gradient norm -  tokens/s 12,346  0:00 left"
    )


def test_live_view_draws_the_latest_of_each():
    from rich.console import Console
    from rich.live import Live

    console = Console(record=True, width=100, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with Live(console=console, auto_refresh=False) as live:
        view = LiveView(Config(method="grpo", steps=10), live)
        view.say("self-checks: [5] passed")
        view.row(0, {"eval/pass@1": 0.25, "eval/pass@1_low": 0.1, "eval/pass@1_high": 0.4})
        for step in range(1, 9):
            view.row(step, {"reward": step / 10})
        live.refresh()
    text = console.export_text()
    assert "self-checks: [5] passed" in text
    assert "grpo  step 8/10" in text
    assert "0.250  [0.100, 0.400]" in text
    assert "▁▂▃▄▅▆▇█" in text


def test_the_loss_is_told_where_there_is_no_reward(capsys):
    PlainView(Config(steps=4)).row(
        4, {"loss": 0.5, "pairs/accuracy": 0.75, "eval/loss": 0.6, "eval/pairs/accuracy": 0.7}
    )
    expected = "step 4/4  loss 0.500  pair accuracy 0.750  held-out loss 0.600  held-out pair accuracy 0.700"
    assert capsys.readouterr().out.strip() == expected


def test_live_view_follows_the_loss_of_a_run_without_rewards():
    from rich.console import Console
    from rich.live import Live

    console = Console(record=True, width=100, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with Live(console=console, auto_refresh=False) as live:
        view = LiveView(Config(method="dpo", steps=10), live)
        view.row(0, {"eval/loss": 0.69})
        for step in range(1, 9):
            view.row(step, {"loss": 1 - step / 10})
        live.refresh()
    text = console.export_text()
    assert "held-out loss  0.690" in text
    assert "loss so far" in text and "█▇▆▅▄▃▂▁" in text  # noqa: PT018
    assert "reward" not in text
