"""Films: every observation of every episode is a frame; what cannot be filmed is named."""

import imageio.v2
import numpy as np
import pytest
import torch

from upslope.control.evaluation import play_episodes
from upslope.control.video import film_episodes
from upslope.errors import UsageError
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.tasks.opening import open_environments

SOURCE = """
import gymnasium, numpy as np
from gymnasium import spaces


class Blank(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, frame=(21, 33, 3)):
        self.render_mode, self.frame = render_mode, frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, dtype=np.float32), 1.0, self.t >= 4, False, {}

    def render(self):
        return np.full(self.frame, 10 * self.t, dtype=np.uint8)
"""


def policy_of(what, **settings):
    torch.manual_seed(0)
    environments = open_environments(what, 1, 0, settings=settings)
    return ControlPolicy(environments.observations, environments.actions, MLP(hidden=(8,)))


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_has_a_frame_for_every_observation(suffix, tmp_path):
    (tmp_path / "own.py").write_text(SOURCE)
    what = f"{tmp_path / 'own.py'}:Blank"
    shown = film_episodes(policy_of(what), what, 3, tmp_path / "films" / f"f{suffix}", seed=1)
    assert [episode.total for episode in shown] == [4.0] * 3
    with imageio.v2.get_reader(tmp_path / "films" / f"f{suffix}") as reader:
        frames = [np.asarray(frame)[..., :3] for frame in reader.iter_data()]
    if suffix == ".mp4":  # a GIF joins frames that are alike
        assert len(frames) == 3 * 5
        assert [round(float(frame.mean()) / 10) for frame in frames] == [0, 1, 2, 3, 4] * 3
    assert all(frame.shape == (20, 32, 3) for frame in frames)  # odd sizes are cut: players want even ones


def test_the_episodes_are_those_that_are_evaluated(tmp_path):
    policy = policy_of("CartPole-v1")
    environments = open_environments("CartPole-v1", 1, 5, settings={"max_episode_steps": 30})
    expected = play_episodes(policy, environments, 2)
    settings = {"max_episode_steps": 30}
    assert film_episodes(policy, "CartPole-v1", 2, tmp_path / "c.mp4", seed=5, settings=settings) == expected
    policy, several = policy_of("Pendulum-v1"), open_environments("Pendulum-v1", 2, 5, settings=settings)
    expected = [episode.total for episode in play_episodes(policy, several, 5)][:3]
    shown = film_episodes(policy, "Pendulum-v1", 3, tmp_path / "c.mp4", seed=5, settings=settings, copies=2)
    assert [episode.total for episode in shown] == expected


def test_what_cannot_be_filmed_is_named(tmp_path):
    (tmp_path / "own.py").write_text(SOURCE)
    what = f"{tmp_path / 'own.py'}:Blank"
    policy = policy_of(what)
    with pytest.raises(UsageError, match=r"must end in \.mp4 or \.gif"):
        film_episodes(policy, what, 1, tmp_path / "f.avi", seed=1)
    with pytest.raises(UsageError, match=r"no(t a)? picture \[H, W, 3\]"):
        film_episodes(policy, what, 1, tmp_path / "f.mp4", seed=1, settings={"frame": (4, 4)})
    (tmp_path / "plain.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv\n\n\ndef make(): return CartPoleEnv()\n"
    )
    with pytest.raises(UsageError, match=r"cannot be made.*render_mode"):
        film_episodes(policy, f"{tmp_path / 'plain.py'}:make", 1, tmp_path / "f.mp4", seed=1)
    (tmp_path / "mute.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv\n\n\nclass Mute(CartPoleEnv):\n"
        "    def render(self): raise NotImplementedError\n"
    )
    with pytest.raises(UsageError, match=r"render failed: NotImplementedError\. Its render\(\) must return a picture"):
        film_episodes(policy_of("CartPole-v1"), f"{tmp_path / 'mute.py'}:Mute", 1, tmp_path / "f.mp4", seed=1)
    assert not (tmp_path / "f.mp4").exists()
