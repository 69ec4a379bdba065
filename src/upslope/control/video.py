"""Films episodes of a policy."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from upslope.control.evaluation import play_episodes
from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy
from upslope.tasks.environments import Episode, episode_seed
from upslope.tasks.noise import noisy
from upslope.tasks.opening import maker_of, open_environments

SUFFIXES = (".mp4", ".gif")
RATE = 30  # frames a second of an environment that does not say


class Film:
    """A video file that frames [H, W, 3] uint8 are added to, one after another; written only when the first one comes."""

    def __init__(self, file: Path) -> None:
        if file.suffix not in SUFFIXES:
            raise UsageError(f"the video {file} must end in {' or '.join(SUFFIXES)}.")
        try:
            import imageio.v2  # noqa: F401
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise UsageError(f"a video needs {error.name}: pip install 'upslope[video]'.") from None
        self.file, self.frames, self.rate = file, 0, RATE
        self._writer: Any = None

    def add(self, frame: Any) -> None:
        """One more picture [H, W, 3] of uint8."""
        import imageio.v2

        picture = np.asarray(frame)
        if self._writer is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # the size in pixels stays what it is; players want even ones, which `picture` is cut to below
            options: dict[str, Any] = (
                {"fps": self.rate, "macro_block_size": 1}
                if self.file.suffix == ".mp4"
                else {"duration": 1000 / self.rate, "loop": 0}
            )
            self._writer = imageio.v2.get_writer(self.file, **options)
        height, width = picture.shape[:2]
        self._writer.append_data(picture[: height - height % 2, : width - width % 2])
        self.frames += 1

    def close(self) -> None:
        """Ends the file; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Filmed(gymnasium.Wrapper):
    """An environment whose every observation is filmed; that of a reset with the first step after it.

    Resets have the seeds `starts`, one after the other, and then those that they are called with.
    """

    def __init__(self, env: gymnasium.Env, film: Film, starts: Sequence[int]) -> None:
        super().__init__(env)
        self.film, self.starts = film, list(starts)
        self.first: Any = None
        film.rate = int(env.metadata.get("render_fps") or RATE)

    def reset(self, **keywords: Any) -> Any:
        if self.starts:
            keywords["seed"] = self.starts.pop(0)
        found = super().reset(**keywords)
        self.first = self.env.render()
        return found

    def step(self, action: Any) -> Any:
        if self.first is not None:
            self.film.add(self.first)
            self.first = None
        found = super().step(action)
        self.film.add(self.env.render())
        return found


def film_episodes(
    policy: ControlPolicy,
    what: str,
    count: int,
    file: Path,
    *,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    deterministic: bool = True,
    noise: float = 0.0,
    copies: int = 1,
) -> list[Episode]:
    """Plays `count` episodes of one copy of an environment and writes them to an .mp4 or a .gif, at its own frame rate.

    They begin as the first ones of `play_episodes` in `copies` copies with the same seed; where nothing is drawn, they go on
    as these, too. `noise`: standard deviation of that on what the policy sees.

    Raises UsageError for another suffix, a missing package, or an environment that does not render.
    """
    film = Film(file)
    _without_display()
    values = dict(settings or {})
    make, limit = maker_of(what)
    values.setdefault("max_episode_steps", limit)

    def filmed(**keywords: Any) -> Filmed:
        made = make(render_mode="rgb_array", **keywords)
        _follow(made)
        _check_renders(made, what)
        return Filmed(made, film, [episode_seed(seed, index % copies, index // copies) for index in range(count)])

    filmed.__name__ = what
    environments = noisy(open_environments(filmed, 1, seed, settings=values, convention=policy.convention), noise)
    try:
        return play_episodes(policy, environments, count, deterministic=deterministic, seed=seed)
    finally:
        environments.close()
        film.close()


def _without_display() -> None:
    """Lets pygame and MuJoCo draw where there is no screen."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def _follow(made: gymnasium.Env) -> None:
    """Takes the camera that goes along with the robot where Gymnasium would take one that stands still."""
    renderer: Any = getattr(made.unwrapped, "mujoco_renderer", None)
    if renderer is not None and renderer.camera_id == -1 and "trackbodyid" not in (renderer.default_cam_config or {}):
        import mujoco

        renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")


def _check_renders(made: gymnasium.Env, name: str) -> None:
    """Raises UsageError where `render` fails, or gives no picture."""
    try:
        made.reset(seed=0)
        frame: Any = made.render()
    except Exception as error:
        hint = " MuJoCo needs OpenGL: with MUJOCO_GL=egl libegl1, with MUJOCO_GL=osmesa libosmesa6." * (
            "GL" in str(error)
        )
        said = type(error).__name__ + (f": {error}" if str(error) else "")
        hint = hint or ' Its render() must return a picture [H, W, 3] of uint8 where render_mode="rgb_array".'
        raise UsageError(f"{name} cannot be filmed: render failed: {said.rstrip('.')}.{hint}") from error
    picture = np.asarray(frame)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise UsageError(
            f"{name} cannot be filmed: its render() gives {type(frame).__name__} of shape {picture.shape}, not a picture [H, W, 3] "
            'of uint8. It must take render_mode="rgb_array".'
        )
