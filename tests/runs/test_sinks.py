import importlib.util
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from upslope.errors import UsageError
from upslope.runs import sinks as module
from upslope.runs.sinks import Sinks, check_sinks


def scalars(folder, tag):
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_back_the_numbers(tmp_path):
    sinks = Sinks(["tensorboard"], tmp_path, {}, "id")
    sinks.log(0, {"reward": 0.25, "eval/pass@1": torch.tensor(0.5), "note": "text", "flag": True, "none": None})
    sinks.log(1, {"reward": float("nan"), "eval/pass@1": 1})
    assert scalars(tmp_path, "eval/pass@1") == [(0, 0.5), (1, 1.0)]  # before close: a killed run loses nothing
    sinks.close()
    sinks.close()
    (first, second) = scalars(tmp_path, "reward")
    assert first == (0, 0.25)
    assert math.isnan(second[1])


def test_resumed_run_purges_what_came_after_the_checkpoint(tmp_path):
    interrupted = Sinks(["tensorboard"], tmp_path, {}, "id")
    for step in range(6):
        interrupted.log(step, {"reward": step})
    resumed = Sinks(["tensorboard"], tmp_path, {}, "id", purge_step=3)
    for step in range(3, 5):
        resumed.log(step, {"reward": 10 + step})
    interrupted.close()
    resumed.close()
    assert scalars(tmp_path, "reward") == [(0, 0), (1, 1), (2, 2), (3, 13), (4, 14)]


def test_tensorboard_loads_neither_tensorflow_nor_torchs_writer(tmp_path):
    code = (
        "import sys; from pathlib import Path; from upslope.runs.sinks import Sinks\n"
        "assert 'tensorboard' not in sys.modules\n"
        f"Sinks(['tensorboard'], Path({str(tmp_path)!r}), {{}}, 'id').log(1, {{'reward': 1}})\n"
        "assert 'tensorboard' in sys.modules\n"
        "assert not {'tensorflow', 'torch.utils.tensorboard', 'tensorboard.compat.notf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failing_sink_is_named_once_and_left_out(tmp_path, caplog, monkeypatch):
    class Broken:
        def __init__(self, *arguments):
            self.calls = 0

        def log(self, step, row):
            if step >= 2:
                raise ConnectionError("no network")

        def close(self):
            raise AssertionError("closed after it was left out")

    monkeypatch.setitem(module.SINKS, "json", Broken)  # any installed module stands for its package
    sinks = Sinks(["json", "tensorboard"], tmp_path, {}, "id")
    for step in range(5):
        sinks.log(step, {"reward": step})
    sinks.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the sink 'json' failed at step 2 and is left out from here on: ConnectionError: no network. "
        "metrics.jsonl has every row."
    ]
    assert len(scalars(tmp_path, "reward")) == 5


def test_a_sink_that_cannot_be_opened_or_closed_is_named(tmp_path, caplog, monkeypatch):
    (tmp_path / "tensorboard").write_text("in the way")
    Sinks(["tensorboard"], tmp_path, {}, "id").log(1, {"reward": 1})
    assert "'tensorboard' cannot be opened" in caplog.text

    def fail():
        raise TimeoutError("slow")

    monkeypatch.setitem(module.SINKS, "json", lambda *arguments: SimpleNamespace(close=fail))
    Sinks(["json"], tmp_path, {}, "id").close()
    assert "'json' failed while closing" in caplog.text


def test_wrong_sinks_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no sink 'mlflow' .* tensorboard, wandb, trackio"):
        check_sinks(["mlflow"])
    monkeypatch.setitem(module.SINKS, "no_such_package", module.TensorBoard)
    with pytest.raises(UsageError, match="pip install no_such_package"):
        check_sinks(["no_such_package"])
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="pip install no_such_package"):
        check_sinks(["no_such_package"])


OFFLINE = """
import sys
from pathlib import Path
from upslope.runs.sinks import Sinks
name, folder = sys.argv[1], Path(sys.argv[2])
for start in (0, 2):
    sinks = Sinks([name], folder, {"lr": 0.1}, "abcd1234", purge_step=start or None)
    for step in range(start, start + 3):
        sinks.log(step, {"reward": step / 2, "kl": float("nan")})
    sinks.close()
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_package_logs_offline_and_resumes(tmp_path, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio_data"),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE, name, tmp_path], env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stderr
    produced = tmp_path / ("wandb" if name == "wandb" else "trackio_data")
    assert any(file.stat().st_size for file in produced.rglob("*") if file.is_file())
