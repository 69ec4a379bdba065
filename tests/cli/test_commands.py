"""What each command does when all is well, on a small random model or the embedded one."""

import json
import subprocess
import sys

import pytest

from upslope import __version__, list_methods
from upslope.cli import ALIASES, COMMANDS
from upslope.cli.show import command as show
from upslope.errors import UsageError
from upslope.runs.metrics import read_metrics

from .scene import put, run_here

TRAIN = "train grpo --model TOY --data questions.jsonl --steps 2 --out run "
TRL = """
def score(prompts, completions, answer, **columns):
    return [float(len(set(one)) + (one == wanted)) for one, wanted in zip(completions, answer)]
"""
VERL = """
async def score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": len(set(solution_str)), "length": len(solution_str)}
"""


@pytest.fixture
def say(here, toy, capsys):
    """Runs a command line that has to succeed, and returns what it printed."""
    put(here, {}, toy)

    def run(command):
        status = run_here(command, toy)
        captured = capsys.readouterr()
        assert status == 0, captured.out + captured.err
        return captured.out

    return run


def test_version_and_help(say):
    assert say("--version") == f"upslope {__version__}\n"
    for command in ("--help", "help", ""):
        assert all(f"  {name}" in say(command) for name in COMMANDS)


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES])
def test_help_of_each_command(say, name):
    text = say(f"{name} --help")
    assert f"usage: upslope {ALIASES.get(name, name)}" in text
    assert "--help" in text


def test_methods(say):
    assert [line.split()[0] for line in say("methods").splitlines()] == list_methods()
    assert say("list") == say("methods")
    assert [line.split()[0] for line in say("methods --family rlvr").splitlines()] == list_methods(family="rlvr")
    assert "[@deepseekmath, @trl, @verl]" in say("methods grpo").splitlines()[-1] or "@trl" in say("methods grpo")
    assert "no method matches 'nonesuch'" in say("methods nonesuch")


def test_methods_as_json(say):
    found = json.loads(say("methods --json"))
    assert [one["name"] for one in found] == list_methods()
    for one in found:
        assert {"name", "title", "paper", "family", "parent", "parts", "needs", "tests", "claim"} <= one.keys()
        assert one["tests"] == f"tests/methods/{one['family']}/test_{one['name']}.py"
        assert one["parent"] is None or one["parent"] in list_methods()
        assert "old_logp" in one["needs"] or {"surrogate", "actor"} & one["parts"].keys()
    parts = next(one for one in found if one["name"] == "dr_grpo")["parts"]
    settings = {
        "group_size": 8,
        "temperature": 1.0,
        "reference_rows": 0,
        "reference_column": "",
        "replay": 0.0,
        "replay_window": 2,
    }
    assert parts["rollout"] == {"part": "Sample", **settings}


def test_methods_does_without_torch():
    program = "import sys; from upslope.__main__ import main; main(['methods']); print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"


def test_show(say):
    text = say("show dapo")
    assert "loss = " in text
    assert "https://arxiv.org/abs/2503.14476" in text
    assert say("describe dapo") == text
    assert "1.5" in say("show grpo ratio_high=1.5") and "1.5" not in say("show grpo")  # noqa: PT018
    assert "Differs from" in say("show dapo --page")
    assert say("show grpo advantage=rloo") != say("show grpo")
    assert "lr=0.123" in say("show ppo optimizer.lr=0.123")  # names that a run's settings have as well
    assert "steps=77" in say("show ppo steps=77")
    assert "ReturnRange" in say("show iql")
    assert "ReturnRange" not in say("show iql reward=null")
    for setting in ("lora.rank=4", "seed=3", "ratio_high"):
        with pytest.raises(UsageError, match=setting.partition("=")[0]):
            show("grpo", (setting,))


def test_diff(say):
    text = say("diff grpo dr_grpo")
    assert "advantage" in text and "surrogate" not in text  # noqa: PT018
    assert "same parts" in say("diff grpo grpo")
    assert "grpo@trl" in say("diff grpo grpo@trl")


def test_tasks(say):
    found = json.loads(say("tasks --json"))
    assert len(found) > 90
    assert {"name", "description", "settings", "recommended"} <= found[0].keys()
    assert "tiny" in next(one for one in found if one["name"] == "chain_sum")["recommended"]
    assert [line.split()[0] for line in say("tasks").splitlines()] == [one["name"] for one in found]
    assert "chain_sum" in say("tasks chain") and "word_ladder" not in say("tasks chain")  # noqa: PT018
    assert "no task matches 'nonesuch'" in say("tasks nonesuch")


def test_eval(say):
    found = json.loads(say("eval tiny --task chain_sum -k 2 --samples 2 --prompts 8 --json --set max_tokens=8"))
    assert found["eval/prompts"] == 8
    assert 0 <= found["eval/pass@1_low"] <= found["eval/pass@1"] <= found["eval/pass@2"] <= 1
    text = say("eval TOY --data questions.jsonl --reward exact -k 2 --samples 2 --set max_tokens=4")
    assert [line.split()[0] for line in text.splitlines()] == ["pass@1", "pass@2"]
    assert "2 samples each" in text


@pytest.mark.parametrize("source", [TRL, VERL], ids=["TRL", "verl"])
def test_train_on_own_data_with_own_reward(say, here, source):
    (here / "mine.py").write_text(source)
    text = say(TRAIN + "--reward mine.py:score --set self_checks=true --set sinks=[tensorboard]")
    assert "self-checks: 5 of 5 passed" in text
    assert "36 for training, 4 for evaluation" in text
    assert "step 2/2" in text and "report: run/report.html" in text  # noqa: PT018
    rows = read_metrics(here / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["reward"] > 1
    assert {"config.yaml", "describe.txt", "report.html", "samples.jsonl", "self_checks.json", "status.json"} <= {
        path.name for path in (here / "run").iterdir()
    }
    assert ("rewards/length/mean" in rows[1]) == (source is VERL)
    assert list((here / "run" / "tensorboard").iterdir())


def test_train_the_embedded_model_and_go_on_from_its_config(say, here):
    text = say("train dr_grpo --task chain_sum --steps 2 --set ratio_high=1.3")
    assert "report: runs/dr_grpo-chain_sum/report.html" in text
    say("train --config runs/dr_grpo-chain_sum/config.yaml --out again")
    first, second = (read_metrics(here / run / "metrics.jsonl") for run in ("runs/dr_grpo-chain_sum", "again"))
    for one, other in zip(first, second, strict=True):
        assert {name for name in one if one[name] != other[name]} <= {
            name for name in one if name.startswith(("time/", "tokens_per"))
        }
    assert "reward" in first[1]
    say("train --out again --resume --steps 3")
    assert "ratio_high: 1.3" in (here / "again" / "config.yaml").read_text()
    assert "report: runs/dr_grpo-chain_sum-2/report.html" in say("train dr_grpo --task chain_sum --steps 0")


def test_report(say, here, trained):
    text = say(f"report {trained / 'run'} --out one.html")
    assert text == "one.html\n"
    assert "Content-Security-Policy" in (here / "one.html").read_text()
    say(f"report {trained / 'run'} {trained / 'run'} --out two.html")
    assert (here / "two.html").read_text() != (here / "one.html").read_text()


def test_doctor(say):
    text = say("doctor --set max_tokens=8")
    assert text.count("ok    ") == 5
    assert "chain_sum" in text and "packing tree" in text  # noqa: PT018
    text = say("doctor --model TOY --data questions.jsonl --reward exact --method ppo_llm --set max_tokens=8")
    assert text.count("ok    ") == 5
    assert "context 96" in text


def test_new_method_works_by_its_path(say, here):
    text = say("new mine steep --parent dr_grpo --title 'A Steeper Slope'")
    assert text.splitlines()[:2] == ["mine/steep.py", "mine/test_steep.py"]
    pytest_of_it = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "mine/test_steep.py"]
    unfilled = subprocess.run(pytest_of_it, capture_output=True, text=True, cwd=here)
    assert unfilled.returncode == 1
    assert "2 failed, 1 passed" in unfilled.stdout
    source, test = here / "mine" / "steep.py", here / "mine" / "test_steep.py"
    clip = "from upslope.parts.surrogate import ClippedRatio\nfrom upslope.recipe import"
    text = source.read_text().replace("from upslope.recipe import", clip)
    source.write_text(text.replace("replace()", "replace(surrogate=ClippedRatio(ratio_high=1.5))"))
    test.write_text(test.read_text().replace("[np.nan] * 4", "[0.75, -0.25, -0.25, -0.25]"))
    filled = subprocess.run(pytest_of_it, capture_output=True, text=True, cwd=here)
    assert filled.returncode == 0, filled.stdout
    assert "A Steeper Slope" in say("show mine/steep.py")
    assert "report: run/report.html" in say(TRAIN.replace("grpo", "mine/steep.py") + "--reward exact")
