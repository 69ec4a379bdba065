"""Win rates: what wins, what is left out, intervals over prompts, and similar length."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.runs.checkpoint import model_folder
from upslope.runs.statistics import bootstrap, mean
from upslope.winrate import ByScore, Comparison, Contender, Contest, alike, summary, win_rate

QUESTIONS = [Example(f"k{n}", f"q{n}") for n in range(6)]


class Said:
    """An engine whose answers are known: `texts[p]` to prompt p. It keeps the state of the generator it was given."""

    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompts, counts, sampling, generator):
        self.noise = torch.rand(3, generator=generator).tolist()
        flat = [text for row in self.texts for text in row]
        of_row = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts))
        ids = [list(range(1, 2 + len(text))) for text in flat]
        return Rollouts.given(prompts, of_row, ids, ["length" if "!" in one else "stop" for one in flat], flat)


def contender(texts):
    return Contender("m", Said(texts), lambda prompt: [1])


def number(examples, texts):
    """The answer is its own score; a word fails."""
    return [Outcome(float(t)) if t.lstrip("-").isdigit() else Outcome(None, failure=f"no number: {t}") for t in texts]


def played(ours, theirs, score=number, seed=0):
    sides = contender(ours), contender(theirs)
    return win_rate(
        *sides,
        ByScore(score),
        examples=QUESTIONS[: len(ours)],
        samples=len(ours[0]),
        sampling=Sampling(),
        seed=seed,
    )


def test_every_answer_meets_every_other():
    found = played([["3", "1"]], [["2", "3"]])
    assert [(one.ours, one.theirs, one.preference) for one in found.comparisons[0]] == [
        (0, 0, 1.0),
        (0, 1, 0.5),
        (1, 0, 0.0),
        (1, 1, 0.0),
    ]
    m = found.metrics
    assert (m["eval/wins"], m["eval/ties"], m["eval/losses"], m["eval/failed"]) == (1, 1, 2, 0)
    assert m["eval/win_rate"] == 1.5 / 4
    assert found.comparisons[0][0].notes == {"scores": (3.0, 2.0)}


@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=2, max_size=6), st.data())
def test_rate_and_interval_are_those_of_prompts(ours, data):
    cell = st.integers(-2, 2)
    theirs = data.draw(st.lists(st.lists(cell, min_size=3, max_size=3), min_size=len(ours), max_size=len(ours)))
    a, b = np.array(ours)[:, :, None], np.array(theirs)[:, None, :]
    per_prompt = ((a > b) + 0.5 * (a == b)).mean((1, 2))
    texts = [[[str(one) for one in row] for row in side] for side in (ours, theirs)]
    m = played(*texts).metrics
    assert m["eval/win_rate"] == pytest.approx(per_prompt.mean())
    expected = bootstrap(per_prompt[:, None], mean)
    assert (m["eval/win_rate_low"], m["eval/win_rate_high"]) == pytest.approx((expected.low, expected.high))
    exchanged = played(*texts[::-1]).metrics
    assert exchanged["eval/win_rate"] == pytest.approx(1 - m["eval/win_rate"])
    assert (exchanged["eval/wins"], exchanged["eval/losses"]) == (m["eval/losses"], m["eval/wins"])


def test_the_two_draw_different_noise_that_the_seed_fixes():
    noises = {}
    for seed in (0, 0, 1):
        sides = contender([["1"]]), contender([["1"]])
        win_rate(*sides, ByScore(number), examples=QUESTIONS[:1], samples=1, sampling=Sampling(), seed=seed)
        noises.setdefault(seed, []).append([tuple(side.engine.noise) for side in sides])
    assert noises[0][0] == noises[0][1]
    assert len({*noises[0][0], *noises[1][0]}) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_what_cannot_be_judged_is_counted_and_left_out(bad, tmp_path):
    def score(examples, texts):
        return [
            Outcome(bad, failure="broken" if bad is None else None) if t == "x" else number([], [t])[0] for t in texts
        ]

    found = played([["x", "2"], ["x", "x"]], [["1", "1"], ["1", "1"]], score)
    m = found.metrics
    assert (m["eval/failed"], m["eval/wins"], m["eval/win_rate"]) == (6, 2, 1.0)
    assert m["eval/prompts"] == 2
    ((reason, count),) = found.failures()
    assert count == 6
    assert reason == ("broken" if bad is None else f"the score is {bad}")
    found.write(tmp_path / "deep" / "games.jsonl")
    first, second = map(json.loads, (tmp_path / "deep" / "games.jsonl").read_text().splitlines())
    assert (first["key"], first["prompt"], first["ours"], first["theirs"]) == ("k0", "q0", ["x", "2"], ["1", "1"])
    assert [one["preference"] for one in first["comparisons"]] == [None, None, 1.0, 1.0]
    assert all(one["failure"] == reason for one in second["comparisons"])


def test_nothing_could_be_judged():
    with pytest.raises(UsageError, match=r"none of 1 comparisons could be judged, e\.g\.: no number: x"):
        played([["x"]], [["1"]])


def test_rounding_is_a_tie():
    def score(examples, texts):
        return [Outcome(0.1 + 0.2 if text == "a" else 0.3) for text in texts]

    assert played([["a"]], [["b"]], score).metrics["eval/ties"] == 1


def test_equal_answers_to_a_prompt_are_scored_once_and_tie():
    calls = []

    def score(examples, texts):
        calls.extend((example.key, text) for example, text in zip(examples, texts, strict=True))
        return [Outcome(float(place)) for place in range(len(texts))]

    found = played([["a", "a"], ["a", "b"]], [["a", "b"], ["c", "c"]], score)
    assert calls == [("k0", "a"), ("k0", "b"), ("k1", "a"), ("k1", "b"), ("k1", "c")]
    assert [one.preference for one in found.comparisons[0]] == [0.5, 0.0, 0.5, 0.0]
    assert [one.notes["scores"] for one in found.comparisons[1]] == [(2, 4), (2, 4), (3, 4), (3, 4)]


def test_lengths():
    found = played(
        [["1", "1111"], ["22", "2!"]], [["1111", "1"], ["1", "1"]], lambda e, t: [Outcome(len(x)) for x in t]
    )
    m = found.metrics
    assert (m["eval/characters"], m["eval/characters_against"]) == (9 / 4, 7 / 4)
    assert (m["eval/tokens"], m["eval/tokens_against"]) == (13 / 4, 11 / 4)
    assert (m["eval/truncated"], m["eval/truncated_against"]) == (1 / 4, 0)
    assert m["eval/similar_length/count"] == 2, "1 with 1 and 1111 with 1111, of the first prompt"
    assert m["eval/similar_length/win_rate"] == 0.5
    assert alike("abcd", "abcde") and alike("", "") and not alike("abc", "abcd") and not alike("", "a")  # noqa: PT018
    m = played([["1"]], [["1111"]]).metrics
    assert m["eval/similar_length/count"] == 0
    assert m["eval/similar_length/win_rate"] is None
    json.dumps(m, allow_nan=False)


def test_what_the_judge_notes_is_averaged():
    rows = [[Comparison(0, 0, 1.0, notes={"sure": True, "why": "x"})], [Comparison(0, 0, 0.0, notes={"sure": False})]]
    m = summary([Contest(one, ["a"], ["b"]) for one in QUESTIONS[:2]], rows)
    assert {name: value for name, value in m.items() if "judge" in name} == {"eval/judge/sure": 0.5}


def test_folder_of_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("method: grpo\n")
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        model_folder(str(tmp_path))
    assert model_folder("tiny") == "tiny"
    assert model_folder("org/name") == "org/name"
