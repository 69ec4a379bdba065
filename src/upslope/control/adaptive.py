"""Playing with a policy of its own, which is moved towards what the data so far has too little of."""

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.collect import seeded
from upslope.control.learning import StepLearner
from upslope.control.playing import Experience, Played, Player, Stretch
from upslope.policies.control import ControlPolicy, Critic
from upslope.tasks.environments import Environments, Episode


class AdaptivePlayer(Player):
    """Plays with a behaviour policy phi, and hands over the last `rollout.buffer` stretches as if theta had played them.

    Before every `rollout.every` steps phi becomes theta, and learns from all data of the buffer what `rollout.loss` says.
    logp, old_logp and the critic's values are those of the policy and the critic of now, for older stretches, too.
    `rollout` is the part: `upslope.methods.control.props.AdaptiveSampling`.
    """

    def __init__(self, environments: Environments, policy: ControlPolicy, critic: Critic | None, rollout: Any) -> None:
        super().__init__(environments, policy, critic, rollout)
        self.part = rollout
        self.behavior = copy.deepcopy(policy)
        part = rollout.behavior_optimizer()
        self.learner = StepLearner(list(self.behavior.parameters()), part.lr, part, 1)
        self.stretches: list[Stretch] = []
        self._key: tuple[object, ...] = ()
        self._seen: list[tuple[float, int]] = []

    def _steps(self, generator: torch.Generator) -> Experience:
        self._key = (generator.initial_seed(), "behavior")
        self._seen = []
        self._become_target()
        held = self.stretches[len(self.stretches) - self.part.buffer + 1 :] if self.part.buffer > 1 else []
        self._held = _flat(held)
        stretch, episodes = self._stretch(self.behavior.sampler(generator, self.part.steps))
        self.stretches = [*held, stretch]
        return self._joined(episodes)

    def _become_target(self) -> None:
        self.behavior.load_state_dict(self.policy.state_dict())
        if self.policy.moments is not None:
            self.behavior.set_moments(self.policy.moments)

    def _before_step(self, t: int, seen: np.ndarray, actions: list[Any], mask: np.ndarray) -> None:
        if t % self.part.every or not self.part.behavior_epochs:
            return
        observation, action = self._held
        if t:
            kept = mask[:t]
            now = torch.from_numpy(seen[:t][kept]), torch.from_numpy(np.stack(actions)[kept])
            observation, action = (
                torch.cat([old, new]) if len(old) else new for old, new in zip((observation, action), now, strict=True)
            )
        if len(action):
            self.adapt(observation, action, t)

    def adapt(self, observation: Tensor, action: Tensor, t: int = 0) -> None:
        """Moves phi, from theta on, by the data of observations [M, D] and actions [M] or [M, A]; `t` seeds the order."""
        part = self.part
        self._become_target()
        with torch.no_grad():
            base = self.policy.distribution(observation).log_prob(action)
        divergence, steps = 0.0, 0
        for epoch in range(part.behavior_epochs):
            order = torch.randperm(len(action), generator=seeded(*self._key, t, epoch))
            count, total = min(part.behavior_minibatches, len(action)), 0.0
            for some in [slice(None)] if count == 1 else order.tensor_split(count):
                total += self._learn(observation[some], action[some], base[some])
            divergence, steps = total / count, steps + count
            if part.behavior_target_kl is not None and divergence > part.behavior_target_kl:
                break
        self._seen.append((divergence, steps))

    def _learn(self, observation: Tensor, action: Tensor, base: Tensor) -> float:
        """One step of phi; the estimated KL(theta || phi) before it."""
        found: list[Tensor] = []

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            now = self.behavior.distribution(observation)
            log_ratio = now.log_prob(action) - base
            found.append((log_ratio.detach().exp() - 1 - log_ratio.detach()).mean())
            value = self.part.loss(log_ratio).mean()
            if self.part.behavior_kl:
                with torch.no_grad():
                    target = self.policy.distribution(observation)
                value = value + self.part.behavior_kl * target.kl(now).mean()
            return value, {}

        self.learner.learn(loss)
        return float(found[0])

    def _joined(self, episodes: list[Episode]) -> Experience:
        """All stretches of the buffer as one experience; the newest stands last."""
        made = [self._columns(stretch) for stretch in self.stretches]
        columns = {name: torch.cat([one[name] for one in made]) for name in made[0]}
        seen, done = (
            torch.cat([getattr(stretch.played, name) for stretch in self.stretches])
            for name in ("observation", "action")
        )
        new = slice(len(seen) - self.environments.count, None)
        if len(self.stretches) > 1:
            columns["fresh"] = torch.zeros(len(seen), dtype=torch.bool)
            columns["fresh"][new] = True
        found = self._experience(Played(seen, done), columns, int(self.stretches[-1].mask.sum()), episodes)
        return replace(found, new=new)

    def metrics(self) -> dict[str, float]:
        """Those of Player; behavior/kl: how far phi had moved before its last step, and behavior/steps, means over its updates."""
        found = super().metrics()
        if self._seen:
            divergence, steps = zip(*self._seen, strict=True)
            found |= {"behavior/kl": float(np.mean(divergence)), "behavior/steps": float(np.mean(steps))}
        return found

    def state_dict(self) -> dict[str, Any]:
        """That of Player, the buffer, phi and its optimizer."""
        return {
            **super().state_dict(),
            "buffer": [_packed(stretch) for stretch in self.stretches],
            "behavior": {name: value.clone() for name, value in self.behavior.state_dict().items()},
            "behavior_learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        self.stretches = [_unpacked(one) for one in state["buffer"]]
        self.behavior.load_state_dict(state["behavior"])
        self.learner.load_state_dict(state["behavior_learner"])
        return super().load_state_dict(state)


def _flat(stretches: list[Stretch]) -> tuple[Tensor, Tensor]:
    """Observations [M, D] and actions [M] or [M, A] of all steps that were played."""
    if not stretches:
        return torch.empty(0), torch.empty(0)
    seen, done = (
        torch.cat([getattr(one.played, name)[one.mask] for one in stretches]) for name in ("observation", "action")
    )
    return seen, done


def _packed(stretch: Stretch) -> dict[str, Tensor]:
    tensors = {one.name: getattr(stretch, one.name) for one in fields(stretch) if one.name != "played"}
    return {**tensors, "observation": stretch.played.observation, "action": stretch.played.action}


def _unpacked(tensors: Mapping[str, Tensor]) -> Stretch:
    rest = {name: tensors[name] for name in tensors if name not in ("observation", "action")}
    return Stretch(Played(tensors["observation"], tensors["action"]), **rest)
