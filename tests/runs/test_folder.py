import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from upslope.errors import UsageError
from upslope.runs.folder import RunFolder
from upslope.runs.metrics import read_metrics, read_samples

from .test_sinks import scalars

CONFIG = {"method": "grpo", "seed": 1, "steps": 10, "eval": {"every": 5}, "optimizer": {"lr": 1e-3}}


def train(folder, until, *, resume=False, die_at=None, save_every=3, config=CONFIG):
    """A run whose rows depend on its whole history; it may end without a save, as a killed one does."""
    with RunFolder.open(folder, config, resume=resume) as run:
        checkpoint = run.restore()
        step, total = (checkpoint.step, checkpoint.tree()["total"]) if checkpoint else (0, torch.zeros(()))
        while step < until:
            step += 1
            total = total * 0.9 + step
            run.log_samples(
                [{"step": step, "key": f"{step}-{index}", "completion": "x", "reward": None} for index in (0, 1)]
            )
            run.log_event({"step": step, "kind": "step skipped", "message": "no variance", "count": 1})
            if step == die_at:
                return
            run.log(step, {"total": total})
            if step % save_every == 0:
                run.save(step, write_policy=lambda path: None, state={"total": total}, keep=2)


@pytest.mark.parametrize("die_at", [1, 2, 3, 4, 6, 7, 10])
def test_an_interrupted_run_ends_with_the_rows_of_an_uninterrupted_one(tmp_path, die_at):
    train(tmp_path / "whole", 10)
    train(tmp_path / "cut", 10, die_at=die_at)
    with open(tmp_path / "cut" / "samples.jsonl", "a") as file:
        file.write('{"step": 11, "comp')
    train(tmp_path / "cut", 10, resume=True)
    for name in ("metrics.jsonl", "samples.jsonl", "events.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(read_metrics(tmp_path / "cut")) == 10
    assert scalars(tmp_path / "cut", "total") == scalars(tmp_path / "whole", "total")
    assert len(read_samples(tmp_path / "cut")) == 20


def test_a_folder_with_a_run_is_never_overwritten(tmp_path):
    train(tmp_path, 4)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"}
    with pytest.raises(UsageError, match=r"already has a run \(config.yaml, metrics.jsonl.*--resume.*--out"):
        RunFolder.open(tmp_path, CONFIG)
    assert {file: file.read_bytes() for file in before} == before


def test_a_run_that_ended_before_its_first_row_can_be_started_again(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    RunFolder.open(tmp_path, CONFIG | {"seed": 2}).close()
    assert "seed: 2" in (tmp_path / "config.yaml").read_text()


def test_another_programs_config_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with pytest.raises(UsageError, match=r"already has a run \(config.yaml\)"):
        RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(UsageError, match="nothing was deleted"):
        RunFolder.open(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"


def test_overwrite_deletes_upslopes_files_only(tmp_path):
    train(tmp_path, 4)
    with RunFolder.open(tmp_path, CONFIG, resume=True) as run:
        run.write_text("status.json", "{}")
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder.open(tmp_path, CONFIG | {"seed": 2}, overwrite=True) as run:
        assert not run.resumed
        assert run.restore() is None
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "status.json").exists()
    assert read_metrics(tmp_path) == []
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(UsageError, match="Ask for one of them"):
        RunFolder.open(tmp_path, CONFIG, resume=True, overwrite=True)


def test_resume_with_other_settings_lists_them(tmp_path):
    train(tmp_path, 4)
    changed = CONFIG | {"seed": 2, "optimizer": {"lr": 0.5}, "steps": 20}
    with pytest.raises(UsageError) as error:
        RunFolder.open(tmp_path, changed, resume=True)
    assert "seed was 1, now 2; optimizer.lr was 0.001, now 0.5. Set them back" in str(error.value)
    assert "steps" not in str(error.value)
    assert "seed: 1" in (tmp_path / "config.yaml").read_text()


def test_resume_may_change_free_settings(tmp_path, caplog):
    caplog.set_level("INFO")
    train(tmp_path, 4)
    train(tmp_path, 6, resume=True, config=CONFIG | {"steps": 20, "eval": {"every": 2}})
    assert "steps: 20" in (tmp_path / "config.yaml").read_text()
    assert "resuming with eval.every = 2 (it was 5)" in caplog.text
    with pytest.raises(UsageError, match="steps was 20, now 30"):
        RunFolder.open(tmp_path, CONFIG | {"steps": 30, "eval": {"every": 2}}, resume=True, free={"eval"})


def test_resume_of_nothing_starts_with_a_warning(tmp_path, caplog):
    with RunFolder.open(tmp_path / "new", CONFIG, resume=True) as run:
        assert not run.resumed
        run.log(1, {"reward": 1.0})
    assert "there is no run to resume in" in caplog.text


def test_resume_without_settings_or_with_damaged_ones(tmp_path):
    train(tmp_path, 4)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="cannot read the settings"):
        RunFolder.open(tmp_path, CONFIG, resume=True)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"has metrics.jsonl.* but no config.yaml"):
        RunFolder.open(tmp_path, CONFIG, resume=True)


def test_a_run_without_a_checkpoint_starts_again_and_says_so(tmp_path, caplog):
    train(tmp_path, 2)
    with RunFolder.open(tmp_path, CONFIG, resume=True) as run:
        assert run.resumed
        assert run.restore() is None
    assert "has no checkpoint: it starts again, and its 8 rows are dropped" in caplog.text


def test_a_resumed_run_has_to_be_restored_before_it_logs(tmp_path):
    train(tmp_path, 4)
    with (
        RunFolder.open(tmp_path, CONFIG, resume=True) as run,
        pytest.raises(UsageError, match=r"call RunFolder.restore\(\)"),
    ):
        run.log(5, {})


def test_other_versions_are_named(tmp_path, caplog):
    train(tmp_path, 4)
    about = json.loads((tmp_path / "run.json").read_text())
    about["versions"]["torch"] = "1.0"
    (tmp_path / "run.json").write_text(json.dumps(about))
    RunFolder.open(tmp_path, CONFIG, resume=True).close()
    assert f"torch 1.0 is now {torch.__version__}; the numbers may differ" in caplog.text
    (tmp_path / "run.json").write_text("{")
    RunFolder.open(tmp_path, CONFIG, resume=True).close()
    assert "run.json cannot be read" in caplog.text


def test_all_checkpoints_damaged_ends_with_a_reason_and_deletes_nothing(tmp_path):
    train(tmp_path, 6)
    for manifest in (tmp_path / "checkpoints").rglob("manifest.json"):
        manifest.unlink()
    with RunFolder.open(tmp_path, CONFIG, resume=True) as run, pytest.raises(UsageError, match=r"step 6: .*; step 3: "):
        run.restore()
    assert len(read_metrics(tmp_path)) == 6


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    train(tmp_path, 3)
    (tmp_path / "checkpoints" / ".unfinished-step-000009").mkdir()
    (tmp_path / ".config.yaml.123.tmp").write_text("half")
    os.rename(tmp_path / "checkpoints" / "step-000003", tmp_path / "checkpoints" / ".replaced-step-000003")
    with RunFolder.open(tmp_path, CONFIG, resume=True) as run:
        assert run.restore().step == 3
    assert os.listdir(tmp_path / "checkpoints") == ["step-000003"]
    assert not list(tmp_path.glob(".config*"))


def test_one_folder_one_holder(tmp_path):
    with RunFolder.open(tmp_path, CONFIG):
        with pytest.raises(UsageError, match=rf"in use by process {os.getpid()} on .*--out"):
            RunFolder.open(tmp_path, CONFIG, resume=True)
        with pytest.raises(UsageError, match="in use"):
            RunFolder.open(tmp_path, CONFIG, overwrite=True)
    RunFolder.open(tmp_path, CONFIG).close()


def test_the_lock_comes_back_when_opening_fails(tmp_path):
    train(tmp_path, 4)
    with pytest.raises(UsageError, match="already has a run"):
        RunFolder.open(tmp_path, CONFIG)
    RunFolder.open(tmp_path, CONFIG, resume=True).close()


def test_a_forked_worker_that_outlives_the_run_does_not_hold_the_folder(tmp_path):
    code = (
        "import os, sys, time\n"
        "from upslope.runs.folder import RunFolder\n"
        "run = RunFolder.open(sys.argv[1], {}, sinks=[])\n"
        "child = os.fork()\n"
        "if child == 0: os.close(1); time.sleep(30); os._exit(0)\n"
        "print(child, flush=True)\n"
        "time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UsageError, match=f"in use by process {process.pid}"):
            RunFolder.open(tmp_path, {})
        process.kill()
        process.communicate()
        os.kill(child, 0)
        RunFolder.open(tmp_path, {}).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_settings_that_yaml_cannot_hold_leave_no_run(tmp_path):
    with pytest.raises(UsageError, match="the setting 'policy' is a object"):
        RunFolder.open(tmp_path, {"policy": object()})
    RunFolder.open(tmp_path, CONFIG).close()
