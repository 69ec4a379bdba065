"""Worker processes: they end with the trainer, however it ends, and take what they started with them."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from upslope.errors import UsageError
from upslope.rollout import Example
from upslope.tasks.child import OUTPUT_KEPT, Output
from upslope.tasks.judge import Judge
from upslope.tasks.rewards import parse_reward


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def reward(tmp_path):
    """Writes its process id, and that of a process it starts, then does as the completion says."""
    path = tmp_path / "reward.py"
    path.write_text(
        textwrap.dedent(f"""
        import os, subprocess, time
        def f(data_source, solution_str, ground_truth, extra_info=None):
            other = subprocess.Popen(["sleep", "60"]).pid if solution_str != "quick" else 0
            with open({str(tmp_path / "pids")!r}, "a") as file:
                file.write(f"{{os.getpid()}} {{other}}\\n")
            time.sleep(0 if solution_str == "quick" else 60)
            return 1.0
        """)
    )
    return path


def pids(tmp_path):
    path = tmp_path / "pids"
    return [int(pid) for pid in path.read_text().split() if pid != "0"] if path.exists() else []


@pytest.mark.parametrize("completion", ["quick", "hang"])
def test_workers_end_with_a_killed_parent(tmp_path, reward, completion):
    program = f"""
import time
from upslope.tasks.scorers import Sample
from upslope.tasks.workers import Job, Pool
part = {{"kind": "function", "path": {str(reward)!r}, "module": None, "function": "f"}}
Pool([part], timeout=60, count=1).run([Job(0, [Sample("q", {completion!r}, {{}}, None)])])
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert wait_until(lambda: len(pids(tmp_path)) >= 1, 60)
        worker = pids(tmp_path)[0]
        assert is_running(worker)
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: not is_running(worker))
    for pid in pids(tmp_path):
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_timeout_ends_what_the_reward_started(tmp_path, reward):
    with Judge(parse_reward(f"{reward}:f"), timeout=0.5) as judge:
        assert judge.score([Example("k", "q")], ["hang"])[0].failure == "timed out after 0.5 s"
        worker, other = pids(tmp_path)
        assert wait_until(lambda: not is_running(worker) and not is_running(other))


def test_close_ends_workers_and_an_idle_worker_that_died_is_replaced(tmp_path, reward):
    judge = Judge(parse_reward(f"{reward}:f"))
    assert judge.score([Example("k", "q")], ["quick"])[0].value == 1.0
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    # Not is_running: a process whose first thread is gone looks like a zombie while its other threads still end.
    assert wait_until(lambda: judge.pool.workers[0].child.process.poll() is not None)
    assert judge.score([Example("k", "q")], ["quick"])[0].value == 1.0
    first, second = pids(tmp_path)
    assert first != second
    judge.close()
    assert wait_until(lambda: not is_running(second))


def test_a_closed_judge_says_so():
    judge = Judge(parse_reward("exact"))
    judge.close()
    with pytest.raises(RuntimeError, match="the judge was closed"):
        judge.score([Example("k", "q")], ["a"])


def test_data_that_cannot_be_sent_is_named(reward):
    example = Example("k", "q", {"column": lambda: 1})
    with Judge(parse_reward(f"{reward}:f")) as judge, pytest.raises(UsageError, match="Use plain values"):
        judge.score([example], ["quick"])


def test_order_is_that_of_the_input_whatever_the_timing(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(
        "import random, time\ndef f(data_source, solution_str, ground_truth):\n"
        "    time.sleep(random.random() * 0.01)\n    return int(solution_str)\n"
    )
    with Judge(parse_reward(f"{path}:f"), workers=2) as judge:
        results = judge.score([Example("k", "q")] * 60, [str(n) for n in range(60)])
    assert [one.value for one in results] == list(range(60))


def test_many_samples_cost_milliseconds():
    with Judge(parse_reward("exact"), reference=lambda example: "a") as judge:
        batch = [Example("k", "q")] * 256, ["a"] * 256
        judge.score(*batch)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            judge.score(*batch)
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


def test_output_keeps_the_beginning_and_the_count():
    output = Output()
    for _ in range(10):
        output.add(b"\xc3\xa9" * 300)
    text = output.take()
    assert text.startswith("é" * (OUTPUT_KEPT // 2))
    assert "(6,000 bytes in all" in text
    assert output.take() == ""
