"""How an environment is named: modules and files of one's own, ids that a module registers, and what is said when it is wrong."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from upslope import Trainer
from upslope.errors import UsageError
from upslope.tasks.opening import open_environments
from upslope.tasks.spaces import ActionSpec, ObservationSpec

OWN = """
import gymnasium
import numpy as np

class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length=3):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t >= self.length, False, {}

class Bare(gymnasium.Env):
    pass

class Needs(Own):
    def __init__(self, size):
        self.length = size

class FourValues(Own):
    def step(self, action):
        return super().step(action)[:4]

class NoInfo(Own):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]

runs = globals().get("runs", 0) + 1
gymnasium.register(NAME, entry_point=Own, max_episode_steps=2)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, in which there is upslope_own_module.py."""
    (tmp_path / "upslope_own_module.py").write_text(OWN.replace("NAME", "'UpslopeOwn-v0'"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("upslope_own_module", None)


@pytest.mark.filterwarnings("error:.*Overriding")
def test_a_module_or_file_of_the_current_folder_and_the_ids_that_they_register(folder):
    assert open_environments("upslope_own_module:Own", 2, 0, settings={"length": 5}).copies[1].length == 5
    assert open_environments("upslope_own_module:UpslopeOwn-v0", 1, 0).limit == 2
    (folder / "own_file.py").write_text(OWN.replace("NAME", "'UpslopeFile-v0'"))
    assert open_environments("own_file.py:Own", 1, 0).name == "Own"
    assert open_environments("own_file.py:UpslopeFile-v0", 1, 0).limit == 2
    assert open_environments(f"{folder}/own_file.py:Own", 1, 0).name == "Own"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("upslope_own_module:Bare", "what Bare makes has no observation_space and no action_space"),
        ("upslope_own_module:Needs", "'size'. Its keywords are the settings task_settings.NAME=VALUE"),
        ("upslope_own_module:Other", "registers no environment of that name. It has: Own, Bare"),
        ("upslope_own_module:Other-v0", "registers no environment of that name"),
        ("broken:Own", "broken cannot be imported: ZeroDivisionError"),
        (":Own", "cannot be imported"),
        ("lost.py:Own", r"lost.py cannot be imported: FileNotFoundError.*\. Files are looked for from .* on\."),
        ("chain_sum", "'chain_sum' is a task for language models, and this method plays in environments"),
        ("Pusht-v0", "One that a package registers: package:Pusht-v0"),
    ],
)
def test_what_cannot_be_opened_is_named(folder, name, message):
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=message):
        open_environments(name, 1, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FourValues",
            r"step failed: it returned 4 values, .* returns \(observation, reward, terminated, truncated, info\)",
        ),
        ("NoInfo", r"reset failed: it returned ndarray, .* returns \(observation, info\)"),
    ],
)
def test_an_environment_of_before_gymnasium_is_told_what_to_return(folder, name, message):
    environments = open_environments(f"upslope_own_module:{name}", 1, 0)

    def play():
        environments.reset()
        environments.step(np.zeros(1, dtype=np.int64))

    with pytest.raises(UsageError, match=message):
        play()


def test_a_vector_environment_of_one_seed_is_told_to_take_a_list():
    with pytest.raises(UsageError, match=r'must take a list of seeds, .* vectorization_mode="sync"'):
        open_environments(gymnasium.make_vec("CartPole-v1", 3), 3, 0).reset()
    assert open_environments(gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync"), 3, 0).count == 3


def test_actions_stay_within_bounds_that_single_precision_cannot_say():
    space = spaces.Box(np.array([-0.1, 0.7]), np.array([0.1, 0.9]), dtype=np.float64)
    for bound in ActionSpec.of(space).box:
        assert space.contains(bound.astype(np.float64))
    wide = np.full((1, 2), 9.0)
    assert all(
        space.contains(ActionSpec.of(space).to_environment(sign * wide, "clip")[0].astype(float)) for sign in (-1, 1)
    )
    single = spaces.Box(np.float32(-0.1), np.float32(0.1), (2,))
    np.testing.assert_array_equal(ActionSpec.of(single).box, [single.low, single.high])


def test_keys_with_slashes_are_keys_as_any_other():
    space = spaces.Dict({"arm/joint": spaces.Box(-1, 1, (2,)), "arm": spaces.Dict({"x/y": spaces.Discrete(2)})})
    seen = ObservationSpec.of(space)
    out = np.empty(seen.size, dtype=np.float32)
    seen.flatten({"arm/joint": np.array([0.5, -0.5]), "arm": {"x/y": 1}}, out)
    np.testing.assert_array_equal(out, [0, 1, 0.5, -0.5])
    with pytest.raises(UsageError, match="the observation has no entry arm/x/y"):
        seen.rows({"arm/joint": np.zeros(2), "arm": {}})


def test_an_observation_without_a_number_is_refused():
    with pytest.raises(UsageError, match="has no numbers"):
        ObservationSpec.of(spaces.Box(0, 1, (0,)))


def test_an_environment_is_no_task_for_language_models():
    with pytest.raises(
        UsageError, match=r"no task 'CartPole-v1'\. It is an environment, and this method trains language"
    ):
        Trainer("grpo", task="CartPole-v1", steps=1)
