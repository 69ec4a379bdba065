"""Learning from a step's experience by a recipe: credit once, then epochs of mini-batches over transitions or rows."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from upslope.actor_critic.flat import flatten
from upslope.batch import Batch
from upslope.collect import seeded
from upslope.config import OptimizerConfig
from upslope.control.playing import Played
from upslope.learner import Learner, MicroBatch, StepResult
from upslope.parts.steps import Optimizer, StepUpdate
from upslope.policies.control import ControlPolicy, Critic
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
            found = torch.autograd.grad(loss, self.network, allow_unused=True, materialize_grads=True)
            gradient = torch.cat([part.reshape(-1) for part in found])
            norm = result.grad_norm = float(gradient.norm())
            if math.isfinite(norm):
                if norm > self.config.grad_clip:
                    gradient.mul_(self.config.grad_clip / (norm + 1e-6))
                result.lr = self.rate()
                for group in self.optimizer.param_groups:
                    group["lr"] = result.lr
                self.flat.grad = gradient
                self.optimizer.step()
                self.flat.grad = None
                self.taken += 1
            else:
                result.skipped = f"the gradient's norm is {norm}"
        else:
            result.skipped = f"the loss is {value}"
        names = list(stats)
        values = torch.stack([stats[name].detach() for name in names]).tolist() if names else []
        result.stats = dict(zip(names, values, strict=True))
        return result


class StepUpdater:
    """Updates policy and critic. One learner for both, or with value_coefficient None one for each."""

    def __init__(self, recipe: Recipe, policy: ControlPolicy, critic: Critic | None, total_steps: int) -> None:
        update, optimizer = recipe.update, recipe.optimizer
        assert isinstance(update, StepUpdate)
        assert isinstance(optimizer, Optimizer)
        self.recipe, self.policy, self.critic, self.rule = recipe, policy, critic, update
        total = total_steps * update.epochs * update.minibatches
        own = list(policy.parameters())
        self.critic_learner: StepLearner | None = None
        self.joint = critic is not None and update.value_coefficient is not None
        if critic is not None and not self.joint:
            rate = optimizer.lr if optimizer.critic_lr is None else optimizer.critic_lr
            self.critic_learner = StepLearner(list(critic.parameters()), rate, optimizer, total)
        elif critic is not None:
            own += list(critic.parameters())
        self.learner = StepLearner(own, optimizer.lr, optimizer, total)
        parts = [part for stage, part in recipe.stages() if stage not in CREDIT_STAGES]
        self.read = frozenset[str]().union(*(part.needs for part in parts)) | ALWAYS
        self.needs_entropy = "entropy" in self.read

    def update(
        self, played: Played, batch: Batch, states: State, key: tuple[object, ...]
    ) -> tuple[UpdateResult, State]:
        """All epochs over one step's experience; `key` seeds their order."""
        prepared, states = self.recipe.credit(batch, states)
        found = _spread_of(prepared)
        rows = prepared.only(self.read - MODEL_COLUMNS)
        observation, action = played.observation, played.action
        if self.rule.transitions:
            rows = rows.transitions()
            observation, action = observation[prepared.mask], action[prepared.mask]
        result, totals, steps = UpdateResult(), dict[str, float](), 0
        for epoch in range(self.rule.epochs):
            order = torch.randperm(len(rows), generator=seeded(*key, "minibatches", epoch))
            divergence, count = 0.0, 0
            for mini, seen, done in self._minibatches(rows, observation, action, order):
                stats, states = self._step(mini, seen, done, states, result)
                for name, value in stats.items():
                    totals[name] = totals.get(name, 0.0) + value
                divergence, count, steps = divergence + stats.get("ratio/kl", 0.0), count + 1, steps + 1
            if self.rule.target_kl is not None and divergence > self.rule.target_kl * count:
                break
        result.metrics = {
            **found,
            **{name: value / steps for name, value in totals.items()},
            "epochs": float(epoch + 1),
        }
        return result, states

    def _minibatches(
        self, rows: Batch, observation: Tensor, action: Tensor, order: Tensor
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Runs of the shuffled rows: shuffled once, so that each is a slice."""
        count = min(self.rule.minibatches, len(rows))
        if count == 1:
            yield rows, observation, action
            return
        rows, observation, action = rows.select(order), observation[order], action[order]
        edges = [len(rows) * part // count for part in range(count + 1)]
        for start, end in itertools.pairwise(edges):
            run = slice(start, end)
            if bool(rows.mask[run].any()):
                yield rows.select(run), observation[run], action[run]

    def _step(
        self, mini: Batch, observation: Tensor, action: Tensor, states: State, result: UpdateResult
    ) -> tuple[dict[str, float], State]:
        recipe, after = self.recipe, states

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            nonlocal after
            batch, after = recipe.minibatch(mini.extended(self._columns(mini, observation, action)), states)
            total, stats = recipe.loss(batch)
            if self.joint:
                values = self._critic_loss(batch)
                total = total + self.rule.value_coefficient * values  # type: ignore[operator]
                stats["critic/loss"] = values.detach()
            return total, stats

        step = self.learner.learn(loss)
        stats = {**step.stats, "grad_norm": step.grad_norm}
        if step.skipped:
            result.skipped.append(step.skipped)
        if self.critic_learner is not None:
            stats |= self._critic_step(mini, observation, result)
        return stats, after

    def _columns(self, mini: Batch, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """logp, and what else is read under the current networks, with gradient. Observations are [M, D] or [R, T, D].

        One that is not finite shows in the loss or in its gradient.
        """
        features = self.policy.features(observation)
        found = self.policy.distribution_at(features)
        columns = {"logp": found.log_prob(action)}
        if self.needs_entropy:
            columns["entropy"] = found.entropy()
        if self.joint:
            assert self.critic is not None
            columns["value"] = self.critic.at(features) if self.critic.shared else self.critic(observation)
        return {name: self._like(mini, column) for name, column in columns.items()}

    def _like(self, mini: Batch, column: Tensor) -> Tensor:
        """A column as those of the mini-batch are: [M, 1], or [R, T] and 0 where nothing was played."""
        return column.unsqueeze(1) if self.rule.transitions else torch.where(mini.mask, column, 0.0)

    def _critic_loss(self, batch: Batch) -> Tensor:
        part: Any = self.recipe.critic
        loss: Tensor = (part(batch) * batch.token_share).sum()
        return loss

    def _critic_step(self, mini: Batch, observation: Tensor, result: UpdateResult) -> dict[str, float]:
        learner, critic = self.critic_learner, self.critic
        assert learner is not None
        assert critic is not None

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            batch = mini.extended({"value": self._like(mini, critic(observation))})
            values = self._critic_loss(self.recipe.denominators(batch))
            return values, {"critic/loss": values.detach()}

        step = learner.learn(loss)
        if step.skipped:
            result.skipped.append(f"critic: {step.skipped}")
        return {**step.stats, "critic/grad_norm": step.grad_norm}


def _spread_of(batch: Batch) -> dict[str, float]:
    """How much of the returns' variance the critic foretold: 1 all of it, 0 no more than their mean, less than 0: worse."""
    if "returns" not in batch or "old_value" not in batch:
        return {}
    returns, value = batch.returns[batch.mask], batch.old_value[batch.mask]
    spread = float(returns.var(correction=0))
    return {"critic/explained_variance": 1 - float((returns - value).var(correction=0)) / spread} if spread else {}
