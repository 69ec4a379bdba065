"""Card: preference_distill_hybrid.md, ded."""

import itertools
import json

import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.methods.supervised.ded import SelectedDemonstrations, edit_distance, farthest
from upslope.parts.data import FromData
from upslope.tasks.completions import open_completions
from upslope.testing import batch_of, value_and_gradient

DRAW = np.random.default_rng(0)


def plain_distance(one, other):
    """Levenshtein by its recursion."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    table[:, 0], table[0] = range(len(one) + 1), range(len(other) + 1)
    for i, j in itertools.product(range(1, len(one) + 1), range(1, len(other) + 1)):
        replaced = table[i - 1, j - 1] + (one[i - 1] != other[j - 1])
        table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, replaced)
    return table[-1, -1]


def rows(*texts, prompt="p", pass_rate=0.0, **columns):
    return [{"prompt": prompt, "completion": text, "pass_rate": pass_rate, **columns} for text in texts]


def selected(data, **settings):
    """The completions that are kept, and the note."""
    examples = open_completions(data, "demonstrations", {"eval_data": rows("held out", prompt="other")}).splits["train"]
    kept, notes = SelectedDemonstrations(**settings).select(examples)
    return [example.data["completions"][0].text for example in kept], notes[0]


def test_card_selection():
    strings = ["aaaa", "aaab", "bbbb"]
    assert [edit_distance("aaaa", other) for other in strings] == [0, 1, 4]
    assert farthest(strings, 2, edit_distance) == [0, 2]
    assert selected(rows(*strings), traces=2, unit="character")[0] == ["aaaa", "bbbb"]


def test_all_of_them_and_one_of_them():
    strings = ["aaaa", "aaab", "bbbb"]
    assert farthest(strings, 3, edit_distance) == [0, 1, 2]
    assert farthest(strings, 9, edit_distance) == [0, 1, 2]
    assert farthest([], 2, edit_distance) == []
    assert selected(rows(*strings), traces=0)[0] == strings
    assert selected(rows(*strings), traces=1)[0] == ["aaaa"]


@pytest.mark.parametrize("seed", range(5))
def test_edit_distance_is_levenshteins(seed):
    draw = np.random.default_rng(seed)
    one, other = (["ab c d"[k] for k in draw.integers(0, 6, draw.integers(0, 12))] for _ in range(2))
    assert edit_distance(one, other) == plain_distance(one, other)


def test_selection_is_greedily_farthest():
    words = ["".join(DRAW.choice(list("ab"), 6)) for _ in range(9)]
    chosen = farthest(words, 4, edit_distance)
    for count in range(1, 4):
        least = [min(plain_distance(words[i], words[k]) for k in chosen[:count]) for i in range(9)]
        assert least[chosen[count]] == max(least)


def test_distances_are_in_words_or_characters():
    texts = ["one two three four", "1 two three four five", "seventeen-thousand two three four"]
    assert selected(rows(*texts), traces=2)[0] == texts[:2]
    assert selected(rows(*texts), traces=2, unit="character")[0] == [texts[0], texts[2]]


def test_prompts_that_are_solved_and_traces_that_are_wrong_are_left_out():
    data = rows("a b", "c d", "e f", prompt="hard", pass_rate=0.25, score=1.0)
    data[1]["score"] = 0.0
    data += rows("g", prompt="easy", pass_rate=0.75, score=1.0) + rows("h", prompt="unsolved", score=1.0)
    kept, note = selected(data)
    assert kept == ["a b", "e f", "h"]
    assert note == (
        "3 of 5 demonstrations are trained on; left out: 1 of prompts that are solved too often, 1 wrong, 0 too like others of "
        "their prompt"
    )
    assert selected(data, pass_rate_below=2.0, correct_at=0.0, traces=0)[0] == ["a b", "c d", "e f", "g", "h"]
    assert selected(data, traces=1)[0] == ["a b", "h"]


def test_the_datas_order_stays():
    data = [row for pair in zip(rows("a", "b", prompt="x"), rows("c", "d", prompt="y"), strict=True) for row in pair]
    assert selected(data)[0] == ["a", "c", "b", "d"]


def test_messages():
    data = [
        {
            "prompt": [{"role": "user", "content": "p"}],
            "completion": [{"role": "assistant", "content": text}],
            "pass_rate": 0,
        }
        for text in ("a b c", "a b d", "x y")
    ]
    kept, _ = selected(data)
    assert [one[0]["content"] for one in kept] == ["a b c", "x y"]


@pytest.mark.parametrize("value", [None, 1.5, "often", float("nan")])
def test_without_pass_rates_it_says_how_to_measure_them(value):
    data = rows("a", pass_rate=value)
    with pytest.raises(UsageError, match=r"pass_rate.*diagnose pass-rates.*pass_rate_below=2"):
        selected(data)
    assert selected(data, pass_rate_below=2.0)[0] == ["a"]


def test_nothing_left_and_wrong_settings():
    with pytest.raises(UsageError, match=r"no demonstration is left of 1: 1 of prompts"):
        selected(rows("a", pass_rate=1.0))
    for settings in ({"traces": -1}, {"pass_rate_below": 0.0}, {"kind": "pairs"}):
        with pytest.raises(UsageError, match="SelectedDemonstrations"):
            SelectedDemonstrations(**settings)


def test_the_loss_is_sfts():
    batch = batch_of([[1, 1], [1]])
    results = [value_and_gradient(r, r.prepare(batch)) for r in (make("ded"), make("sft"))]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(results[0][0], -batch.logp[batch.mask].mean())
    assert isinstance(make("ded").rollout, FromData)
    assert make("ded", traces=4).rollout.traces == 4


SMALL = {"max_tokens": 6, "eval": {"prompts": 2, "every": 0}, "prompts_per_step": 2, "threads": 1, "steps": 2}


def test_training_sees_the_selection_only_and_says_what_was_left_out(toy, tmp_path, caplog):
    data = [row for i in range(30) for row in rows("ab", "ab", "xyz", prompt=f"p{i}", pass_rate=1.0 if i % 3 else 0.5)]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    with Trainer("ded", model=toy, data=str(path), unit="character", **SMALL) as trainer:
        kept = trainer.parts.train_examples
        assert {example.data["pass_rate"] for example in kept} == {0.5}
        by_prompt = [[e.data["completions"][0].text for e in kept if e.prompt == p] for p in {e.prompt for e in kept}]
        assert all(texts == ["ab", "xyz"] for texts in by_prompt)
        assert "demonstrations are trained on" in trainer.parts.task.describe()
        assert trainer.train().rows[-1]["loss"] > 0
