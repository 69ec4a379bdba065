"""config.yaml of a run in an environment has what its loop reads, and older, longer files are read and resumed."""

import pytest
import yaml

from upslope import Trainer, UsageError
from upslope.cli import run
from upslope.config import IN_ENVIRONMENTS, Config, config_from

QUICK = {"eval": {"episodes": 0}, "sinks": [], "self_checks": False}
METHODS = {
    "ppo": {"task": "CartPole-v1", "rollout.steps": 8, "update.minibatches": 1, "update.epochs": 1},
    "sac": {"task": "Pendulum-v1", "rollout.steps": 8, "rollout.warmup": 4, "data.batch_size": 4, "policy.hidden": [8]},
}
OTHERS = (
    "model",
    "lora",
    "optimizer",
    "max_tokens",
    "reward",
    "teacher",
    "packing",
    "prompts_per_step",
    "top_p",
    "old_logp",
)


def trained(method, out, steps, **more):
    with Trainer(method, out=out, steps=steps, **QUICK, **METHODS[method], **more) as trainer:
        trainer.train()


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_loop_reads_is_written(method, tmp_path):
    trained(method, tmp_path / "run", 1)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert not set(config) & set(OTHERS)
    assert set(config["eval"]) == {"every", "episodes", "deterministic"}
    assert set(config) == {name.partition(".")[0] for name in IN_ENVIRONMENTS} | (
        {"data"} if method == "sac" else set()
    )
    again = config_from(config)
    assert (again.method, again.steps, again.settings) == (method, 1, config["settings"])


@pytest.mark.parametrize("method", METHODS)
def test_a_file_with_every_setting_goes_on(method, tmp_path):
    """As earlier versions wrote them."""
    out = tmp_path / "run"
    trained(method, out, 1)
    short = yaml.safe_load((out / "config.yaml").read_text())
    header = (out / "config.yaml").read_text().splitlines()[0]
    long = config_from(short).to_dict()
    assert "lora" in long
    (out / "config.yaml").write_text(f"{header}\n{yaml.safe_dump(long)}")
    assert run(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    assert run(["train", "--out", str(out), "--resume", "--steps", "2"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["steps"], "lora" in config) == (2, False)


def test_a_change_is_still_refused(tmp_path):
    trained("ppo", tmp_path / "run", 1)
    with pytest.raises(UsageError, match="seed was 0, now 1"):
        Trainer("ppo", out=tmp_path / "run", resume=True, steps=2, seed=1, **QUICK, **METHODS["ppo"])
    long = Config(method="ppo").to_dict() | {"top_p": 0.5}
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text() + yaml.safe_dump({"top_p": long["top_p"]}))
    with pytest.raises(UsageError, match=r"top_p was 0.5, now 1.0"):
        Trainer("ppo", out=tmp_path / "run", resume=True, steps=2, **QUICK, **METHODS["ppo"])


@pytest.mark.parametrize(
    ("method", "setting", "says"),
    [
        ("ppo", {"teacher": "x"}, "does not read --teacher"),
        ("ppo", {"max_tokens": 3}, "does not read max_tokens=3"),
        ("ppo", {"eval": {"samples": 2}}, "does not read eval.samples=2"),
        (
            "sac",
            {"eval": {"samples": 2, "episodes": 3}},
            "learns from stored transitions and does not read eval.samples=2",
        ),
        ("ppo", {"device": "cuda"}, "runs on the CPU"),
    ],
)
def test_a_setting_that_is_not_read_is_refused(method, setting, says):
    with pytest.raises(UsageError, match=says):
        Trainer(method, steps=1, **{**QUICK, **METHODS[method], **setting})
