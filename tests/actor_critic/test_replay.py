"""The buffer: exactly the last transitions, in memory and on disk, whenever the process is killed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError
from upslope.actor_critic.replay import Layout, Replay, pieces

LAYOUT = Layout(3, 2)


def numbered(first, count, layout=LAYOUT):
    """Rows whose every number is the row's own."""
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, layout.width).clone()


def held(replay):
    """Row numbers in the buffer, sorted."""
    return sorted(replay.rows[: len(replay), 0].int().tolist())


@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
def test_it_holds_exactly_the_last_rows(capacity, counts):
    replay, total = Replay(capacity, LAYOUT), 0
    for count in counts:
        replay.add(numbered(total, count))
        total += count
        assert len(replay) == min(total, capacity)
        assert held(replay) == list(range(max(0, total - capacity), total))
        for row in range(max(0, total - capacity), total):
            assert (replay.rows[row % capacity] == row).all()


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 8))
def test_steps_are_rows_of_columns(capacity, copies, steps):
    rng = np.random.default_rng(0)
    one, other = Replay(capacity, LAYOUT), Replay(capacity, LAYOUT)
    for _ in range(steps):
        columns = {
            name: rng.normal(size=(copies, last - first)).astype(np.float32)
            for name, (first, last) in LAYOUT.columns().items()
        }
        if copies <= capacity:
            one.add_step(*columns.values())
            other.add(other.row(columns))
            assert one.added == other.added
            assert torch.equal(one.rows[: len(one)], other.rows[: len(other)])


def test_columns_by_name():
    layout = Layout(3, 2, ("next_action", "return_to_go"))
    replay = Replay(4, layout)
    given_ = {"observation": [[1, 2, 3]], "action": [[4, 5]], "reward": [6], "terminated": [True], "truncated": [False]}
    replay.add(replay.row({**given_, "next_observation": [[7, 8, 9]], "next_action": [[10, 11]], "return_to_go": [12]}))
    assert replay.rows[0].tolist() == [1, 2, 3, 4, 5, 6, 1, 0, 7, 8, 9, 10, 11, 12]
    assert replay.column("next_observation").tolist() == [[7, 8, 9]]


def test_draws_are_uniform_over_what_is_there():
    replay = Replay(100, LAYOUT)
    replay.add(numbered(0, 10))
    drawn = replay.draw(20_000, torch.Generator().manual_seed(0))[:, 0].int()
    counts = torch.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()
    assert torch.equal(replay.draw(20_000, torch.Generator().manual_seed(0))[:, 0].int(), drawn)


def test_a_million_transitions_take_their_arrays_and_little_more():
    psutil = pytest.importorskip("psutil")
    layout = Layout(17, 6)
    before = psutil.Process().memory_info().rss
    replay = Replay(200_000, layout)
    array = replay.rows.numel() * 4
    assert psutil.Process().memory_info().rss - before < 0.2 * array  # nothing is touched before it is written to
    block = torch.zeros(10_000, layout.width)
    for _ in range(30):
        replay.add(block)
    used = psutil.Process().memory_info().rss - before - block.numel() * 4
    assert used < 1.05 * array
    assert array == 200_000 * layout.width * 4 == 200_000 * 4 * (17 + 6 + 3 + 17)


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=1, max_size=8), st.data())
def test_any_checkpoint_can_be_gone_back_to(tmp_path_factory, capacity, moves, data):
    """Rows are added and saved in turn; a process that died goes back to a checkpoint and finds what was there then."""
    folder = tmp_path_factory.mktemp("replay")
    replay, total, kept = Replay(capacity, LAYOUT), 0, []
    for count, saves in moves:
        replay.add(numbered(total, count))
        total += count
        if saves:
            kept.append((replay.save(folder), held(replay), replay.rows.clone(), len(replay)))
    if not kept:
        return
    state, rows, array, length = data.draw(st.sampled_from(kept))
    found = Replay(capacity, LAYOUT)
    found.load(folder, state)
    assert held(found) == rows
    assert torch.equal(found.rows[:length], array[:length])
    assert all(int(file.stem.split("-")[1]) < state["added"] for file in pieces(folder))


def test_only_new_rows_are_written_and_old_files_go_when_nobody_reads_them(tmp_path):
    replay = Replay(20, LAYOUT)
    for first in range(0, 80, 10):
        replay.add(numbered(first, 10))
        state = replay.save(tmp_path)
        replay.forget(tmp_path, replay.added - 10)  # the checkpoint before this one is kept as well
    names = [file.name for file in pieces(tmp_path)]
    assert names == [f"rows-{first:012d}-{first + 10:012d}.safetensors" for first in (50, 60, 70)]
    assert replay.save(tmp_path) == state
    assert [file.name for file in pieces(tmp_path)] == names
    found = Replay(20, LAYOUT)
    found.load(tmp_path, {"added": 70})
    assert held(found) == list(range(50, 70))


def test_a_missing_or_damaged_file_is_named(tmp_path):
    replay = Replay(20, LAYOUT)
    for first in (0, 5):
        replay.add(numbered(first, 5))
        state = replay.save(tmp_path)
    first, last = pieces(tmp_path)
    content = last.read_bytes()
    last.write_bytes(content[:-7])
    with pytest.raises(UsageError, match=r"rows-000000000005.* are damaged"):
        Replay(20, LAYOUT).load(tmp_path, state)
    last.write_bytes(content)
    with pytest.raises(UsageError, match="of another environment"):
        Replay(20, Layout(4, 2)).load(tmp_path, state)
    first.unlink()
    with pytest.raises(UsageError, match="the stored transitions 0 to 10 are missing"):
        Replay(20, LAYOUT).load(tmp_path, state)


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_buffer_for_nothing_is_refused(capacity):
    with pytest.raises(UsageError, match=f"data.capacity is {capacity}"):
        Replay(capacity, LAYOUT)
