"""One step's learning: reference and critic columns, `prepare`, mini-batches, micro-batches, optimizer steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.collect import seeded
from upslope.learner import Learner, MicroBatch, NotFiniteError, StepResult
from upslope.recipe import Recipe, State
from upslope.rollout import Rollouts

MODEL_COLUMNS = frozenset({"logp", "entropy", "hidden", "log_distribution"})
"""Columns that the policy computes, with gradient, for every micro-batch."""


@dataclass
class Actors:
    """Who scores tokens in a run: the policy, the frozen reference and the critic (None where the recipe reads neither)."""

    policy: Any
    learner: Learner
    reference: Any = None
    critic: Any = None
    critic_learner: Learner | None = None


@dataclass
class UpdateResult:
    """Metrics of the step's update, and the reasons of skipped optimizer steps."""

    metrics: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Updater:
    """Learns from collected rollouts by a recipe. Loss and gradient do not depend on `tokens_per_pass`."""

    def __init__(self, recipe: Recipe, actors: Actors, *, tokens_per_pass: int, recompute_old_logp: bool) -> None:
        self.recipe, self.actors, self.tokens_per_pass, self.recompute = (
            recipe,
            actors,
            tokens_per_pass,
            recompute_old_logp,
        )
        self.columns = (recipe.needs & MODEL_COLUMNS) | {"logp"}

    def update(
        self, rollouts: Rollouts, batch: Batch, states: State, key: tuple[object, ...]
    ) -> tuple[UpdateResult, State]:
        """All epochs and mini-batches over one step's rollouts; `key` seeds the order of the groups."""
        batch = self._score(rollouts, batch)
        prepared, states = self.recipe.prepare(batch, states)
        prepared = prepared.replace(
            **{name: column.to(self.actors.policy.device) for name, column in _columns(prepared).items()}
        )
        result, steps = UpdateResult(), 0
        totals: dict[str, float] = {}
        gap: list[tuple[float, float, int]] = []
        for rows in self._minibatches(prepared, key):
            mini = prepared if len(rows) == len(prepared) else self.recipe.denominators(prepared.select(rows))
            if self.actors.critic_learner is not None:
                self._add(totals, self._critic_step(rollouts, mini, rows), "critic/", result)
            self._add(totals, self._policy_step(rollouts, mini, rows, None if steps else gap), "", result)
            steps += 1
        result.metrics = {name: value / steps for name, value in totals.items()}
        if gap:
            tokens = sum(count for _, _, count in gap)
            result.metrics["sampler_gap/mean"] = sum(total for total, _, _ in gap) / max(tokens, 1)
            result.metrics["sampler_gap/max"] = max(largest for _, largest, _ in gap)
        return result, states

    def _score(self, rollouts: Rollouts, batch: Batch) -> Batch:
        """The columns without gradient that the recipe reads: reference, recomputed old_logp, critic."""
        needs, made = self.recipe.needs, {}
        with torch.no_grad():
            if "ref_logp" in needs:
                made["ref_logp"] = self._in_passes(rollouts, _columns_of(self.actors.reference, rollouts, "logp"))
            if self.recompute and "old_logp" in needs:
                made["old_logp"] = made["logp"] = self._in_passes(
                    rollouts, _columns_of(self.actors.policy, rollouts, "logp")
                )
            if self.actors.critic is not None:
                made["old_value"] = self._in_passes(
                    rollouts, lambda rows: self.actors.critic.score(rollouts, rows)["value"]
                )
            for name in sorted(needs & (MODEL_COLUMNS - {"logp"})):
                made[name] = self._in_passes(rollouts, _columns_of(self.actors.policy, rollouts, name))
        return batch.replace(**{name: column.cpu() for name, column in made.items()})

    def _in_passes(self, rollouts: Rollouts, score: Callable[[Tensor], Tensor]) -> Tensor:
        found: Tensor | None = None
        for rows in self.actors.policy.plan(rollouts, tokens_per_pass=self.tokens_per_pass):
            part = score(rows)
            if found is None:
                found = part.new_zeros(len(rollouts), *part.shape[1:])
            found[rows] = part
        assert found is not None
        return found

    def _minibatches(self, batch: Batch, key: tuple[object, ...]) -> list[Tensor]:
        """Row indices of every optimizer step; groups stay whole, in a seeded order."""
        update, group = self.recipe.update, batch.group.cpu() if "group" in batch else torch.arange(len(batch))
        groups = int(group.max()) + 1
        count = min(update.minibatches, groups)  # type: ignore[union-attr]
        if count == 1:
            return [torch.arange(len(batch))] * update.epochs  # type: ignore[union-attr]
        chosen = []
        for epoch in range(update.epochs):  # type: ignore[union-attr]
            order = torch.randperm(groups, generator=seeded(*key, "minibatches", epoch))
            chosen += [torch.isin(group, part).nonzero().squeeze(1) for part in order.tensor_split(count)]
        return [rows for rows in chosen if batch.trained.cpu()[rows].any()]

    def _policy_step(self, rollouts: Rollouts, mini: Batch, rows: Tensor, gap: list | None) -> StepResult:
        kept = contributing(self.recipe, mini).nonzero().squeeze(1).cpu()
        if not len(kept):
            return StepResult(stats={"rows/trained": 0.0}, grad_norm=0.0)
        some = mini.select(kept)
        some = some.replace(token_share=some.mask / some.mask.sum(), row_share=some.trained / some.trained.sum())
        inner = rollouts.select(rows[kept])
        some = some.narrow(inner.tokens.shape[1])
        plan = self.actors.policy.plan(inner, tokens_per_pass=self.tokens_per_pass, keep_groups=self.recipe.keep_groups)
        result = self.actors.learner.step([self._micro_batch(inner, some, part, gap) for part in plan])
        result.stats["rows/trained"] = float(len(kept))
        return result

    def _micro_batch(self, rollouts: Rollouts, batch: Batch, rows: Tensor, gap: list | None) -> MicroBatch:
        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            columns = self.actors.policy.score(rollouts, self.columns, rows=rows)
            part = batch.select(rows)
            _check(columns, part.mask)
            if gap is not None:
                difference = ((columns["logp"].detach() - rollouts.logp[rows].to(part.logp.device)) * part.mask).abs()
                gap.append((float(difference.sum()), float(difference.max()), int(part.mask.sum())))
            return self.recipe.loss(part.replace(**columns))

        return loss

    def _critic_step(self, rollouts: Rollouts, mini: Batch, rows: Tensor) -> StepResult:
        critic, learner = self.actors.critic, self.actors.critic_learner
        inner = rollouts.select(rows)
        narrow = mini.narrow(inner.tokens.shape[1])

        def micro_batch(part_rows: Tensor) -> MicroBatch:
            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                columns = critic.score(inner, part_rows)
                part = narrow.select(part_rows)
                _check(columns, part.mask)
                total = (self.recipe.critic(part.replace(**columns)) * part.token_share).sum()  # type: ignore[misc]
                return total, {"loss": total.detach()}

            return loss

        assert learner is not None
        plan = self.actors.policy.plan(inner, tokens_per_pass=self.tokens_per_pass)
        return learner.step([micro_batch(part) for part in plan])

    @staticmethod
    def _add(totals: dict[str, float], step: StepResult, prefix: str, result: UpdateResult) -> None:
        for name, value in {**step.stats, "grad_norm": step.grad_norm}.items():
            totals[prefix + name] = totals.get(prefix + name, 0.0) + value
        if step.skipped:
            result.skipped.append(f"{prefix}{step.skipped}")


def contributing(recipe: Recipe, batch: Batch) -> Tensor:
    """Rows whose loss can have a gradient, [R] bool: without regularizer and further terms, those with an advantage."""
    vanishes = recipe.surrogate.vanishes_without_advantage and recipe.regularizer is None and not recipe.terms
    if not vanishes:
        return batch.trained
    reaching = (batch.advantage * batch.weight != 0) & batch.mask
    if not recipe.keep_groups:
        return reaching.any(1)
    return batch.group_mean(reaching.any(1).to(batch.logp.dtype))[0][batch.group] > 0


def _check(columns: Mapping[str, Tensor], mask: Tensor) -> None:
    for name, column in columns.items():
        if name != "log_distribution" and not column.isfinite().all():
            rows = int((~column.isfinite()).flatten(1).any(1).sum())
            raise NotFiniteError(f"'{name}' of the model is not finite in {rows} of {len(mask)} rows")


def _columns_of(scorer: Any, rollouts: Rollouts, name: str) -> Callable[[Tensor], Tensor]:
    return lambda rows: scorer.score(rollouts, frozenset({name}), rows=rows)[name]


def _columns(batch: Batch) -> dict[str, Tensor]:
    return {name: getattr(batch, name) for name in batch}
