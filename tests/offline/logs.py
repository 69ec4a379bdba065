"""Logs of the formats, written by hand from what their documentation says, not by the code under test."""

import json

import gymnasium
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = np.random.default_rng(0)
BOX = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-1.0, -1, -8], "high": [1.0, 1, 8]}
FORCE = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-2.0], "high": [2.0]}


def episodes(lengths=(4, 3)):
    """Pendulum-like episodes: the first terminates, the others are cut."""
    made = []
    for number, count in enumerate(lengths):
        ended, cut = np.zeros(count, bool), np.zeros(count, bool)
        (ended if number == 0 else cut)[-1] = True
        made.append(
            {
                "observations": ROWS.uniform(-1, 1, (count + 1, 3)).astype(np.float32),
                "actions": ROWS.uniform(-2, 2, (count, 1)).astype(np.float32),
                "rewards": ROWS.normal(size=count),
                "terminations": ended,
                "truncations": cut,
            }
        )
    return made


def minari(folder, made, **about):
    """A folder as Minari writes it; `about` overrides its metadata, and None leaves an entry out."""
    data = folder / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, episode in enumerate(made):
            group = file.create_group(f"episode_{number}")
            group.attrs["id"] = number
            for name, value in episode.items():
                if isinstance(value, dict):
                    inner = group.create_group(name)
                    for key, array in value.items():
                        inner.create_dataset(key, data=array)
                else:
                    group.create_dataset(name, data=value)
    metadata = {
        "total_episodes": len(made),
        "total_steps": 0,
        "data_format": "hdf5",
        "observation_space": json.dumps(BOX),
        "action_space": json.dumps(FORCE),
        "env_spec": gymnasium.spec("Pendulum-v1").to_json(),
        "minari_version": "0.5.4",
        "ref_min_score": -1200.0,
        "ref_max_score": -200.0,
        **about,
    }
    text = json.dumps({key: value for key, value in metadata.items() if value is not None})
    (data / "metadata.json").write_text(text)
    return folder


def lerobot(folder, made, *, version="v3.0", drop=(), files=2):
    """A folder of LeRobot's, its frames over several files; `drop` names features that it lacks."""
    (folder / "meta").mkdir(parents=True)
    features = {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "observation.environment_state": {"dtype": "float32", "shape": [1]},
        "observation.images.top": {"dtype": "video", "shape": [3, 96, 96]},
        "action": {"dtype": "float32", "shape": [1]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": [1]},
    }
    features = {name: about for name, about in features.items() if name not in drop}
    info = {"codebase_version": version, "features": features, "total_episodes": len(made), "fps": 10}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    every = np.concatenate([episode["actions"] for episode in made])
    stats = {"action": {"min": every.min(0).tolist(), "max": every.max(0).tolist()}}
    (folder / "meta" / "stats.json").write_text(json.dumps(stats))
    for number in range(files):
        place = folder / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [] for name in (*features, "frame_index", "episode_index")}
        rows.pop("observation.images.top", None)
        for index in range(number, len(made), files):
            episode = made[index]
            count = len(episode["rewards"])
            columns = {
                "observation.state": episode["observations"][:-1, :2].tolist(),
                "observation.environment_state": episode["observations"][:-1, 2:].tolist(),
                "action": episode["actions"].tolist(),
                "next.reward": episode["rewards"].astype(np.float32).tolist(),
                "next.done": episode["terminations"].tolist(),
                "frame_index": list(range(count)),
                "episode_index": [index] * count,
            }
            for name in rows:
                rows[name] += columns[name]
        pq.write_table(pa.table(rows), place)
    return folder


def d4rl(path, made, **arrays):
    """One file with arrays at its top; None leaves one out."""
    columns = {
        "observations": np.concatenate([episode["observations"][:-1] for episode in made]),
        "next_observations": np.concatenate([episode["observations"][1:] for episode in made]),
        **{
            name: np.concatenate([episode[key] for episode in made])
            for name, key in (
                ("actions", "actions"),
                ("rewards", "rewards"),
                ("terminals", "terminations"),
                ("timeouts", "truncations"),
            )
        },
        **arrays,
    }
    with h5py.File(path, "w") as file:
        for name, array in columns.items():
            if array is not None:
                file.create_dataset(name, data=array)
        file.create_group("metadata").create_dataset("algorithm", data=b"SAC")
    return path
