"""What a run has stored, put in the order of its episodes: copies, dropped rows, episodes that were lost, its task."""

import itertools

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import Trainer, UsageError
from upslope.actor_critic.episodes import by_episodes
from upslope.actor_critic.log import open_log, run_log
from upslope.actor_critic.replay import Layout

from .line import Line

LAYOUT = Layout(1, 1)
SMALL = {"policy.hidden": [8], "critic.hidden": [8], "batch_size": 16, "rollout.steps": 30, "rollout.warmup": 40}
RUN = {"eval": {"episodes": 2}, "checkpoint_every": 1, "threads": 1, "sinks": []}


def stored(lengths, copies, steps, drops=False, seed=0):
    """Rows that copies play, step by step, in episodes of these lengths over and over; and the episodes, as lists of rows."""
    chance, lengths = np.random.default_rng(seed), itertools.cycle(lengths)
    episodes, rows, running = [], [], [None] * copies
    for _, copy in itertools.product(range(steps), range(copies)):
        if running[copy] == "reset":  # a step that stores nothing
            running[copy] = None
            continue
        if running[copy] is None:
            running[copy] = (chance.normal(), next(lengths), [])
            episodes.append(running[copy][2])
        at, left, own = running[copy]
        after = chance.normal()
        row = np.array([at, 0, 1, left == 1 and copy % 2, left == 1 and not copy % 2, after], np.float32)
        own.append(row)
        rows.append(row)
        running[copy] = (after, left - 1, own) if left > 1 else ("reset" if drops else None)
    made = np.stack(rows)
    for last in (own[-1] for own in episodes):
        last[4] = 1 - last[3]  # cut, if it did not terminate: also where it still runs
    return made, [np.stack(own) for own in episodes]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 30), st.booleans())
def test_every_episode_is_whole_whatever_copies_played(lengths, copies, steps, drops):
    rows, episodes = stored(lengths, copies, steps, drops)
    found = by_episodes(rows, LAYOUT, copies)
    ends = np.flatnonzero((found[:, 3] + found[:, 4]) > 0) + 1
    assert ends[-1] == len(found) == len(rows)
    assert sorted(part.tobytes() for part in np.split(found, ends[:-1])) == sorted(own.tobytes() for own in episodes)


def test_copies_in_step_keep_the_order_of_the_copies():
    rows, _ = stored([4], 2, 8)
    np.testing.assert_array_equal(by_episodes(rows, LAYOUT, 2), np.concatenate([rows[::2], rows[1::2]]))


def test_an_episode_that_was_lost_is_cut_where_it_was():
    rows, _ = stored([5], 1, 10)
    found = by_episodes(np.delete(rows, [3, 4], axis=0), LAYOUT, 1)
    np.testing.assert_array_equal(found[:, 4], [0, 0, 1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(by_episodes(rows[:3], LAYOUT, 1)[:, 4], [0, 0, 1])


def test_a_run_of_a_vector_environment_that_spends_steps_on_resets(tmp_path):
    task = gymnasium.vector.SyncVectorEnv([Line] * 3)  # next-step autoreset
    settings = {**SMALL, "rollout.environments": 3}
    with Trainer("sac", task=task, steps=3, out=tmp_path / "run", self_checks=False, **RUN, **settings) as trainer:
        trainer.train()
    log = run_log(tmp_path / "run")
    assert len(log) == trainer.parts.replay.added
    going_on = ~log.last[:-1]
    np.testing.assert_array_equal(log.next_observation[:-1][going_on], log.observation[1:][going_on])
    lengths = np.diff(np.flatnonzero(log.last), prepend=-1)
    assert lengths.max() == 10


def test_an_episode_that_an_environment_failed_in_is_cut(tmp_path):
    fails = [75]
    task = lambda: Line(fails_at=fails[0])  # noqa: E731
    options = {**RUN, **SMALL, "task": task, "out": tmp_path / "run"}
    with pytest.raises(UsageError, match="burnt out"), Trainer("sac", steps=4, self_checks=False, **options) as trainer:
        trainer.train()
    fails[0] = None
    with Trainer("sac", steps=5, resume=True, **options) as trainer:
        trainer.train()
    log = run_log(tmp_path / "run")
    assert log.truncated[73] == 1.0
    going_on = ~log.last[:-1]
    np.testing.assert_array_equal(log.next_observation[:-1][going_on], log.observation[1:][going_on])


def test_a_run_as_a_log_is_of_the_environment_it_played_in(tmp_path):
    options = {"task_settings": {"maze": "open", "max_episode_steps": 20}, "observation_noise": 0.05, **RUN, **SMALL}
    with Trainer("sac", task="upslope/PointMaze-v0", steps=2, out=tmp_path / "run", **options) as trainer:
        trainer.train()
    log = open_log(str(tmp_path / "run"), None)
    assert (log.task, log.task_settings) == ("upslope/PointMaze-v0", options["task_settings"])
    assert "noise of standard deviation 0.05" in log.notes[0]
    small = {"value.hidden": [8], "policy.hidden": [8], "critic.hidden": [8], "rollout.steps": 20, "batch_size": 16}
    with Trainer(
        "iql", data=str(tmp_path / "run"), steps=2, out=tmp_path / "on", offline_steps=1, **RUN, **small
    ) as one:
        one.train()
        assert one.parts.evaluation.limit == 20
    again = open_log(str(tmp_path / "on"), None)
    assert (again.task, again.task_settings) == (log.task, log.task_settings)


def test_a_damaged_store_is_said(tmp_path):
    with Trainer("sac", task=Line, steps=2, out=tmp_path / "run", **RUN, **SMALL) as trainer:
        trainer.train()
    about = tmp_path / "run/replay/about.json"
    for text in (
        "{}",
        "[]",
        '{"observation": 1, "action": 1, "environments": 0}',
        '{"observation": 9, "action": 1}',
        "x",
    ):
        about.write_text(text)
        with pytest.raises(UsageError, match="are damaged"):
            run_log(tmp_path / "run")
