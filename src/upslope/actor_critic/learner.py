"""One update after another: critic, actor, temperature, targets, as the recipe says."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.actor_critic.critics import reads
from upslope.actor_critic.flat import Flat, Target
from upslope.actor_critic.minibatch import Minibatch, Networks
from upslope.actor_critic.policies import Head
from upslope.actor_critic.recipe import ActorCritic
from upslope.actor_critic.replay import Layout
from upslope.actor_critic.temperature import alpha_of
from upslope.policies.control import ControlPolicy
from upslope.recipe import State


class Learner:
    """The networks of a recipe and everything that changes when it learns.

    layout      of the rows of transitions that `update` takes
    scale       (offset [W], factor [W]) by which rows become what the networks see: standardized, rewards scaled; None: as they are
    generator   of all noise in updates
    updates     (critic) updates so far
    progress    the share of the run that lies behind the update, 0 to 1, by which scheduled rates fall
    """

    def __init__(
        self,
        recipe: ActorCritic,
        policy: ControlPolicy,
        layout: Layout,
        generator: torch.Generator,
        *,
        scale: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.recipe, self.layout, self.generator, self.scale = recipe, layout, generator, scale
        self.columns = layout.columns()
        self.size = layout.action
        inputs = layout.observation + layout.action
        update: Any = recipe.update
        self.flats: dict[str, Flat] = {}
        self.policy = policy
        self.flats["policy"] = Flat(policy, update.actor_lr)
        self.networks = Networks(Head(policy))
        self.targets: dict[str, Target] = {}
        if recipe.critic is not None:
            self.networks.critic = recipe.critic.build(inputs)  # type: ignore[attr-defined]
            self.flats["critic"] = Flat(self.networks.critic, update.critic_lr)
            self.targets["critic"] = self._target("critic")
            self.networks.target_critic = self.targets["critic"].network  # type: ignore[assignment]
        if recipe.value is not None:
            self.networks.value = recipe.value.build(layout.observation)  # type: ignore[attr-defined]
            self.flats["value"] = Flat(self.networks.value, update.critic_lr)
        if recipe.proposer is not None:
            part: Any = recipe.proposer
            self.networks.proposer = part.build(layout.observation, layout.action)
            self.flats["proposer"] = Flat(self.networks.proposer, part.lr)
        if recipe.any_reads("reads_target_policy"):
            self.targets["policy"] = self._target("policy")
            self.networks.target_policy = Head(self.targets["policy"].network)  # type: ignore[arg-type]
        self.state: State = recipe.init()
        self.networks.alpha = self._alpha()
        self.updates, self.progress = 0, 0.0
        self._penalties = [(key, part) for key, part in recipe.parts().items() if key.partition(".")[0] == "penalty"]
        self._value_last = reads(recipe.value, "after_critic")
        self._own_inputs = any(reads(part, "reads_action_gradient") for _, part in self._penalties)
        self.stats: dict[str, float] = {}

    def _target(self, name: str) -> Target:
        online = self.flats[name]
        return Target(online, copy.deepcopy(online.network))

    def _alpha(self) -> float:
        return alpha_of(self.recipe.temperature, self.state.get("temperature", {}))

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows [B, width] as the networks see them."""
        return rows if self.scale is None else torch.addcmul(self.scale[0], rows, self.scale[1])

    def index_log(self, rows: Tensor) -> None:
        """Lets a part that looks things up in the whole log make what it needs of all of its rows [n, width]."""
        for _, part in self.recipe.stages():
            if reads(part, "reads_index"):
                first, last = self.columns["observation"]
                begin, end = self.columns["action"]
                rows = self.scaled(rows)
                self.networks.index = part.index(rows[:, first:last], rows[:, begin:end])  # type: ignore[attr-defined]

    def minibatch(self, rows: Tensor) -> Minibatch:
        """Rows [B, width] with the networks as they are."""
        ensemble: Any = self.recipe.ensemble
        return Minibatch(
            self.scaled(rows),
            self.columns,
            self.networks,
            self.generator,
            combine=ensemble,
            choose=getattr(ensemble, "choose", None),
            own_inputs=self._own_inputs,
        )

    def update(self, rows: Tensor, *, progress: float = 0.0, watch: bool = False) -> None:
        """One update on rows [B, width]; `watch` leaves what was seen in `stats`, which costs a little."""
        recipe, update = self.recipe, self.recipe.update
        self.progress = progress
        m = self.minibatch(rows)
        self.updates += 1
        seen: dict[str, Tensor] = {}
        if recipe.value is not None and not self._value_last:
            self._other("value", m, seen)
        actor_due = self.updates % update.actor_every == 0  # type: ignore[attr-defined]
        if actor_due and update.first == "actor":  # type: ignore[attr-defined]
            self._actor(m, seen)
        if recipe.critic is not None:
            self._critic(m, seen)
        if recipe.value is not None and self._value_last:
            self._other("value", m, seen)
        if recipe.proposer is not None:
            self._other("proposer", m, seen)
        if actor_due and update.first == "critic":  # type: ignore[attr-defined]
            self._actor(m, seen)
        targets: Any = recipe.targets
        if targets is not None and self.updates % targets.every == 0:
            for target in self.targets.values():
                target.follow(targets.rate)
        if watch:
            self.stats = {name: float(value.detach().mean()) for name, value in seen.items()}
            if recipe.temperature is not None:
                self.stats["alpha"] = self.networks.alpha

    def _other(self, name: str, m: Minibatch, seen: dict[str, Tensor]) -> None:
        loss = getattr(self.recipe, name)(m)
        self._step(name, loss)
        seen[f"{name}_loss"] = loss

    def _critic(self, m: Minibatch, seen: dict[str, Tensor]) -> None:
        with torch.no_grad():
            target = self.recipe.target(m)  # type: ignore[misc]
        m.target = target
        q = m.logged_q()
        loss = self.recipe.regression(q, target)  # type: ignore[misc]
        seen["critic_loss"] = loss
        for key, part in self._penalties:
            if part.stateful:
                penalty, self.state[key] = part(m, self.state[key])
            else:
                penalty = part(m)
            seen[f"penalty/{type(part).__name__}"] = penalty
            loss = loss + penalty
        self._step("critic", loss)
        seen["q"], seen["target"] = q, target

    def _actor(self, m: Minibatch, seen: dict[str, Tensor]) -> None:
        recipe = self.recipe
        weights: tuple[Tensor, ...] = ()
        if recipe.weight is not None:
            with torch.no_grad():
                weight = recipe.weight(recipe.advantage(m))  # type: ignore[misc]
            seen["weight"] = weight
            weights = (weight,)
        loss = recipe.actor(m, *weights)
        if recipe.behavior is not None:
            loss = recipe.behavior(m, loss)
        self._step("policy", loss)
        seen["actor_loss"] = loss
        if m.policy_q is not None:
            seen["policy_q"] = m.policy_q
        if recipe.temperature is not None:
            logp = m.sample()[1].detach().mean()
            seen["entropy"] = -logp
            now, rate = self.state["temperature"], self._factor("policy")
            self.state["temperature"] = recipe.temperature(now, float(logp), self.size, rate)
            self.networks.alpha = self._alpha()

    def _step(self, name: str, loss: Tensor) -> None:
        flat = self.flats[name]
        flat.step(loss, lr=flat.lr * self._factor(name))

    def _factor(self, name: str) -> float:
        """What the schedule multiplies a network's rate by."""
        update: Any = self.recipe.update
        return float(update.factor("actor" if name == "policy" else "critic", self.progress))

    def finite(self) -> str | None:
        """The name of a network that has a number that is not finite, or None."""
        return next((name for name, flat in self.flats.items() if not bool(flat.values.isfinite().all())), None)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but for the transitions and the generator."""
        return {
            "flats": {name: flat.state_dict() for name, flat in self.flats.items()},
            "targets": {name: target.values for name, target in self.targets.items()},
            "parts": self.state,
            "updates": self.updates,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned."""
        for name, flat in self.flats.items():
            flat.load_state_dict(state["flats"][name])
        for name, target in self.targets.items():
            target.values.copy_(state["targets"][name])
        self.state, self.updates = dict(state["parts"]), int(state["updates"])
        self.generator.set_state(state["generator"])
        self.networks.alpha = self._alpha()
