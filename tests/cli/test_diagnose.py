"""upslope diagnose, from runs and from models, and what it says where it cannot."""

import json
import shlex

import pytest
import torch

from upslope.__main__ import main
from upslope.policies.language import LanguagePolicy
from upslope.rollout import Rollouts

from .scene import put

ROWS = [
    {
        "prompt": f"p{i}",
        "chosen": "abc"[: 1 + i % 3],
        "rejected": "XYZ"[: 1 + i % 2],
        "label": 0.2 if i % 4 == 0 else 1.0,
    }
    for i in range(60)
]
SMALL = ("self_checks=false", "threads=1", "sinks=[]", "eval.prompts=4", "max_tokens=8", "prompts_per_step=4")
SETTINGS = " ".join(f"--set {setting}" for setting in (*SMALL, "optimizer.lr=1e-2", "surrogate.beta=0.3"))
TRAIN = f"train dpo --model TOY --data pairs.jsonl --steps 3 --out run {SETTINGS}"


@pytest.fixture
def say(here, toy, capsys):
    """Runs a command line; its status and what it printed."""
    put(here, {"pairs.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS)}, toy)

    def run(command):
        capsys.readouterr()
        status = main(shlex.split(command.replace("TOY", toy)))
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def logp(policy, prompt, text):
    ids, _ = policy.encode_completion(prompt, text)
    rollouts = Rollouts.given([policy.encode(prompt)], torch.tensor([0]), [ids], ["stop"], [text])
    return float(policy.score(rollouts)["logp"].double().sum().detach()), len(ids)


def test_a_run_is_ranked_by_its_own_data_start_and_beta(say, here, toy):
    assert say(TRAIN)[0] == 0
    status, text = say("diagnose ranking run --split all --json")
    assert status == 0
    found = json.loads(text)
    assert (found["pairs"], found["beta"], found["reference_model"]) == (60, 0.3, toy)
    policies = [LanguagePolicy.load(name) for name in (found["model"], toy)]
    right, ref_right, mean_right, difficulties = [], [], [], []
    for row in ROWS:
        texts = (row["rejected"], row["chosen"]) if row["label"] < 0.5 else (row["chosen"], row["rejected"])
        (w, w_length), (ell, l_length) = (logp(policies[0], row["prompt"], text) for text in texts)
        (rw, _), (rl, _) = (logp(policies[1], row["prompt"], text) for text in texts)
        right.append(w >= ell)
        ref_right.append(rw >= rl)
        mean_right.append(w / w_length >= ell / l_length)
        difficulties.append(rl - rw)
    assert found["accuracy"] == pytest.approx(sum(right) / 60)
    assert found["reference"] == pytest.approx(sum(ref_right) / 60)
    assert found["normalized"] == pytest.approx(sum(mean_right) / 60)
    assert found["difficulty"] == pytest.approx([min(difficulties), max(difficulties)], abs=1e-3)
    assert found["accuracy"] != found["reference"], "the run has moved"
    assert sum(part["pairs"] for part in found["by_difficulty"]) == 60


def test_the_table(say):
    assert say(TRAIN)[0] == 0
    status, text = say("diagnose ranking run --bins 3")
    assert status == 0
    assert "beta 0.3 (the run's dpo)" in text
    assert "held-out pairs of pairs.jsonl: only " in text
    assert "needs loss below" in text
    assert "alignment gap" in text


def test_a_model_and_its_reference(say, toy):
    status, text = say("diagnose ranking TOY --reference TOY --data pairs.jsonl --json")
    assert status == 0
    found = json.loads(text)
    assert found["accuracy"] == found["reference"]
    assert (found["implicit"], found["beta"], found["split"]) == (0.5, 0.1, "all")


def test_pairs_that_cannot_be_ranked_are_counted(say, here):
    rows = [*ROWS[:3], {"prompt": "a tie", "chosen": "a", "rejected": "b", "label": 0.5}]
    rows += [{"prompt": "long " * 40, "chosen": "a", "rejected": "b", "label": 1.0}]
    (here / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, text = say("diagnose ranking TOY --reference TOY --data odd.jsonl --json")
    found = json.loads(text)
    assert found["pairs"] == 3
    assert found["left_out"] == {"ties": 1, "prompts_too_long": 1, "completions_cut": 0}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("diagnose ranking TOY", ("no run's folder", "--reference and --data")),
        ("diagnose ranking TOY --reference TOY --data absent.jsonl", ("absent.jsonl",)),
        ("diagnose ranking TOY --reference TOY --data questions.jsonl", ("questions.jsonl", "chosen")),
        ("diagnose ranking TOY --reference tiny --data pairs.jsonl", ("different vocabularies", "--reference")),
        ("diagnose ranking TOY --reference TOY --data pairs.jsonl --beta -1", ("--beta -1.0", "above 0")),
        ("diagnose ranking TOY --reference TOY --data tie.jsonl", ("no pair is left", "1 are ties")),
        ("diagnose nonsense TOY", ("nonsense",)),
        ("diagnose ranking TOY --samples 3", ("ranking does not read --samples",)),
        ("diagnose pass-rates TOY --data questions.jsonl --reward exact --beta 1 --out o", ("does not read --beta",)),
        ("diagnose pass-rates TOY --data questions.jsonl", ("missing --reward, --out",)),
        ("diagnose pass-rates TOY --data questions.jsonl --reward exact --out pairs.jsonl", ("exists already",)),
        ("diagnose pass-rates TOY --data questions.jsonl --reward exact --out no/o", ("does not exist",)),
        (
            "diagnose pass-rates TOY --data questions.jsonl --reward exact --out o.jsonl --samples 0",
            ("--samples is 0",),
        ),
        ("diagnose pass-rates TOY --data questions.jsonl --reward bad.py:score --out o.jsonl", ("rewards failed",)),
    ],
)
def test_refused(say, here, command, words):
    (here / "bad.py").write_text("def score(prompts, completions, **columns):\n    raise ValueError('no')\n")
    (here / "tie.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "label": 0.5}\n')
    status, text = say(command)
    assert status == 2, text
    assert "Traceback" not in text
    assert all(word in text for word in words), text


def test_a_run_without_data_needs_some(say):
    few = " ".join(f"--set {setting}" for setting in (*SMALL, "eval.samples=1"))
    assert say(f"train grpo --task chain_sum --steps 1 --out sums {few}")[0] == 0
    status, text = say("diagnose ranking sums")
    assert status == 2
    assert "no data of its own" in text


REWARD = """
def score(prompts, completions, answer, **columns):
    return [float(answer_of in ("0", "1")) for answer_of in answer]
"""


def test_pass_rates_are_added_to_every_row(say, here):
    (here / "by_answer.py").write_text(REWARD)
    rows = [{"prompt": f"p{i // 2}", "completion": "ab", "answer": str(i // 2), "note": i} for i in range(12)]
    rows.append({"prompt": "long " * 40, "completion": "c", "answer": "0", "note": 12})
    (here / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = "diagnose pass-rates TOY --data traces.jsonl --reward by_answer.py:score --samples 3 --set max_tokens=4 "
    status, text = say(command + "--out rates.jsonl")
    assert status == 0, text
    assert "mean pass rate" in text
    assert "1 prompts are too long" in text
    written = {row["note"]: row for row in map(json.loads, (here / "rates.jsonl").read_text().splitlines())}
    assert len(written) == 13
    for row in rows[:12]:
        assert written[row["note"]] == {**row, "pass_rate": 1.0 if row["answer"] in ("0", "1") else 0.0}
    assert written[12]["pass_rate"] is None
    status, text = say(command + "--out again.jsonl --json")
    found = json.loads(text)
    assert (found["never"], found["always"], found["too_long"], found["prompts"]) == (4, 2, 1, 7)
