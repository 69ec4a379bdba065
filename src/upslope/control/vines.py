"""Playing with vines: from states of a rollout, further trajectories each, to the episode's end."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from upslope.control.playing import Experience, Played, Player
from upslope.parts.vines import Vines
from upslope.policies.control import ControlPolicy, Critic
from upslope.tasks.environments import Environments
from upslope.tasks.snapshots import Snapshot

CHUNK = 256  # steps for which noise is drawn at once


class Grown(NamedTuple):
    """V vines: what was seen and done, [V, L, ...], and what they led to at last, [V, D]."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    length: Tensor
    terminated: Tensor
    reached: Tensor


class VinePlayer(Player):
    """A Player whose batch has the rows of the copies and behind them those of the vines.

    A state is put back by replaying the actions that led there, or as an array where the environment has one
    (`upslope.tasks.snapshots`); replayed steps are counted apart from steps that the policy took. What an environment draws
    after the state differs between vines. Vines are whole within a step of the run: nothing of them is saved.
    """

    def __init__(
        self, environments: Environments, policy: ControlPolicy, critic: Critic | None, rollout: Vines
    ) -> None:
        super().__init__(environments, policy, critic, rollout)
        self.vines = rollout
        self.spare = environments.spare(rollout.environments * rollout.states * rollout.vines)
        self.replayed = 0
        self._chosen = np.zeros((0, 0), dtype=bool)
        self._places: list[Snapshot] = []
        self._told: dict[str, float] = {}

    def _before_step(self, t: int, seen: np.ndarray, actions: list[Any], mask: np.ndarray) -> None:
        self._places += [self.environments.snapshot(row) for row in self._chosen[t].nonzero()[0].tolist()]

    def _steps(self, generator: torch.Generator) -> Experience:
        rollout = self.vines
        luck = torch.rand(rollout.environments, rollout.steps, generator=generator)
        chosen = torch.zeros_like(luck, dtype=torch.bool).scatter_(1, luck.topk(rollout.states).indices, True)
        self._chosen, self._places = chosen.T.numpy(), []
        base = super()._steps(generator)
        grown = self._grow(generator)
        keys = torch.randint(2**62, (len(self._places),), generator=generator)
        batch, played = base.batch, base.played
        count, width = batch.logp.shape
        total, longest = len(grown.length), max(width, grown.reward.shape[1])
        rows = torch.arange(count + total)
        inside = torch.arange(longest) < grown.length.unsqueeze(1)
        own = {"token_reward": grown.reward, "mask": inside, "ended": _padded(inside, longest + 1).diff(dim=1)}
        columns = {name: _joined(getattr(batch, name), column, longest) for name, column in own.items()}
        if self.critic is not None:
            for name, column in self._judged(grown, longest).items():
                columns[name] = _joined(getattr(batch, name), column, longest)
        group = torch.arange(len(keys)).repeat_interleave(rollout.vines)
        columns |= {
            "vine": rows >= count,
            "group": torch.cat([torch.zeros(count, dtype=torch.int64), group + 1]),
            "prompt_key": torch.cat([torch.zeros(count, dtype=torch.int64), keys[group]]),
            "trajectory": rows,
            "answer": torch.cat([torch.zeros(count, dtype=torch.int64), self._behavior(grown)]),
        }
        seen, done = (
            _joined(a, b, longest) for a, b in ((played.observation, grown.observation), (played.action, grown.action))
        )
        self._tell(columns, grown)
        steps = base.steps + int(grown.length.sum())
        return self._experience(Played(seen, done), columns, steps, base.episodes)

    def _grow(self, generator: torch.Generator) -> Grown:
        """From each state its vines, in lockstep until the last has ended."""
        spare, places = self.spare, [place for place in self._places for _ in range(self.vines.vines)]
        seeds = torch.randint(2**31, (len(places),), generator=generator).tolist()
        observation = spare.put(places, seeds)
        self.replayed += sum(place.length for place in places)
        growing = np.ones(len(places), dtype=bool)
        length, reached = np.zeros(len(places), dtype=np.int64), observation.copy()
        terminated = np.zeros(len(places), dtype=bool)
        seen, done, earned = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        while growing.any():
            if len(seen) % CHUNK == 0:
                draw = self.policy.sampler(generator, CHUNK)
            action = draw(observation)
            step = spare.step(action)
            seen.append(observation)
            done.append(action)
            earned.append(np.where(growing, step.reward, 0.0).astype(np.float32))
            length += growing
            reached[growing], terminated[growing] = step.next_observation[growing], step.terminated[growing]
            growing &= ~(step.terminated | step.truncated)
            observation = step.observation
        columns = [torch.from_numpy(np.stack(column, 1)) for column in (seen, done, earned)]
        return Grown(*columns, *(torch.from_numpy(part) for part in (length, terminated, reached)))

    @torch.no_grad()
    def _judged(self, grown: Grown, longest: int) -> dict[str, Tensor]:
        """old_value and next_value [V, L] of the vines; at the last step V of what was reached, 0 where that is the end."""
        assert self.critic is not None
        value = self.critic(grown.observation)
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        last = torch.where(grown.terminated, 0.0, self.critic(grown.reached))
        following.scatter_(1, grown.length.unsqueeze(1) - 1, last.unsqueeze(1))
        return {"old_value": value, "next_value": following}

    def _behavior(self, grown: Grown) -> Tensor:
        """A number for what each vine did, [V]: the same for the same."""
        final = np.round(grown.reached.numpy(), self.vines.decimals) + 0.0  # -0.0 is 0.0
        if self.vines.behavior == "final":
            return torch.from_numpy(np.unique(final, axis=0, return_inverse=True)[1].reshape(-1))
        seen = np.round(grown.observation.numpy(), self.vines.decimals) + 0.0
        sets = [
            frozenset(row.tobytes() for row in (*seen[vine, 1:length], final[vine]))
            for vine, length in enumerate(grown.length.tolist())
        ]
        numbers = {one: number for number, one in enumerate(dict.fromkeys(sets))}
        return torch.tensor([numbers[one] for one in sets])

    def _tell(self, columns: dict[str, Tensor], grown: Grown) -> None:
        vine, states = columns["vine"], len(self._places)
        pairs = torch.stack([columns["group"][vine], columns["answer"][vine]], 1)
        self._told = {
            "vines/return": float(grown.reward.sum(1).mean()),
            "vines/length": float(grown.length.double().mean()),
            "vines/distinct": len(torch.unique(pairs, dim=0)) / states,
        }

    def metrics(self) -> dict[str, float]:
        """Those of a Player; of the last vines their mean return and length, how many different things the vines of a state
        did; and how many steps have been replayed so far to put states back.
        """
        return {**super().metrics(), **self._told, "replayed_steps": float(self.replayed)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "replayed": self.replayed}

    def load_state_dict(self, state: Any) -> list[str]:
        self.replayed = state["replayed"]
        return super().load_state_dict(state)


def _padded(column: Tensor, width: int) -> Tensor:
    """[R, L, ...] with zeros behind, up to `width` positions."""
    missing = column.new_zeros(len(column), width - column.shape[1], *column.shape[2:])
    return torch.cat([column, missing], 1)


def _joined(first: Tensor, second: Tensor, width: int) -> Tensor:
    return torch.cat([_padded(first, width), _padded(second, width)])
