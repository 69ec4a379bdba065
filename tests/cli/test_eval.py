"""upslope eval --win-rate: both kinds of judge, what is printed and written, and what is refused."""

import json

import pytest
import torch

from upslope.__main__ import main

from .scene import put, run_here

LENGTH = "def score(completions, **columns):\n    return [float(len(one)) for one in completions]\n"
OWN = "eval TOY --win-rate {other} --data questions.jsonl --samples 2 --set max_tokens=6 --set threads=1 "
FILES = {
    "mine.py": LENGTH,
    "bad.py": "def score(completions, **columns):\n    return [float('nan')] * len(completions)\n",
}


@pytest.fixture
def say(here, toy, capsys, caplog):
    """Runs a command line; returns its status and all that it said."""
    put(here, FILES, toy)

    def run(command):
        status = run_here(command, toy)
        captured = capsys.readouterr()
        return status, captured.out, captured.err + caplog.text

    return run


def test_by_reward_against_another_vocabulary(say, here):
    status, out, err = say(OWN.format(other="tiny") + "--reward mine.py:score --out deep/games.jsonl")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("win rate  ")
    assert "against tiny, judged by mine.py:score" in lines[0]
    assert "(4 prompts, 2 samples of each model)" in lines[1]
    assert "characters against" in lines[2]
    assert "of similar length" in lines[3]
    games = [json.loads(line) for line in (here / "deep" / "games.jsonl").read_text().splitlines()]
    assert [len(game["comparisons"]) for game in games] == [4] * 4
    for game in games:
        for one in game["comparisons"]:
            ours, theirs = len(game["ours"][one["ours"]]), len(game["theirs"][one["theirs"]])
            assert one["notes"]["scores"] == [ours, theirs]
            assert one["preference"] == (ours > theirs) + 0.5 * (ours == theirs)
    status, out, _ = say(OWN.format(other="tiny") + "--reward mine.py:score --json")
    found = json.loads(out)
    preferences = [one["preference"] for game in games for one in game["comparisons"]]
    assert found["eval/win_rate"] == pytest.approx(sum(preferences) / 16)
    assert found["eval/wins"] + found["eval/ties"] + found["eval/losses"] == 16
    assert (found["against"], found["samples"], found["eval/prompts"]) == ("tiny", 2, 4)


def test_a_run_by_its_folder(say, trained):
    run = trained / "run"
    status, out, err = say(f"eval {run} --data questions.jsonl --reward exact --samples 1 --set max_tokens=4 --json")
    assert status == 0, err
    newest = say(
        f"eval {run}/checkpoints/step-000002 --data questions.jsonl --reward exact --samples 1 --set max_tokens=4 --json"
    )
    assert {**json.loads(out), "model": ""} == {**json.loads(newest[1]), "model": ""}
    status, out, err = say(OWN.format(other=run) + "--reward mine.py:score --json")
    assert status == 0, err
    assert json.loads(out)["against"] == str(run)


def test_by_a_language_model(say, chat_server):
    def reply(prompt, first, second):
        better = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "C"
        return "hm" if prompt == odd else f"[[{better}]]"

    chat_server.reply, odd = reply, None
    line = OWN.format(other="TOY") + f"--judge {chat_server.url} --judge-model big "
    status, out, err = say(line)
    assert status == 0, err
    assert "judged by big" in out
    assert "the judge's two orders agreed in 100%" in out
    assert len(chat_server.asked) == 1 + 2 * 4 * 2
    odd = chat_server.pair(chat_server.asked[-1][1])[0]
    status, out, err = say(line)
    assert status == 0, err
    assert "2 comparisons failed and are left out, e.g. the judge named no winner: 'hm'" in out
    line = f"eval tiny --win-rate TOY --task chain_sum --prompts 2 --samples 1 --json --judge {chat_server.url} --judge-model big"
    status, out, err = say(f"{line} --set max_tokens=4")
    assert status == 0, err
    assert json.loads(out)["judge"] == "big"


def test_by_a_reward_model(say, here, toy):
    """The score of the run's newest checkpoint decides; where the files say it, every comparison follows it."""
    from upslope.policies.reward_model import RewardModel

    put(here, {"pairs.jsonl": "".join(
        json.dumps({"prompt": f"q{n}", "chosen": "aaaa", "rejected": "b"}) + "\n" for n in range(40)
    )}, toy)  # fmt: skip
    settings = ("self_checks=false", "threads=1", "sinks=[]", "prompts_per_step=4")
    line = ["train", "reward_model_bt", "--model", toy, "--data", "pairs.jsonl", "--out", "rm", "--steps", "1"]
    assert main([*line, *(word for one in settings for word in ("--set", one))]) == 0
    status, out, err = say(OWN.format(other="tiny") + "--reward-model rm --out games.jsonl")
    assert status == 0, out + err
    assert "judged by reward model rm" in out
    model = RewardModel.load(here / "rm" / "checkpoints" / "step-000001")
    for line in (here / "games.jsonl").read_text().splitlines():
        game = json.loads(line)
        for one in game["comparisons"]:
            scores = [scored(model, game["prompt"], game[side][one[side]]) for side in ("ours", "theirs")]
            assert one["notes"]["scores"] == pytest.approx(scores, abs=1e-5)
            assert one["preference"] == (scores[0] > scores[1]) + 0.5 * (scores[0] == scores[1])
    status, out, err = say(OWN.format(other="tiny") + "--reward-model TOY")
    assert status == 2
    assert "--reward-model: " in err


def scored(model, prompt, text):
    """The score by transformers' own forward pass."""
    ids = model.encode(prompt) + model.encode_completion(prompt, text)[0]
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids])).logits.item()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("eval TOY --win-rate tiny", ("no task", "--task NAME")),
        ("eval TOY --win-rate tiny --data questions.jsonl", ("say how answers", "--reward")),
        ("eval tiny --win-rate ./absent --task chain_sum", ("There is no folder", "absent")),
        ("eval TOY --win-rate tiny --task chain_sum -k 2", ("does not read -k 2",)),
        ("eval TOY --win-rate tiny --task chain_sum --judge-model x", ("--judge-model", "--judge URL")),
        ("eval TOY --win-rate tiny --task chain_sum --judge http://x/v1", ("--judge-model NAME",)),
        ("eval TOY --win-rate tiny --task chain_sum --judge ftp://x --judge-model m", ("URL of an API",)),
        (
            "eval TOY --win-rate tiny --data questions.jsonl --reward exact --judge http://x/v1 --judge-model m",
            ("--reward would not be read",),
        ),
        (
            "eval TOY --win-rate tiny --data questions.jsonl --reward exact --reward-model x",
            ("--reward-model decides", "--reward would not be read"),
        ),
        (
            "eval TOY --win-rate tiny --task chain_sum --reward-model x --judge http://x/v1 --judge-model m",
            ("--judge and --reward-model both",),
        ),
        ("eval TOY --task chain_sum --reward-model x", ("--reward-model is for comparing",)),
        ("eval TOY --out games.jsonl --task chain_sum", ("--out is for comparing", "--win-rate OTHER")),
        (
            "eval TOY --win-rate tiny --task chain_sum --judge http://x/v1 --judge-model m --judge-prompt none.txt",
            ("cannot read the judge's question none.txt",),
        ),
        (OWN.format(other="TOY") + "--reward bad.py:score", ("none of 16 comparisons could be judged", "nan")),
        (
            "eval TOY --win-rate tiny --data one.jsonl --reward exact",
            ("no held-out prompt", "eval_data"),
        ),
        ("eval TOY --data one.jsonl --reward exact", ("no held-out prompt", "eval_data")),
    ],
)
def test_refused(say, here, command, words):
    (here / "one.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    status, out, err = say(command)
    assert status == 2, out + err
    assert out == ""
    for word in words:
        assert word in err
    assert "Traceback" not in err
