from upslope.report.samples import KEPT, LISTED_CHARACTERS, chosen_pairs, collect_samples, pairs


def row(step, split="eval", key="a", reward: object = 1.0, completion="text", failure=None):
    return {"step": step, "split": split, "key": key, "prompt": f"prompt {key}", "completion": completion, "reward": reward,
            "parts": {"format": 1}, "failure": failure, "finish": "stop"}  # fmt: skip


def test_pairs_join_the_first_and_last_evaluation_by_key():
    rows = [row(0, key="a", reward=0), row(0, key="b", reward=1), row(0, key="c", reward=1), row(0, key="only first")]
    rows += [row(5, "train"), row(10, key="a", reward=0.5)]
    rows += [
        row(20, key="b", reward=0),
        row(20, key="c", reward=1),
        row(20, key="a", reward=1),
        row(20, key="only last"),
    ]
    found = pairs(collect_samples(rows))
    assert [(p.before.key, p.change, p.before.step, p.after.step) for p in found] == [
        ("a", "better", 0, 20), ("b", "worse", 0, 20), ("c", "same", 0, 20)
    ]  # fmt: skip


def test_several_completions_of_a_prompt_are_averaged_and_the_typical_one_is_shown():
    rows = [row(0, reward=r, completion=f"first {r}") for r in (1, 0, 0)]
    rows += [row(9, reward=r, completion=f"last {r}") for r in (0, 1, None, 1)]
    (pair,) = pairs(collect_samples(rows))
    assert (pair.reward_before, pair.reward_after, pair.completions) == (1 / 3, 2 / 3, (3, 4))
    assert (pair.before.completion, pair.after.completion) == ("first 0", "last 1")


def test_a_failed_reward_is_not_compared():
    (pair,) = pairs(collect_samples([row(0, reward=None, failure="timed out"), row(9)]))
    assert pair.change == "not compared"


def test_chosen_pairs_show_losses_too():
    rows = [row(0, key=str(i), reward=int(i == 0)) for i in range(100)] + [
        row(9, key=str(i), reward=int(i != 0)) for i in range(100)
    ]
    every = pairs(collect_samples(rows))
    chosen = chosen_pairs(every)
    assert {p.change for p in chosen} == {"better", "worse"}
    assert 10 <= len(chosen) <= 15


def test_the_list_is_an_even_choice_of_bounded_size():
    samples = collect_samples(row(step, "train", completion="x" * 3000) for step in range(20_000))
    listed = samples.listed()
    assert samples.total == 20_000
    assert len(samples.kept) <= 2 * KEPT
    assert sum(len(s.completion) + len(s.prompt) for s in listed) <= LISTED_CHARACTERS
    steps = [s.step for s in listed]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 19_000
    assert steps[-1] < 1000


def test_failures_are_counted_by_the_first_line_of_their_reason():
    rows = [
        row(1, "train", failure="timed out\ntrace 1"),
        row(2, "train", failure="timed out\ntrace 2"),
        row(3, "train", failure="NaN"),
    ]
    failures = collect_samples(rows).failures
    assert {reason: count for reason, (count, _) in failures.items()} == {"timed out": 2, "NaN": 1}
    many = collect_samples(row(1, "train", failure=f"reason {i}") for i in range(1000)).failures
    assert sum(count for count, _ in many.values()) == 1000
    assert len(many) < 60


def test_rows_of_the_wrong_kind_are_read_as_far_as_they_go():
    odd = [
        {},
        {
            "step": "x",
            "prompt": [{"role": "user", "content": "hi"}, 5],
            "parts": [1],
            "reward": "high",
            "completion": None,
        },
    ]
    first, second = collect_samples(odd).kept
    assert first.reward is None
    assert second.prompt == "user: hi\nmessage: 5"
