"""One step's experience from environments, as a Batch: rows are copies (or whole episodes), positions are steps."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.parts.steps import Episodes, Steps
from upslope.policies.control import ControlPolicy, Critic
from upslope.tasks.environments import Environments, Episode

WINDOW = 100  # episodes over which training returns are averaged


@dataclass(frozen=True)
class Played:
    """What was seen and done, beside the Batch: observations [R, T, D] float32 and actions [R, T] or [R, T, A]."""

    observation: Tensor
    action: Tensor


@dataclass(frozen=True)
class Stretch:
    """What was played in N copies between two updates, S steps of each: nothing here depends on a network.

    token_reward, terminated, ended, mask   [N, S]
    last       what the last step led to                                          [N, D] float32
    cut_at     (copy, step) of what a time limit cut off                          [C, 2] int64
    cut_seen   what had been reached there                                        [C, D] float32
    """

    played: Played
    token_reward: Tensor
    terminated: Tensor
    ended: Tensor
    mask: Tensor
    last: Tensor
    cut_at: Tensor
    cut_seen: Tensor


@dataclass(frozen=True)
class Experience:
    """A step's rows, with the numbers of what was played: steps, episodes that ended. `new`: the rows that are of this step."""

    played: Played
    batch: Batch
    steps: int
    episodes: list[Episode]
    new: slice = field(default_factory=lambda: slice(None))


class Player:
    """Plays with a policy as a recipe's `rollout` part says, and says what the critic thought of it.

    Made by it: logp and old_logp (those of the policy as it is), token_reward, reward, ended, mask; with a critic old_value and
    next_value. `recent`: returns and lengths of the last 100 episodes, (total, length).
    """

    def __init__(
        self, environments: Environments, policy: ControlPolicy, critic: Critic | None, rollout: Steps | Episodes
    ) -> None:
        self.environments, self.policy, self.critic, self.rollout = environments, policy, critic, rollout
        self.recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.steps = self.episodes = 0

    def play(self, generator: torch.Generator) -> Experience:
        """The experience of one step of the run. Raises EnvironmentFailure."""
        found = self._steps(generator) if isinstance(self.rollout, Steps) else self._episodes(generator)
        self.steps += found.steps
        self.episodes += len(found.episodes)
        self.recent.extend((episode.total, episode.length) for episode in found.episodes)
        return found

    def _steps(self, generator: torch.Generator) -> Experience:
        stretch, episodes = self._stretch(self.policy.sampler(generator, self.rollout.steps))  # type: ignore[union-attr]
        return self._experience(stretch.played, self._columns(stretch), int(stretch.mask.sum()), episodes)

    def _before_step(self, t: int, seen: np.ndarray, actions: list[Any], mask: np.ndarray) -> None:
        """Called before step t of a stretch, of which `seen` [S, N, D], `actions` and `mask` [S, N] are known up to there."""

    def _stretch(self, draw: Callable[[np.ndarray], np.ndarray]) -> tuple[Stretch, list[Episode]]:
        environments, width = self.environments, self.rollout.steps  # type: ignore[union-attr]
        count, size = environments.count, environments.observations.size
        seen = np.empty((width, count, size), dtype=np.float32)
        reward = np.empty((width, count), dtype=np.float32)
        fate = np.empty((2, width, count), dtype=bool)
        mask = np.ones((width, count), dtype=bool)
        actions, cut, episodes = list[Any](), list[Any](), list[Episode]()
        observation = environments.observation if environments.running else environments.reset()
        for t in range(width):
            self._before_step(t, seen, actions, mask)
            seen[t] = observation
            action = draw(observation)
            step = environments.step(action)
            actions.append(action)
            reward[t], fate[0, t], fate[1, t] = step.reward, step.terminated, step.truncated
            if step.valid is not None:
                mask[t] = step.valid
            if step.episodes:
                episodes += step.episodes
                cut += [(row, t, step.next_observation[row]) for row in step.truncated.nonzero()[0]]
            observation = step.observation
        terminated, truncated = torch.from_numpy(fate).transpose(1, 2)
        stretch = Stretch(
            played=Played(_rows(torch.from_numpy(seen)), _rows(torch.from_numpy(np.stack(actions)))),
            token_reward=_rows(torch.from_numpy(reward)),
            terminated=terminated,
            ended=terminated | truncated,
            mask=_rows(torch.from_numpy(mask)),
            last=torch.from_numpy(step.next_observation),
            cut_at=torch.tensor([(int(row), t) for row, t, _ in cut], dtype=torch.int64).view(-1, 2),
            cut_seen=torch.from_numpy(np.array([reached for *_, reached in cut], dtype=np.float32).reshape(-1, size)),
        )
        return stretch, episodes

    def _episodes(self, generator: torch.Generator) -> Experience:
        """Whole episodes, as many of each copy: the first to end would be the short ones."""
        environments, rollout = self.environments, self.rollout
        share = -(-rollout.episodes // environments.count)  # type: ignore[union-attr]
        left = np.full(environments.count, share)
        draw = None
        rows: list[list[list[Any]]] = [[[[], [], []]] for _ in range(environments.count)]  # copy, episode, columns
        episodes: list[Episode] = []
        observation, taken = environments.reset(), 0
        while left.any():
            if draw is None or taken % 256 == 0:
                draw = self.policy.sampler(generator, 256)
            action = draw(observation)
            taken += 1
            step = environments.step(action)
            for row in left.nonzero()[0].tolist():
                if step.valid is None or step.valid[row]:
                    for column, value in zip(
                        rows[row][-1], (observation[row], action[row], step.reward[row]), strict=True
                    ):
                        column.append(value)
            for episode in step.episodes:
                if left[episode.copy]:
                    left[episode.copy] -= 1
                    episodes.append(episode)
                    rows[episode.copy].append([[], [], []])
            observation = step.observation
        environments.skip()
        whole = [episode for copy in rows for episode in copy[:-1]]
        length = torch.tensor([len(episode[2]) for episode in whole])
        observations, actions, earned = (
            torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.stack(e[i])) for e in whole], batch_first=True)
            for i in range(3)
        )
        positions = torch.arange(int(length.max()))
        columns = {
            "token_reward": earned,
            "mask": positions < length[:, None],
            "ended": positions == length[:, None] - 1,
        }
        return self._experience(Played(observations, actions), columns, int(length.sum()), episodes)

    @torch.no_grad()
    def _columns(self, stretch: Stretch) -> dict[str, Tensor]:
        """What the batch has of a stretch, with the critic as it is: old_value, and next_value [N, S], which is V of the next
        step, and where a time limit cut, or the rollout ends, of what was reached there; 0 where an episode terminated.
        """
        columns = {"token_reward": stretch.token_reward, "ended": stretch.ended, "mask": stretch.mask}
        if self.critic is None:
            return columns
        value = self.critic(stretch.played.observation)
        following = torch.cat([value[:, 1:], self.critic(stretch.last).unsqueeze(1)], 1)
        if len(stretch.cut_at):
            following[stretch.cut_at[:, 0], stretch.cut_at[:, 1]] = self.critic(stretch.cut_seen)
        return {**columns, "old_value": value, "next_value": torch.where(stretch.terminated, 0.0, following)}

    @torch.no_grad()
    def _experience(
        self, played: Played, columns: Mapping[str, Tensor], steps: int, episodes: list[Episode]
    ) -> Experience:
        logp = self.policy.distribution(played.observation).log_prob(played.action)
        reward = columns["token_reward"].sum(1)
        return Experience(played, Batch(logp=logp, old_logp=logp, reward=reward, **columns), steps, episodes)

    def metrics(self) -> dict[str, float]:
        """Steps and episodes so far, and means over the last 100 episodes."""
        found = {"env_steps": float(self.steps), "episodes": float(self.episodes)}
        if self.recent:
            totals, lengths = zip(*self.recent, strict=True)
            found |= {"return": float(np.mean(totals)), "episode_length": float(np.mean(lengths))}
        return found

    def state_dict(self) -> dict[str, Any]:
        """The running episodes and the counts."""
        recent = [list(episode) for episode in self.recent]
        counts = {"steps": self.steps, "episodes": self.episodes, "recent": recent}
        return {**counts, "environments": self.environments.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Puts back what `state_dict` returned; sentences about what cannot be."""
        self.steps, self.episodes = state["steps"], state["episodes"]
        self.recent = deque(((total, length) for total, length in state["recent"]), maxlen=WINDOW)
        return self.environments.restore(state["environments"])


def _rows(column: Tensor) -> Tensor:
    """[S, N, ...] as [N, S, ...]."""
    return column.transpose(0, 1).contiguous()
