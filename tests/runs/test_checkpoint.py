import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint

FILES = ["config.json", "sub/tokenizer.json", "trainer/tensors.safetensors", "trainer/state.json", "manifest.json"]


def write_policy(path):
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "sub").mkdir()
    (path / "sub" / "tokenizer.json").write_text("tokens")


def save(folder, step, keep=None, **options):
    tensors = {"moment": torch.full((3,), step / 3), "rng": torch.arange(5, dtype=torch.uint8)}
    return save_checkpoint(
        folder, step, write_policy=write_policy, tensors=tensors, state={"step": step}, keep=keep, **options
    )


def test_round_trip_and_layout(tmp_path):
    path = save(tmp_path, 10)
    assert path == tmp_path / "checkpoints" / "step-000010"
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == set(FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert manifest["versions"]["torch"] == torch.__version__
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.step, checkpoint.path, checkpoint.state) == (10, path, {"step": 10})
    assert torch.equal(checkpoint.tensors["moment"], torch.full((3,), 10 / 3))
    assert torch.equal(checkpoint.tensors["rng"], torch.arange(5, dtype=torch.uint8))


def test_loaded_tensors_outlive_the_file(tmp_path):
    path = save(tmp_path, 1)
    moment = load_checkpoint(tmp_path).tensors["moment"]
    moment.add_(1)
    assert load_checkpoint(tmp_path).tensors["moment"][0] == torch.tensor(1 / 3)
    os.truncate(path / "trainer" / "tensors.safetensors", 0)
    assert moment.sum() == pytest.approx(4)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (2, 2, [2, 4, 5]),
        (1, 5, [5]),
        (9, None, [1, 2, 3, 4, 5]),
        (None, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_rotation(tmp_path, keep, best, left):
    for step in range(1, 6):
        save(tmp_path, step, keep=keep, best=best)
    assert list_checkpoints(tmp_path) == left
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_rotation_does_not_count_a_damaged_later_one(tmp_path):
    """A run that fell back from a damaged step 9 saves step 5: that one stays, until 9 is written again."""
    save(tmp_path, 4)
    (save(tmp_path, 9) / "config.json").unlink()
    save(tmp_path, 5, keep=1)
    assert load_checkpoint(tmp_path).step == 5
    save(tmp_path, 9, keep=1)
    assert list_checkpoints(tmp_path) == [9]
    assert load_checkpoint(tmp_path).step == 9


def test_keep_zero_is_refused(tmp_path):
    with pytest.raises(UsageError, match="keep=0 would remove the checkpoint just saved"):
        save(tmp_path, 1, keep=0)


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (999_999, 1_000_000, 5):
        save(tmp_path, step)
    assert list_checkpoints(tmp_path) == [5, 999_999, 1_000_000]
    assert load_checkpoint(tmp_path).step == 1_000_000


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, write_policy=write_policy, tensors={}, state={"second": True}, keep=1)
    assert load_checkpoint(tmp_path).state == {"second": True}


DAMAGES = {
    "missing": (lambda file: file.unlink(), "is missing|No such file"),
    "empty": (lambda file: os.truncate(file, 0), "0 bytes instead of|not what was written"),
    "cut": (lambda file: os.truncate(file, file.stat().st_size - 3), "bytes instead of|not what was written"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"!"), "bytes instead of|not what was written"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "bytes instead of|cannot be read|Is a directory"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_the_previous_one_used(tmp_path, caplog, name, damage, message):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path / name)
    assert load_checkpoint(tmp_path).step == 1
    assert "step 2: " in caplog.text
    assert "step 1 is used" in caplog.text
    with pytest.raises(UsageError, match=rf"step 2: .*({message})"):
        load_checkpoint(tmp_path, step=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(name=st.sampled_from(FILES), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_state(tmp_path, name, position, bit):
    """In the manifest, a bit of a version's name may flip without harm; anywhere else it is noticed."""
    if not list_checkpoints(tmp_path):
        save(tmp_path, 1)
        save(tmp_path, 2)
    file = tmp_path / "checkpoints" / "step-000002" / name
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1 << bit
    original = file.read_bytes()
    file.write_bytes(bytes(content))
    try:
        checkpoint = load_checkpoint(tmp_path)
    finally:
        file.write_bytes(original)
    assert checkpoint.state == {"step": checkpoint.step}
    assert checkpoint.tensors["moment"][0] == torch.tensor(checkpoint.step / 3)
    assert checkpoint.step == 1 or name == "manifest.json"


def test_none_whole_says_what_is_wrong_with_each(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / FILES[step]).unlink()
    with pytest.raises(UsageError) as error:
        load_checkpoint(tmp_path)
    assert "step 2: trainer/tensors.safetensors is missing; step 1: sub/tokenizer.json is missing" in str(error.value)


def test_a_manifest_of_another_checkpoint_or_format_is_noticed(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text())
    for change, message in (
        ({"step": 1}, "is of step 1"),
        ({"format": 99}, "format is 99"),
        ({"files": []}, "not what"),
    ):
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UsageError, match=message):
            load_checkpoint(tmp_path, step=2)


def test_absent_checkpoints(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere")
    save(tmp_path, 1)
    with pytest.raises(UsageError, match=r"no checkpoint of step 7 in .* There are: 1\."):
        load_checkpoint(tmp_path, step=7)


@pytest.mark.parametrize("error", [RuntimeError("model"), KeyboardInterrupt()])
def test_a_failing_policy_leaves_the_earlier_one(tmp_path, error):
    save(tmp_path, 1)

    def fail(path):
        (path / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        save_checkpoint(tmp_path, 2, write_policy=fail, tensors={}, state={}, keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


def test_state_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"state.json is not JSON: .*Give it to pack"):
        save_checkpoint(tmp_path, 1, write_policy=write_policy, tensors={}, state={"x": torch.ones(1)}, keep=1)
