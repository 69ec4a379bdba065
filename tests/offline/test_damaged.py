"""Logs that are cut short, damaged, empty or of wrong shapes: a sentence that names the file, never a traceback."""

import copy
import json
import random
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from upslope import UsageError
from upslope.__main__ import main
from upslope.actor_critic.log import open_log

from . import logs

MADE = logs.episodes((6, 5))
NAMES = {"actions": "actions", "rewards": "rewards", "terminals": "terminations", "timeouts": "truncations"}
FLAT = {"observations": np.concatenate([one["observations"][:-1] for one in MADE])}
FLAT |= {name: np.concatenate([one[theirs] for one in MADE]) for name, theirs in NAMES.items()}
FLAT["actions"] = FLAT["actions"] / 2
PARQUET = "data/chunk-000/file-000.parquet"


def npz(folder, arrays=FLAT):
    np.savez(folder / "log.npz", **arrays)
    return folder / "log.npz"


def safetensors(folder, arrays=FLAT):
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "log.safetensors")
    return folder / "log.safetensors"


def hdf5(folder, arrays=FLAT):
    return logs.d4rl(folder / "log.hdf5", MADE, next_observations=None, **arrays)


FORMATS = {
    "npz": lambda folder: (npz(folder),) * 2,
    "safetensors": lambda folder: (safetensors(folder),) * 2,
    "hdf5": lambda folder: (hdf5(folder),) * 2,
    "minari": lambda folder: (logs.minari(folder / "log", MADE), folder / "log/data/main_data.hdf5"),
    "metadata": lambda folder: (logs.minari(folder / "log", MADE), folder / "log/data/metadata.json"),
    "lerobot": lambda folder: (logs.lerobot(folder / "log", MADE), folder / "log" / PARQUET),
    "info": lambda folder: (logs.lerobot(folder / "log", MADE), folder / "log/meta/info.json"),
}


def read(log):
    """What a log holds: finite numbers, or a UsageError; a warning of NumPy's counts as a traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_log(str(log), None)
    for name in ("observation", "action", "reward", "terminated", "truncated", "next_observation"):
        assert np.isfinite(getattr(found, name)).all()
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_was_cut_short(tmp_path, form):
    log, file = FORMATS[form](tmp_path)
    assert len(read(log)) >= 9
    whole = file.read_bytes()
    for length in (0, 1, 8, 60, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:length])
        with pytest.raises(UsageError) as error:
            read(log)
        assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path, form):
    log, file = FORMATS[form](tmp_path)
    whole, chance = file.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 4, 40))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(bytes(damaged))
        try:
            read(log)
        except UsageError:
            refused += 1
    assert refused > 5


WRONG = {
    "not a number": lambda a: np.full(a.shape, np.nan),
    "beyond a float32": lambda a: a.astype(float) + 1e300,
    "none": lambda a: a[:0],
    "one too few": lambda a: a[:-1],
    "a single value": lambda a: np.float32(1),
    "complex": lambda a: a.astype(complex),
    "text": lambda a: a.astype("S5"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_wrong_columns_are_named(tmp_path, name, wrong):
    arrays = {**FLAT, name: WRONG[wrong](FLAT[name])}
    writers = (npz, hdf5) if wrong in ("complex", "text") else (npz, hdf5, safetensors)
    for write in writers:
        with pytest.raises(UsageError, match=rf"{name}|no transitions|as many"):
            read(write(tmp_path, {key: np.asarray(array) for key, array in arrays.items()}))
    made = copy.deepcopy(MADE)
    made[1][name] = WRONG[wrong](made[1][name])
    if (name, wrong) != ("rewards", "none"):
        with pytest.raises(UsageError, match=rf"{name}|as many"):
            read(logs.minari(tmp_path / "minari", made))


def test_an_empty_episode_is_no_episode(tmp_path):
    made = copy.deepcopy(MADE)
    made[1] = {name: array[: int(name == "observations")] for name, array in made[1].items()}
    assert len(read(logs.minari(tmp_path / "one", made))) == 6
    with pytest.raises(UsageError, match="has no episodes"):
        read(logs.minari(tmp_path / "none", made[1:]))


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"observation_space": "3"}, "3 describes no space"),
        ({"action_space": '{"type": "Text"}'}, "'Text' is not read"),
        ({"ref_min_score": "x"}, "ref_min_score 'x'; it must be a finite number"),
        ({"ref_max_score": float("nan")}, "ref_max_score nan; it must be a finite number"),
        ({"total_episodes": 5}, "no episode_2; metadata.json says 5"),
        ({"total_episodes": "2"}, "no total_episodes"),
    ],
)
def test_wrong_metadata_is_named(tmp_path, about, says):
    with pytest.raises(UsageError, match=says):
        read(logs.minari(tmp_path / "log", MADE, **about))


def test_a_minari_folder_without_its_data(tmp_path):
    log = logs.minari(tmp_path / "log", MADE)
    (log / "data/main_data.hdf5").unlink()
    with pytest.raises(UsageError, match=r"has no main_data.hdf5, only metadata.json\. Fetch the whole folder"):
        read(log)


@pytest.mark.parametrize("features", [None, [], "x", {"action": 3}])
def test_wrong_features_of_lerobot(tmp_path, features):
    log = logs.lerobot(tmp_path / "log", MADE)
    info = json.loads((log / "meta/info.json").read_text())
    (log / "meta/info.json").write_text(json.dumps({**info, "features": features}))
    with pytest.raises(UsageError, match="features must be an object of objects"):
        read(log)


@pytest.mark.parametrize("name", ["episode_index", "frame_index", "action", "next.done"])
def test_wrong_columns_of_lerobot_are_named(tmp_path, name):
    log = logs.lerobot(tmp_path / "log", MADE)
    table = pq.read_table(log / PARQUET)
    count = len(table)
    for values in ([None] * count, ["x"] * count, [{"a": 1}] * count, [[1.0]] * (count - 1) + [[1.0, 2.0]]):
        changed = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(changed, log / PARQUET)
        with pytest.raises(UsageError, match=name):
            read(log)


def test_a_range_of_actions_that_is_none(tmp_path):
    log = logs.lerobot(tmp_path / "log", MADE)
    (log / "meta/stats.json").write_text(json.dumps({"action": {"min": [-1e99], "max": [1e99]}}))
    with pytest.raises(UsageError, match="actions cannot be scaled from the bounds"):
        read(log)


def test_the_commands_say_so_and_leave_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = npz(tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    for words in (
        ["train", "iql", "--data", "log.npz", "--out", "run"],
        ["train", "iql", "--data", "log.npz", "--task", "Pendulum-v1", "--out", "run"],
        ["diagnose", "data", "log.npz"],
    ):
        assert main(words) == 2
        assert "cannot read the log log.npz" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
