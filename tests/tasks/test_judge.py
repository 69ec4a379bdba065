"""Outcomes for whatever a reward does, with real worker processes. The completion tells the reward what to do."""

import math
import time

import pytest

from upslope.errors import UsageError
from upslope.rollout import Example, Outcome
from upslope.tasks.judge import Judge
from upslope.tasks.rewards import parse_reward

REWARDS = """
import asyncio, os, signal, sys, threading, time
import numpy as np

def act(text):
    if text == "hang": time.sleep(60)
    if text == "spin":
        while True: pass
    if text == "raise": raise ValueError("cannot read 'raise'")
    if text == "exit": os._exit(3)
    if text == "quit": sys.exit("leaving")
    if text == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if text == "close": os.closerange(3, 100); time.sleep(60)
    if text == "gigabyte":
        for _ in range(1024): sys.stdout.write("x" * (1 << 20))
    if text == "input": return len(sys.stdin.read())
    if text == "torch": return "torch" in sys.modules
    if text == "threads": return int(os.environ["OMP_NUM_THREADS"])
    special = {"nan": float("nan"), "inf": float("inf"), "text": "0.5", "none": None, "true": True, "numpy": np.float32(0.5),
               "array": np.zeros(3), "huge": 10 ** 400, "giant": ["x" * 1000] * 100_000, "one": 1}
    return special[text] if text in special else 0.25

def single(data_source, solution_str, ground_truth, extra_info=None):
    return act(solution_str)

def batched(completions, **columns):
    return [act(one) for one in completions]

async def asynchronous(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(60 if solution_str == "wait" else 0.2)
    return act(solution_str)

async def asynchronous_batch(completions, **columns):
    await asyncio.sleep(0.01)
    return [act(one) for one in completions]

def echo(prompts, completions, answer, **columns):
    assert set(columns) == {"level", "trainer_state", "log_metric", "log_extra"}, columns
    columns["log_metric"]("level", sum(columns["level"]) / len(completions))
    print("judging", len(completions))
    return [a if p == f"prompt {a}" else -1 for p, a in zip(prompts, answer)]

def messages(prompts, completions):
    return [p[-1]["content"] == c[0]["content"] and c[0]["role"] == "assistant" for p, c in zip(prompts, completions)]

def ids(completions, completion_ids, trainer_state):
    return [sum(one) + 100 * trainer_state.global_step for one in completion_ids]

def wrong_length(completions, **columns):
    return [0.0] * (len(completions) + 1)

def not_a_list(completions, **columns):
    return 1.0

def endless(completions, **columns):
    while True: yield 1.0

def verl(data_source, solution_str, ground_truth, extra_info):
    return {"score": ground_truth == solution_str, "length": len(solution_str), "source": data_source, "extra": extra_info["index"]}

def keyless(data_source, solution_str, ground_truth, extra_info):
    return {"value": 1}

def neither(text, answer):
    return 1.0

def both(completions, solution_str):
    return 1.0

def sparse(completions, **columns):
    return [None if one == "skip" else 1.0 for one in completions]

def needs(completions, solution, level=0):
    return [1.0] * len(completions)

async def loop_bound(completions, **columns):
    global lock
    if "lock" not in globals():
        lock = asyncio.Lock()
    async with lock:
        return [float(lock._get_loop() is asyncio.get_running_loop())] * len(completions)
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "my_rewards.py"
    path.write_text(REWARDS)
    return path


def examples(count):
    return [Example(str(n), f"prompt {n}", {"answer": n, "level": 2.0, "prompt": f"prompt {n}"}) for n in range(count)]


def outcomes(rewards, function, completions, timeout=0.6, **options):
    with Judge(parse_reward(f"{rewards}:{function}"), timeout=timeout, **options) as judge:
        return judge.score(examples(len(completions)), completions)


def brief(results):
    return [one.value if one.failure is None else one.failure for one in results]


CRASHES = ["fine", "raise", "fine", "exit", "segfault", "fine", "hang", "fine"]
VERDICTS = [
    0.25,
    "ValueError at my_rewards.py:9: cannot read 'raise'",
    0.25,
    "worker exited with code 3",
    "worker was ended by SIGSEGV",
    0.25,
    "timed out after 0.6 s",
    0.25,
]


@pytest.mark.parametrize("function", ["single", "batched", "asynchronous", "asynchronous_batch"])
def test_a_bad_sample_costs_its_neighbours_nothing(rewards, function):
    assert brief(outcomes(rewards, function, CRASHES)) == VERDICTS


def test_what_counts_as_a_number(rewards):
    values = ["nan", "inf", "text", "none", "true", "numpy", "array", "huge", "giant", "one", "quit", "input"]
    expected = [
        "returned nan, not a finite number",
        "returned inf, not a finite number",
        "returned str, not a number",
        "returned None",
        1.0,
        0.5,
        "returned ndarray of several values, not a number",
        "returned a number too large for a float",
        "returned list, not a number",
        1.0,
        "SystemExit at my_rewards.py:11: leaving",
        0.0,
    ]
    assert brief(outcomes(rewards, "single", values, timeout=10.0)) == expected
    assert brief(outcomes(rewards, "batched", values[:10], timeout=10.0)) == expected[:10]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("wrong_length", "returned more than 3 rewards for 3 completions"),
        ("not_a_list", "returned float, not a list of 3 rewards"),
        ("endless", "returned more than 3 rewards for 3 completions"),
        ("keyless", "returned a dict without 'score'"),
    ],
)
def test_a_malformed_result_fails_every_sample_of_the_call(rewards, function, reason):
    assert brief(outcomes(rewards, function, ["a", "b", "c"])) == [reason] * 3


def test_busy_loop_and_closed_descriptors(rewards):
    spin, close, fine = brief(outcomes(rewards, "single", ["spin", "close", "fine"], timeout=2.5))
    assert (spin, fine) == ("timed out after 2.5 s", 0.25)
    assert close in ("worker closed its connection", "worker exited with code 1"), "whichever is seen first"


def test_endless_hangs_are_given_up(rewards):
    start = time.monotonic()
    results = brief(outcomes(rewards, "single", ["hang"] * 30 + ["fine"], timeout=0.3, workers=1))
    assert time.monotonic() - start < 10
    assert results[:4] == ["timed out after 0.3 s"] * 4
    assert set(results[4:]) == {"not judged: 4 in a row failed (timed out after 0.3 s)"}


def test_a_gigabyte_of_output_is_thrown_away(rewards):
    with Judge(parse_reward(f"{rewards}:single"), timeout=120.0) as judge:
        assert brief(judge.score(examples(2), ["gigabyte", "fine"])) == [0.25, 0.25]
        deadline = time.monotonic() + 5
        while judge.pool.output.total < 1 << 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        (note,) = judge.take_notes()
    assert len(note) < 2200
    assert "(1,073,741,824 bytes in all" in note


def test_async_samples_run_together(rewards):
    start = time.monotonic()
    results = brief(outcomes(rewards, "asynchronous", ["fine"] * 20 + ["wait"] + ["raise"], timeout=1.5))
    assert results[:20] == [0.25] * 20
    assert results[20] == "timed out after 1.5 s"
    assert results[21].startswith("ValueError at my_rewards.py:9")
    assert time.monotonic() - start < 20 * 0.2


def test_async_calls_share_one_event_loop(rewards):
    with Judge(parse_reward(f"{rewards}:loop_bound")) as judge:
        assert [judge.score(examples(1), ["a"])[0].value for _ in range(2)] == [1.0, 1.0]


def test_columns_metrics_and_output_of_a_batched_reward(rewards):
    with Judge(parse_reward(f"{rewards}:echo")) as judge:
        judge.check(["answer", "level"], "data")
        assert brief(judge.score(examples(40), ["x"] * 40)) == [float(n) for n in range(40)]
        assert judge.take_metrics() == {"level": 2.0}
        assert judge.take_metrics() == {}
        deadline = time.monotonic() + 5
        while not judge.pool.output.total and time.monotonic() < deadline:
            time.sleep(0.01)
        assert judge.take_notes() == ["the reward printed: judging 40"]


def test_conversations_get_message_lists(rewards):
    conversation = Example("k", [{"role": "user", "content": "hello"}])
    with Judge(parse_reward(f"{rewards}:messages")) as judge:
        assert brief(judge.score([conversation] * 2, ["hello", "bye"])) == [1.0, 0.0]


def test_completion_ids_and_step(rewards):
    with Judge(parse_reward(f"{rewards}:ids")) as judge:
        judge.step = 7
        assert brief(judge.score(examples(2), ["a", "b"], completion_ids=[[1, 2], [3]])) == [703.0, 703.0]
        assert "completion_ids" in judge.score(examples(1), ["a"])[0].failure


def test_verl_arguments(rewards):
    data = {"data_source": "gsm8k", "extra_info": {"index": 5}}
    with Judge(parse_reward(f"{rewards}:verl"), reference=lambda example: "42") as judge:
        judge.check(list(data), "data")
        results = judge.score([Example("k", "q", data)] * 2, ["42", "7"])
        assert results == [Outcome(1.0, {"verl": 1.0}), Outcome(0.0, {"verl": 0.0})]
        assert judge.take_metrics() == {"length": 1.5, "extra": 5.0}


def test_choices_judge_the_options_of_the_last_answer():
    with Judge(parse_reward("choices"), reference=lambda example: "A, C") as judge:
        values = [outcome.value for outcome in judge.score(examples(3), ["A", "<answer>C A</answer>", "A, B"])]
    assert values == [0.5, 1.0, 0.0]


def test_a_sum_leaves_out_what_does_not_apply(rewards):
    with Judge(parse_reward(f"{rewards}:sparse*0.5+exact*2"), reference=lambda example: "right") as judge:
        results = judge.score(examples(3), ["skip", "right", "wrong"])
        assert results[0] == Outcome(0.0, {"exact": 0.0})
        assert results[1] == Outcome(2.5, {"sparse": 0.5, "exact": 2.0})
        assert all(math.isclose(one.value, sum(one.parts.values())) for one in results)


def test_a_failed_part_fails_the_sum_and_is_named(rewards):
    with Judge(parse_reward(f"{rewards}:single+exact"), reference=lambda example: "fine") as judge:
        assert brief(judge.score(examples(2), ["raise", "fine"])) == [f"[single] {VERDICTS[1]}", 1.25]


def test_failures_are_counted_with_one_example(rewards):
    with Judge(parse_reward(f"{rewards}:single")) as judge:
        judge.score(examples(5), ["raise", "raise", "nan", "fine", "raise"])
        counts = judge.take_failures()
        assert (counts.judged, counts.failed) == (5, 4)
        assert [(one.reason, one.count, one.key) for one in counts.most_common()] == [
            ("ValueError at my_rewards.py:9", 3, "0"),
            ("returned nan, not a finite number", 1, "2"),
        ]
        assert str(counts).startswith("4 of 5 rewards failed:")
        assert judge.take_failures().judged == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("neither", r"cannot tell how neither\(text, answer\).*as in TRL.*as in verl"),
        ("both", "cannot tell how both"),
        ("missing", "no function 'missing'. Its functions: act, single, batched"),
        ("needs", r"needs 'solution', but the columns of data are: answer"),
    ],
)
def test_unusable_functions_are_refused_before_anything_runs(rewards, function, message):
    with Judge(parse_reward(f"{rewards}:{function}")) as judge, pytest.raises(UsageError, match=message):
        judge.check(["answer"], "data")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport no_such_package\ndef f(completions): ...", r"ModuleNotFoundError at r.py:2: No module named"),
        ("import os\nos._exit(4)\ndef f(completions): ...", "cannot be imported: worker exited with code 4"),
        ("print('bye')\nimport sys\nsys.exit()\ndef f(completions): ...", "cannot be imported: SystemExit at r.py:3"),
        ("from upslope.tasks.base import open_task\nopen_task('gcd')\ndef f(completions): ...", "if __name__"),
    ],
)
def test_import_errors_are_explained(tmp_path, source, message):
    (tmp_path / "r.py").write_text(source)
    with Judge(parse_reward(f"{tmp_path / 'r.py'}:f")) as judge, pytest.raises(UsageError, match=message):
        judge.check([], "data")


def test_reward_file_imports_its_neighbour_and_a_module_is_found(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("def f(completions): return [len(one) for one in completions]")
    (tmp_path / "r.py").write_text("from neighbour import f")
    with Judge(parse_reward(f"{tmp_path / 'r.py'}:f")) as judge:
        assert brief(judge.score(examples(1), ["four"])) == [4.0]
    monkeypatch.chdir(tmp_path)
    with Judge(parse_reward("neighbour:f")) as judge:
        assert brief(judge.score(examples(1), ["four"])) == [4.0]


def test_workers_are_light(rewards):
    assert brief(outcomes(rewards, "single", ["torch", "threads"])) == [0.0, 1.0]


def test_options_and_lengths_are_checked():
    with pytest.raises(UsageError, match="timeout must be positive"):
        Judge(parse_reward("exact"), timeout=0)
    with pytest.raises(UsageError, match="at least 1"):
        Judge(parse_reward("exact"), workers=0)
    with Judge(parse_reward("exact")) as judge:
        assert judge.score([], []) == []
        with pytest.raises(ValueError, match="1 examples, but 2 completions"):
            judge.score(examples(1), ["a", "b"])
