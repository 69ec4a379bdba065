"""Bad pairs, labels and demonstrations are named and counted, and the run goes on; or it is refused. The list: given_data.py."""

import json
import math
import shlex
import shutil

import pytest

from upslope.__main__ import main
from upslope.runs.metrics import read_metrics

from .given_data import CASES, DEMOS, PAIRS, Given, write

SETTINGS = {
    "prompts_per_step": 40, "eval.prompts": 100, "eval.samples": 1, "self_checks": "false", "threads": 1, "sinks": "[]",
}  # fmt: skip


@pytest.fixture(scope="session")
def talker(toy, tmp_path_factory):
    """The toy model with a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(toy, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def train(here, toy, talker, capsys, caplog):
    """Trains on a file for two steps; returns status, all that was said, and the line on stderr."""

    def run(case):
        data, model = write(here, case), {"TOY": toy, "TALKER": talker}[case.model]
        command = f"train {case.method} --model {model} --data {data.name} --steps 2 --out run {case.rest.replace('TOY', toy)}"
        status = main([*shlex.split(command), *(w for n, v in SETTINGS.items() for w in ("--set", f"{n}={v}"))])
        captured = capsys.readouterr()
        return status, captured.out + captured.err + caplog.text, captured.err

    return run


def test_names_differ():
    assert len({case.name for case in CASES}) == len(CASES) > 60


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_file(case, train, here):
    status, said, err = train(case)
    assert status == case.status, said
    for word in case.words:
        assert word in said
    assert "Traceback" not in said
    if status == 2:
        assert len(err.splitlines()) == 1
        assert not (here / "run" / "metrics.jsonl").exists()
        return
    rows = read_metrics(here / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    odd = {name: value for row in rows for name, value in row.items() if not math.isfinite(value)}
    assert not odd
    assert rows[1]["grad_norm"] > 0 or case.method == "opd", "a teacher that is the policy has nothing to teach"
    counted = {}
    for line in (here / "run" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["step"] == 1:
            counted[event["kind"]] = counted.get(event["kind"], 0) + event["count"]
    assert {kind: counted.get(kind) for kind in case.events} == case.events
    assert counted.keys() <= {*case.events, "reward failed", "step skipped"}


def test_of_pairs_sft_learns_the_chosen_ones(train, here):
    """Trained on pairs, or on their chosen completions as demonstrations: the same run."""
    as_demos = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    found = []
    for rows in (PAIRS, as_demos, DEMOS):
        assert train(Given("", "sft", rows))[0] == 0
        found.append([row["loss"] for row in read_metrics(here / "run" / "metrics.jsonl")[1:]])
        shutil.rmtree(here / "run")
    assert found[0] == found[1] != found[2]
