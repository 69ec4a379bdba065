"""Learning from a step's experience by a recipe: credit once, then epochs of mini-batches over transitions or rows."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.actor_critic.flat import flatten
from upslope.batch import Batch
from upslope.collect import seeded
from upslope.config import OptimizerConfig
from upslope.control.playing import Experience, Played, Player
from upslope.learner import Learner, MicroBatch, StepResult
from upslope.parts.optimizing import Optimizing
from upslope.parts.steps import Optimizer, StepUpdate
from upslope.policies.control import ControlPolicy, Critic
from upslope.policies.dense import Dense, dense
from upslope.policies.distributions import Distribution
from upslope.recipe import CREDIT_STAGES, Recipe, State
from upslope.update import UpdateResult

MODEL_COLUMNS = frozenset({"logp", "entropy", "value"})
ALWAYS = frozenset({"weight", "valid"})


class StepLearner(Learner):
    """A Learner with the optimizer that a recipe's part names, on all parameters as one vector: one call for each operation."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, part: Optimizer, total_steps: int) -> None:
        config = OptimizerConfig(
            lr=lr,
            betas=part.betas,
            weight_decay=part.weight_decay,
            warmup=part.warmup,
            schedule=part.schedule,
            grad_clip=part.grad_clip,
        )
        self.network = [parameter for parameter in parameters if parameter.requires_grad]
        self.flat = nn.Parameter(flatten(self.network))
        self._gradient = torch.zeros_like(self.flat, requires_grad=False)
        self._pieces = _pieces(self._gradient, self.network)
        self._dense: list[Dense] = []
        super().__init__([self.flat], lr, config, total_steps)
        if part.kind == "adam":
            for group in self.optimizer.param_groups:
                group["eps"] = part.eps
        elif part.kind == "rmsprop":
            self.optimizer = torch.optim.RMSprop(
                [self.flat], lr=lr, alpha=0.99, eps=part.eps, weight_decay=part.weight_decay
            )
        else:
            self.optimizer = torch.optim.SGD([self.flat], lr=lr, weight_decay=part.weight_decay)

    def learn(self, make: MicroBatch) -> StepResult:
        """One step down a loss, as `step` takes it: clipped, and left out where the loss or its gradient is not finite."""
        result = StepResult()
        loss, stats = make()
        value = float(loss.detach())
        if math.isfinite(value):
            gradient = self._differentiate(loss)
            norm = result.grad_norm = math.sqrt(float(gradient.dot(gradient)))
            if math.isfinite(norm):
                if norm > self.config.grad_clip:
                    gradient.mul_(self.config.grad_clip / (norm + 1e-6))
                result.lr = self.rate()
                self._move(gradient, result.lr)
                self.taken += 1
            else:
                result.skipped = f"the gradient's norm is {norm}"
        else:
            result.skipped = f"the loss is {value}"
        names = list(stats)
        values = torch.stack([stats[name].detach() for name in names]).tolist() if names else []
        result.stats = dict(zip(names, values, strict=True))
        return result

    def leave_to(self, network: Dense) -> None:
        """Has the gradient of these parameters made by the network itself, from that of its outputs."""
        self._dense.append(network)

    def _differentiate(self, loss: Tensor) -> Tensor:
        """The gradient [P], in a vector that the next call writes over. What reaches a parameter on both ways adds up."""
        used = [(network, network.leaf) for network in self._dense if network.leaf is not None]
        leaves = [leaf for _, leaf in used]
        found = torch.autograd.grad(loss, [*leaves, *self.network], allow_unused=True)
        self._gradient.zero_()
        for (network, _), gradient in zip(used, found, strict=False):
            if gradient is not None:
                network.pull(gradient, [self._pieces[id(parameter)] for parameter in network.parameters])
        for parameter, gradient in zip(self.network, found[len(leaves) :], strict=True):
            if gradient is not None:
                self._pieces[id(parameter)].add_(gradient)
        return self._gradient

    @torch.no_grad()
    def _move(self, gradient: Tensor, lr: float) -> None:
        """The optimizer's step. Adam's by its kernel itself: torch's wrapper around it takes longer than the step."""
        group, state = self.optimizer.param_groups[0], self.optimizer.state.get(self.flat)
        group["lr"] = lr
        if not state or not group.get("fused") or not hasattr(torch, "_fused_adamw_"):
            self.flat.grad = gradient
            self.optimizer.step()
            self.flat.grad = None
            return
        state["step"] += 1
        torch._fused_adamw_(
            [self.flat], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            lr=lr, beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Credited rows with what was seen and done in them: a Batch [M, 1] of transitions with observations [M, D] and actions
    [M, ...], or one [R, T] of whole rows with [R, T, D] and [R, T, ...].
    """

    batch: Batch
    observation: Tensor
    action: Tensor

    def select(self, rows: Tensor | slice) -> "Rows":
        """Some of them, [m] int64 or a slice."""
        return Rows(self.batch.select(rows), self.observation[rows], self.action[rows])


class StepUpdater:
    """Updates policy and critic. One learner for both, or with value_coefficient None one for each."""

    def __init__(self, recipe: Recipe, policy: ControlPolicy, critic: Critic | None, total_steps: int) -> None:
        update, optimizer = recipe.update, recipe.optimizer
        assert isinstance(update, StepUpdate)
        assert isinstance(optimizer, Optimizing)
        self.recipe, self.policy, self.critic, self.rule = recipe, policy, critic, update
        own = list(policy.parameters())
        self.critic_learner: StepLearner | None = None
        self.joint = critic is not None and update.value_coefficient is not None
        steps = update.epochs * update.minibatches
        if critic is not None and not self.joint:
            apart = optimizer.for_critic()
            passes = steps if update.critic_epochs is None else update.critic_epochs * update.critic_minibatches
            self.critic_learner = StepLearner(list(critic.parameters()), apart.lr, apart, total_steps * passes)
        elif critic is not None:
            own += list(critic.parameters())
        self.learner = self._learner(own, total_steps * steps)
        self._networks = self._plain_networks()
        self.telling = True  # whether the statistics of the next optimizer step are wanted
        self._shares: dict[torch.Size, dict[str, Tensor]] = {}
        self._shared_shares = update.transitions and recipe.denominators_of_mask
        parts = [part for stage, part in recipe.stages() if stage not in CREDIT_STAGES]
        self.read = frozenset[str]().union(*(part.needs for part in parts)) | ALWAYS
        self.needs_entropy = "entropy" in self.read

    def _plain_networks(self) -> tuple[Dense | None, Dense | None]:
        """Actor and critic without autograd, each where it is plain and its learner can take the gradient from it."""
        known = type(self.policy) is ControlPolicy and (self.critic is None or type(self.critic) is Critic)
        if not known or (self.critic is not None and self.critic.shared):
            return None, None
        actor = dense(self.policy.body, self.policy.head)
        critic = None
        if self.critic is not None and self.critic.body is not None:
            critic = dense(self.critic.body, self.critic.head)
        return _left_to(self.learner, actor), _left_to(self.learner if self.joint else self.critic_learner, critic)

    def _learner(self, parameters: list[nn.Parameter], total: int) -> Any:
        """Who moves the policy's parameters, in `total` steps of the whole run."""
        optimizer = self.recipe.optimizer
        assert isinstance(optimizer, Optimizer)
        return StepLearner(parameters, optimizer.lr, optimizer, total)

    def play(self, player: Player, key: tuple[object, ...]) -> Experience:
        """The experience of one step of the run: played with the policy as it is. Raises EnvironmentFailure."""
        return player.play(seeded(*key, "actions"))

    def update(
        self, played: Played, batch: Batch, states: State, key: tuple[object, ...]
    ) -> tuple[UpdateResult, State]:
        """All epochs over one step's experience; `key` seeds their order."""
        prepared, states = self.recipe.credit(batch, states)
        found = _spread_of(prepared)
        rows = self._rows(prepared, played)
        result = UpdateResult()
        metrics, states = self._policy_epochs(played, rows, states, key, result)
        metrics |= self._critic_epochs(rows, key, result)
        result.metrics = {**found, **metrics}
        return result, states

    def _rows(self, prepared: Batch, played: Played) -> Rows:
        batch = prepared.only(self.read - MODEL_COLUMNS)
        if not self.rule.transitions:
            return Rows(batch, played.observation, played.action)
        return Rows(batch.transitions(), played.observation[prepared.mask], played.action[prepared.mask])

    def _divided(self, batch: Batch) -> Batch:
        """With its denominators: those of the last mini-batch of this size, where nothing but the mask makes them."""
        if not (self._shared_shares and batch.complete):
            return self.recipe.denominators(batch)
        shape = batch.mask.shape
        if shape not in self._shares:
            made = self.recipe.denominators(batch)
            self._shares[shape] = {name: getattr(made, name) for name in made if name not in batch}
        return batch.extended(self._shares[shape])

    def _policy_epochs(
        self, played: Played, rows: Rows, states: State, key: tuple[object, ...], result: UpdateResult
    ) -> tuple[dict[str, float], State]:
        """What the policy learns from credited rows: means over its steps, and the parts' next states.

        What the parts tell is told in the last epoch, when the rows have been used up: in every epoch it costs a tenth of them.
        """
        totals = dict[str, list[float]]()
        for epoch in range(self.rule.epochs):
            order = torch.randperm(len(rows.batch), generator=seeded(*key, "minibatches", epoch))
            divergence, count = 0.0, 0
            self.telling = epoch == self.rule.epochs - 1 or self.rule.target_kl is not None
            for mini in self._minibatches(rows, order, self.rule.minibatches):
                stats, states = self._step(mini, states, result)
                for name, value in stats.items():
                    totals.setdefault(name, []).append(value)
                divergence, count = divergence + stats.get("ratio/kl", 0.0), count + 1
            if self.rule.target_kl is not None and divergence > self.rule.target_kl * count:
                break
        means = {name: sum(values) / len(values) for name, values in totals.items()}
        return {**means, "epochs": float(epoch + 1)}, states

    def _critic_epochs(self, rows: Rows, key: tuple[object, ...], result: UpdateResult) -> dict[str, float]:
        """The critic's own passes, where it has any: means over its steps."""
        if self.critic_learner is None or self.rule.critic_epochs is None:
            return {}
        found = list[dict[str, float]]()
        for epoch in range(self.rule.critic_epochs):
            order = torch.randperm(len(rows.batch), generator=seeded(*key, "critic", epoch))
            runs = self._minibatches(rows, order, self.rule.critic_minibatches)
            found += [self._critic_step(mini, result) for mini in runs]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    @staticmethod
    def _minibatches(rows: Rows, order: Tensor, count: int) -> Iterator[Rows]:
        """`count` runs of the shuffled rows: shuffled once, so that each is a slice."""
        count = min(count, len(rows.batch))
        if count == 1:
            yield rows
            return
        rows = rows.select(order)
        edges = [len(rows.batch) * part // count for part in range(count + 1)]
        for start, end in itertools.pairwise(edges):
            run = slice(start, end)
            if rows.batch.complete or bool(rows.batch.mask[run].any()):
                yield rows.select(run)

    def _step(self, mini: Rows, states: State, result: UpdateResult) -> tuple[dict[str, float], State]:
        recipe, after = self.recipe, states

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            nonlocal after
            batch, after = recipe.controlled(mini.batch.extended(self._columns(mini)), states)
            batch = self._divided(batch)
            total, stats = recipe.loss(batch, statistics=self.telling)
            if self.joint:
                values = self._critic_loss(batch)
                total = total + self.rule.value_coefficient * values  # type: ignore[operator]
                stats["critic/loss"] = values.detach()
            return total, stats

        step = self.learner.learn(loss)
        stats = {**step.stats, "grad_norm": step.grad_norm}
        if step.skipped:
            result.skipped.append(step.skipped)
        if self.critic_learner is not None and self.rule.critic_epochs is None:
            stats |= self._critic_step(mini, result)
        return stats, after

    def _columns(self, mini: Rows) -> dict[str, Tensor]:
        """logp, and what else is read under the current networks, with gradient. Observations are [M, D] or [R, T, D].

        One that is not finite shows in the loss or in its gradient.
        """
        actor = self._networks[0]
        seen = self.policy.normalized(mini.observation)
        features: Tensor | None = None
        if actor is None:
            features = self.policy.body(seen)
            found = self.policy.distribution_at(features)
        else:
            found = self.policy.distribution_of(actor.outputs(seen))
        columns = {"logp": found.log_prob(mini.action)}
        if self.needs_entropy:
            columns["entropy"] = found.entropy()
        if self.joint:
            columns["value"] = self._value(seen, features)
        found_alike = {name: self._like(mini.batch, column) for name, column in columns.items()}
        return {**found_alike, **self._further(found, seen, mini)}

    def _further(self, found: Distribution, seen: Tensor, mini: Rows) -> dict[str, Tensor]:
        """Columns [M, 1, ...] or [R, T, ...] that a subclass makes of pi(.|s) and of the normalised observations."""
        return {}

    def _like(self, mini: Batch, column: Tensor) -> Tensor:
        """A column as those of the mini-batch are: [M, 1], or [R, T] and 0 where nothing was played."""
        return column.unsqueeze(1) if self.rule.transitions else torch.where(mini.mask, column, 0.0)

    def _critic_loss(self, batch: Batch) -> Tensor:
        part: Any = self.recipe.critic
        loss: Tensor = (part(batch) * batch.token_share).sum()
        return loss

    def _value(self, seen: Tensor, features: Tensor | None = None) -> Tensor:
        """V with gradient, of normalised observations [..., D]; `features`: the policy's, for a critic that shares them."""
        critic, plain = self.critic, self._networks[1]
        assert critic is not None
        if plain is not None:
            return plain.outputs(seen).squeeze(-1)
        if critic.body is not None:
            features = critic.body(seen)
        elif features is None:
            features = self.policy.body(seen)
        return critic.at(features)

    def _critic_step(self, mini: Rows, result: UpdateResult) -> dict[str, float]:
        learner = self.critic_learner
        assert learner is not None

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            batch = mini.batch.extended(
                {"value": self._like(mini.batch, self._value(self.policy.normalized(mini.observation)))}
            )
            values = self._critic_loss(self._divided(batch))
            return values, {"critic/loss": values.detach()}

        step = learner.learn(loss)
        if step.skipped:
            result.skipped.append(f"critic: {step.skipped}")
        return {**step.stats, "critic/grad_norm": step.grad_norm}


def _left_to(learner: Any, network: Dense | None) -> Dense | None:
    if network is None or not isinstance(learner, StepLearner):
        return None
    learner.leave_to(network)
    return network


def _pieces(vector: Tensor, parameters: list[nn.Parameter]) -> dict[int, Tensor]:
    """The pieces of a vector [P], each in the shape of its parameter, by the parameter's id."""
    pieces = vector.split([parameter.numel() for parameter in parameters])
    return {id(like): piece.view_as(like) for piece, like in zip(pieces, parameters, strict=True)}


def _spread_of(batch: Batch) -> dict[str, float]:
    """How much of the returns' variance the critic foretold: 1 all of it, 0 no more than their mean, less than 0: worse."""
    if "returns" not in batch or "old_value" not in batch:
        return {}
    returns, value = batch.returns[batch.mask], batch.old_value[batch.mask]
    spread = float(returns.var(correction=0))
    return {"critic/explained_variance": 1 - float((returns - value).var(correction=0)) / spread} if spread else {}
