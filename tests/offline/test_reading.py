"""Every format gives the same transitions, and what is wrong with a log is said in words."""

import json

import h5py
import numpy as np
import pyarrow as pa
import pytest

from upslope import Trainer, UsageError
from upslope.actor_critic.log import open_log
from upslope.offline.found import normalized_score
from upslope.offline.reading import read_log
from upslope.offline.writing import LoggedEpisode, write_minari
from upslope.tasks.spaces import ActionSpec

from .logs import BOX, FORCE, d4rl, episodes, lerobot, minari

ACTIONS = ActionSpec("continuous", (1,), low=(-2.0,), high=(2.0,))
PLAIN = {"steps": 1, "sinks": [], "threads": 1, "policy.hidden": [8], "rollout.steps": 5, "batch_size": 4}


def whole(made):
    """Observations, next observations, actions in [-1, 1], rewards, ends and cuts of the episodes, as they are."""
    return {
        "observation": np.concatenate([episode["observations"][:-1] for episode in made]),
        "next_observation": np.concatenate([episode["observations"][1:] for episode in made]),
        "action": np.concatenate([episode["actions"] for episode in made]) / 2,
        "reward": np.concatenate([episode["rewards"] for episode in made]),
        "terminated": np.concatenate([episode["terminations"] for episode in made]),
        "truncated": np.concatenate([episode["truncations"] for episode in made]),
    }


def same(log, wanted):
    for name, array in wanted.items():
        np.testing.assert_allclose(getattr(log, name), array, atol=2e-6, err_msg=name)


def test_minari_and_d4rl_are_the_same_transitions(tmp_path):
    made = episodes()
    log = open_log(str(minari(tmp_path / "m", made)), None)
    same(log, whole(made))
    assert (log.task, log.task_settings, log.references) == ("Pendulum-v1", {}, (-1200.0, -200.0))
    same(open_log(str(tmp_path / "m" / "data"), ACTIONS), whole(made))
    same(open_log(str(tmp_path / "m" / "data" / "main_data.hdf5"), ACTIONS), whole(made))
    same(open_log(str(d4rl(tmp_path / "flat.hdf5", made)), ACTIONS), whole(made))


def test_an_episode_without_an_end_was_cut(tmp_path):
    made = episodes()
    made[1]["truncations"][:] = False
    log = open_log(str(minari(tmp_path / "m", made)), None)
    assert log.truncated.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_dict_and_discrete_observations_are_flattened_as_by_an_environment(tmp_path):
    made = episodes((3,))
    place, mode = made[0]["observations"], np.array([2, 0, 1, 2])
    made[0]["observations"] = {"place": place, "mode": mode}
    space = {
        "type": "Dict",
        "subspaces": {"place": BOX, "mode": {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}},
    }
    log = open_log(str(minari(tmp_path / "m", made, observation_space=json.dumps(space))), None)
    np.testing.assert_allclose(log.observation, np.concatenate([np.eye(3)[mode], place], 1)[:-1], atol=1e-6)


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_minari_of_arrow_files(tmp_path, form):
    import pyarrow.dataset as ds

    made = episodes()
    folder = minari(tmp_path / "m", made, data_format=form)
    (folder / "data" / "main_data.hdf5").unlink()
    for number, episode in enumerate(made):
        count = len(episode["rewards"])
        padded = {name: np.concatenate([episode[name], np.zeros_like(episode[name][:1])]) for name in episode}
        batch = {
            "episode_id": np.full(count + 1, number, np.int32),
            "observations": pa.FixedSizeListArray.from_arrays(episode["observations"].reshape(-1), 3),
            "actions": pa.FixedSizeListArray.from_arrays(padded["actions"].reshape(-1), 1),
            **{name: padded[name] for name in ("rewards", "terminations", "truncations")},
        }
        ds.write_dataset(
            pa.RecordBatch.from_pydict(batch),
            folder / "data",
            format=form,
            partitioning=["episode_id"],
            existing_data_behavior="overwrite_or_ignore",
        )
        (folder / "data" / str(number) / "metadata.json").write_text("{}")
    same(open_log(str(folder), None), whole(made))


def test_lerobot_goes_by_episode_and_frame_and_loses_the_last_of_a_cut_one(tmp_path):
    made = episodes((4, 3, 5))
    log = open_log(str(lerobot(tmp_path / "l", made)), ACTIONS)
    kept = [np.arange(4), np.arange(2), np.arange(4)]
    for name, key in (("observation", "observations"), ("reward", "rewards")):
        rows = np.concatenate([episode[key][rows] for episode, rows in zip(made, kept, strict=True)])
        np.testing.assert_allclose(getattr(log, name), rows, atol=1e-6)
    assert log.terminated.tolist() == [0, 0, 0, 1] + [0] * 6
    assert log.truncated.tolist() == [0] * 4 + [0, 1] + [0, 0, 0, 1]
    own = open_log(str(tmp_path / "l"), None)  # from the range of the actions
    assert own.actions is not None
    np.testing.assert_allclose((np.abs(own.action).max()), 1.0, atol=1e-5)
    assert "observation.images.top" in own.notes[0]


def test_lerobot_without_rewards_is_imitated_only(tmp_path):
    lerobot(tmp_path / "l", episodes(), drop=("next.reward", "next.done"))
    with Trainer("bc", data=str(tmp_path / "l"), **PLAIN) as trainer:
        assert trainer.train().step == 1
        assert trainer.parts.policy.actions.low[0] < -1
    with pytest.raises(UsageError, match="has no rewards, which 'iql' learns from"):
        Trainer("iql", data=str(tmp_path / "l"), **PLAIN)


def test_what_is_written_is_what_is_read(tmp_path):
    from upslope.offline.spaces import space_of

    made = episodes()
    written = [LoggedEpisode(**episode) for episode in made]
    for _ in range(2):  # the second replaces the first
        write_minari(tmp_path, written, space_of(BOX), space_of(FORCE), {"dataset_id": "upslope/x-v0"})
    same(open_log(str(tmp_path), None), whole(made))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data"]


def test_minari_itself_reads_what_is_written(tmp_path):
    loaded = pytest.importorskip("minari")
    from upslope.offline.spaces import space_of

    made = episodes()
    about = {"dataset_id": "upslope/x-v0", "ref_min_score": 0.0, "ref_max_score": 2.0}
    write_minari(tmp_path, [LoggedEpisode(**episode) for episode in made], space_of(BOX), space_of(FORCE), about)
    dataset = loaded.MinariDataset(tmp_path / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 7)
    for episode, wanted in zip(dataset.iterate_episodes(), made, strict=True):
        for name, array in wanted.items():
            np.testing.assert_array_equal(getattr(episode, name), array)
    assert loaded.get_normalized_score(dataset, 0.5) * 100 == normalized_score(0.5, (0.0, 2.0))


def test_a_run_on_a_log_with_references_has_a_normalized_score(tmp_path):
    minari(tmp_path / "m", episodes())
    options = {**PLAIN, "critic.hidden": [8], "eval": {"every": 1, "episodes": 1}}
    with Trainer("iql", data=str(tmp_path / "m"), **options) as trainer:
        row = trainer.train().rows[-1]
    assert row["eval/normalized_score"] == pytest.approx((row["eval/return"] + 1200) / 10)


BROKEN = {
    "no reward": (d4rl, {"rewards": None}, "has no rewards; it has actions, next_observations, observations"),
    "no rows alike": (d4rl, {"actions": np.zeros((5, 1))}, "actions has 5 rows and rewards 7"),
    "wide rewards": (d4rl, {"rewards": np.zeros((7, 2))}, r"rewards has shape \[7, 2\]"),
    "shapes": (d4rl, {"next_observations": np.zeros((7, 2))}, r"next_observations has shape \[7, 2\] and obs"),
    "nan": (d4rl, {"observations": np.full((7, 3), np.nan)}, "observations of row 0 is not finite"),
    "text": (d4rl, {"actions": np.array([b"a"] * 7)}, "actions is no array of numbers"),
    "format": (minari, {"data_format": "zarr"}, "data_format 'zarr', which this version does not know"),
    "no count": (minari, {"total_episodes": None, "data_format": "hdf5"}, "has no total_episodes"),
    "more said": (minari, {"total_episodes": 3}, "has no episode_2"),
    "space": (minari, {"action_space": '{"type": "Graph"}'}, "the space 'Graph' is not read"),
    "none": (minari, {"action_space": None, "env_spec": None}, "nor an environment that is registered"),
    "discrete": (minari, {"action_space": '{"type": "Discrete", "n": 3}'}, "discrete actions; methods that learn"),
    "older": (lerobot, {"version": "v2.1"}, "LeRobot version v2.1; version 3 is read. Convert"),
    "no action": (lerobot, {"drop": ("action",)}, "needs a feature action"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_wrong_log_is_named(tmp_path, name):
    make, changes, said = BROKEN[name]
    with pytest.raises(UsageError, match=said):
        open_log(str(make(tmp_path / "log.hdf5", episodes(), **changes)), ACTIONS)


def test_wrong_episodes_are_named(tmp_path):
    made = episodes()
    made[1]["observations"] = made[1]["observations"][:-1]
    with pytest.raises(
        UsageError, match=r"episode 1: the observations observation have shape \[3, 3\], and 3 steps .* \[4, 3\]"
    ):
        open_log(str(minari(tmp_path / "short", made)), None)
    del made[1]["rewards"]
    with pytest.raises(UsageError, match=r"episode 1: there is no rewards"):
        open_log(str(minari(tmp_path / "none", made)), None)


def test_what_is_no_log_is_named(tmp_path):
    for path, said in (("nowhere", "there is no log"), (".", "is no log: it has no stored transitions")):
        with pytest.raises(UsageError, match=said):
            read_log(str(tmp_path / path))
    (tmp_path / "text.hdf5").write_text("no")
    with pytest.raises(UsageError, match="cannot read the log"):
        read_log(str(tmp_path / "text.hdf5"))
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        file.create_group("data/demo_0")
    with pytest.raises(UsageError, match="is no D4RL log: it has data"):
        read_log(str(tmp_path / "demos.hdf5"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read"):
        read_log(str(tmp_path / "empty"))
