"""upslope eval and export of a policy that plays: which folders are none, and what is said of them."""

from pathlib import Path

import pytest
from gymnasium import spaces

from upslope.cli.export import command as export
from upslope.cli.returns import Playing
from upslope.errors import UsageError
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.tasks.spaces import ActionSpec, ObservationSpec


def test_a_folder_that_is_not_there_is_not_called_a_language_model(tmp_path):
    with pytest.raises(UsageError, match=rf"--episodes is of .* and there is no folder {tmp_path}/lost"):
        Playing(episodes=3).refuse(str(tmp_path / "lost"))
    for model in ("tiny", str(tmp_path)):
        with pytest.raises(UsageError, match=r"--video-episodes is of .* is a language model\. Leave it out"):
            Playing(video_episodes=1).refuse(model)
    Playing().refuse(str(tmp_path / "lost"))


def test_what_cannot_be_exported_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*lost"):
        export(str(tmp_path / "lost"), Path("p.onnx"))
    with pytest.raises(UsageError, match="holds no policy for an environment"):
        export(str(tmp_path), Path("p.onnx"))
    with pytest.raises(UsageError, match=r"does not end in \.onnx"):
        export(str(tmp_path), Path("p.txt"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    seen, done = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    ControlPolicy(ObservationSpec.of(seen), ActionSpec.of(done), MLP()).save(tmp_path / "policy")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"p\.onnx cannot be written: .*\. Choose another place"):
        export(str(tmp_path / "policy"), tmp_path / "file" / "p.onnx")
