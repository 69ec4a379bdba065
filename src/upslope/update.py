"""One step's learning: reference and critic columns, `prepare`, mini-batches, micro-batches, optimizer steps."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.collect import seeded
from upslope.heldout import loss_interval
from upslope.learner import AdamStep, Halves, Learner, MicroBatch, NotFiniteError, RateRule, StepResult
from upslope.parts.altered import altered_prompts, mismatched
from upslope.parts.expert import sampled_now
from upslope.policies.plans import score_in_passes
from upslope.recipe import Recipe, State
from upslope.rollout import Rollouts
from upslope.teaching import Teaching

MODEL_COLUMNS = frozenset({"logp", "entropy", "hidden", "log_distribution"})
"""Columns that the policy computes, with gradient, for every micro-batch."""

SCORED_COLUMNS = frozenset(
    {"ref_logp", "teacher_logp", "anchor_logp", "mismatched_logp", "mismatched_ref_logp", "grad_norm_squared"}
)
"""Columns without gradient that `Updater` adds for any recipe that reads them."""


@runtime_checkable
class Measures(Protocol):
    """A `control` part that reads columns which depend on hidden states and on the optimizer's next step.

    measured_from   columns of `LanguagePolicy.score` that they are made from; they live no longer than one forward pass
    words           entries of the columns "top_logp" and "top_ids"; None: the whole vocabulary
    measure         from rows with those columns, under the current policy and without gradient, and from what Adam knows of
                    the output layer [V, H], to columns [R, T] by name
    """

    measured_from: frozenset[str]
    words: int | None

    def measure(self, batch: Batch, step: AdamStep) -> dict[str, Tensor]: ...


@dataclass
class Actors:
    """Who scores tokens in a run: the policy, the frozen reference, the teacher and the critic (None where nothing reads them)."""

    policy: Any
    learner: Learner
    reference: Any = None
    critic: Any = None
    critic_learner: Learner | None = None
    teacher: Any = None


@dataclass
class UpdateResult:
    """Metrics of the step's update, and the reasons of skipped optimizer steps."""

    metrics: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Updater:
    """Learns from collected rollouts by a recipe. Loss and gradient do not depend on `tokens_per_pass`."""

    def __init__(self, recipe: Recipe, actors: Actors, *, tokens_per_pass: int, recompute_old_logp: bool) -> None:
        self.recipe, self.actors = recipe, actors
        self.tokens_per_pass, self.recompute = tokens_per_pass, recompute_old_logp
        self.columns = (recipe.needs_each_pass & MODEL_COLUMNS) | {"logp"}
        observes = recipe.observes()
        self.observe = {name: observes[name] for name in sorted(recipe.needs_each_pass & observes.keys())}
        self.measures = [part for _, part in recipe.stages() if isinstance(part, Measures)]
        self.policy = self._scoring_policy()
        self.teaching = Teaching(recipe, actors.policy, actors.teacher)
        self.compared = recipe.needs_each_pass & self.teaching.compared.keys()

    def _scoring_policy(self) -> Any:
        """The policy, with as many entries of the top columns as the parts measure from."""
        policy = self.actors.policy
        if self.measures:
            policy = copy.copy(policy)
            vocabulary = policy.model.get_output_embeddings().weight.shape[0]
            policy.top_k = max(vocabulary if part.words is None else part.words for part in self.measures)
        return policy

    def update(
        self, rollouts: Rollouts, batch: Batch, states: State, key: tuple[object, ...]
    ) -> tuple[UpdateResult, State]:
        """All epochs and mini-batches over one step's rollouts; `key` seeds the order of the groups."""
        self.teaching.restore(states)
        rollouts, batch = self.teaching.rewritten(rollouts, batch)
        told, prepared, states = self._credited(rollouts, batch, states, key)
        result, steps = UpdateResult(), 0
        totals: dict[str, float] = {}
        gap: list[tuple[float, float, int]] = []
        rates: list[float] = []
        for rows in self._minibatches(prepared, key):
            mini = _MiniBatch(self.recipe, prepared.select(rows), *_selected(rollouts, told, rows), states)
            if self.actors.critic_learner is not None:
                self._add(totals, self._critic_step(mini), "critic/", result)
            step = self._policy_step(mini, None if steps or self.teaching.rewrites else gap)
            self._add(totals, step, "", result)
            rates += [step.lr] if step.lr is not None else []
            states, steps = mini.states, steps + 1
        states = self.teaching.follow(states)
        result.metrics = {**self.teaching.metrics, **{name: value / steps for name, value in totals.items()}}
        if rates:
            result.metrics["lr"] = sum(rates) / len(rates)
        if gap:
            tokens = sum(count for _, _, count in gap)
            result.metrics["sampler_gap/mean"] = sum(total for total, _, _ in gap) / max(tokens, 1)
            result.metrics["sampler_gap/max"] = max(largest for _, largest, _ in gap)
        return result, states

    @torch.no_grad()
    def measure(
        self, rollouts: Rollouts, batch: Batch, states: State, key: tuple[object, ...], prompt: Tensor | None = None
    ) -> dict[str, float]:
        """The recipe's loss and statistics on these rows, all in one mini-batch, without learning from them.

        With `prompt` [R] the loss of a recipe without advantage has a bootstrap interval over prompts, loss_low and loss_high.
        """
        self.teaching.restore(states)
        told, prepared, states = self._credited(rollouts, batch, states, key)
        mini, totals = _MiniBatch(self.recipe, prepared, rollouts, told, states), dict[str, float]()
        size, groups = self.tokens_per_pass, self.recipe.keep_groups
        plan = list(self.policy.plan(rollouts, tokens_per_pass=size, keep_groups=groups))
        self._control(mini, plan)
        losses = []
        for rows in plan:
            part = mini.batch.select(rows).replace(**self._current(mini, rows))
            _, stats = self.recipe.loss(part)
            losses.append(self.recipe.row_losses(part))
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        if prompt is not None and self.recipe.advantage is None:  # of a policy gradient the level says nothing
            of_rows = torch.cat(losses)[torch.cat(plan).argsort()]
            totals |= loss_interval(self.recipe, mini.batch, totals["loss"], of_rows, prompt)
        return totals

    def _credited(
        self, rollouts: Rollouts, batch: Batch, states: State, key: tuple[object, ...]
    ) -> tuple[Rollouts, Batch, State]:
        """The rollouts as the teacher reads them; the batch after `credit`, on the policy's device; and the next states."""
        told, states = self.teaching.rollouts(rollouts, batch, states)
        prepared, states = self.recipe.credit(self._score(rollouts, told, batch, key), states)
        device = self.policy.device
        return told, prepared.replace(**{name: getattr(prepared, name).to(device) for name in prepared}), states

    def _score(self, rollouts: Rollouts, told: Rollouts, batch: Batch, key: tuple[object, ...]) -> Batch:
        """The columns without gradient that the recipe reads: reference, teacher, old_logp, critic, altered prompts.

        `told`: the rollouts as the teacher reads them.
        """
        recipe, policy = self.recipe, self.actors.policy
        needs, made = recipe.needs, {}
        with torch.no_grad():
            if "ref_logp" in needs:
                made["ref_logp"] = self._in_passes(rollouts, _columns_of(self.actors.reference, rollouts, "logp"))
            made |= self.teaching.before(recipe, rollouts, told, self.tokens_per_pass)
            made |= self._before(rollouts)
            scorers = {"mismatched_logp": policy, "mismatched_ref_logp": self.actors.reference}
            if needs & scorers.keys():
                other = mismatched(rollouts, policy.context_length)
                for name in sorted(needs & scorers.keys()):
                    made[name] = self._in_passes(other, _columns_of(scorers[name], other, "logp"))
            if "masked_logp" in needs:
                altered = altered_prompts(recipe, rollouts, policy.tokenizer, seeded(*key, "altered prompts"))
                made["masked_logp"] = self._in_passes(altered, _columns_of(policy, altered, "logp"))
            if self.actors.critic is not None:
                made["old_value"] = self._in_passes(
                    rollouts, lambda rows: self.actors.critic.score(rollouts, rows)["value"]
                )
            if "grad_norm_squared" in needs:
                made["grad_norm_squared"] = self._gradient_norms(rollouts, batch)
        return batch.replace(**{name: column.cpu() for name, column in made.items()})

    def _before(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """What the recipe reads of the policy as it is before the update and the engine has not recorded, in one forward pass."""
        recipe = self.recipe
        missing = recipe.needs_before - (frozenset() if self.recompute else frozenset(rollouts.observed))
        as_logp = ["old_logp", "logp"] if self.recompute and "old_logp" in recipe.needs else []
        as_logp += ["anchor_logp"] if "anchor_logp" in recipe.needs else []
        needs = (missing & (MODEL_COLUMNS - {"logp"})) | ({"logp"} if as_logp else set())
        observe = {name: function for name, function in recipe.observes().items() if name in missing}
        if not needs and not observe:
            return {}
        policy, size = self.actors.policy, self.tokens_per_pass
        made = score_in_passes(policy, rollouts, needs, tokens_per_pass=size, observe=observe)
        logp = made.pop("logp", None)
        return {**made, **({} if logp is None else dict.fromkeys(as_logp, logp))}

    def _gradient_norms(self, rollouts: Rollouts, batch: Batch) -> Tensor:
        """Squared norm [R] of the gradient of each completion's log-prob; a forward and a backward pass of its own per row."""
        parameters = list(self.actors.policy.parameters())
        norms = torch.zeros(len(rollouts))
        for row in (batch.trained & batch.valid).nonzero():
            with torch.enable_grad():
                logp = self.actors.policy.score(rollouts, frozenset({"logp"}), rows=row.cpu())["logp"].sum()
                gradients = torch.autograd.grad(logp, parameters, allow_unused=True)
            norms[row] = sum(float(gradient.float().square().sum()) for gradient in gradients if gradient is not None)
        return norms

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
        """Row indices of every optimizer step; the rows of a prompt, its groups with them, stay together, in a seeded order."""
        update, group = self.recipe.update, torch.arange(len(batch))
        for name in ("group", "prompt"):
            group = getattr(batch, name).cpu().unique(return_inverse=True)[1] if name in batch else group
        groups = int(group.max()) + 1
        count = min(update.minibatches, groups)  # type: ignore[union-attr]
        if count == 1:
            return [torch.arange(len(batch))] * update.epochs  # type: ignore[union-attr]
        chosen = []
        for epoch in range(update.epochs):  # type: ignore[union-attr]
            order = torch.randperm(groups, generator=seeded(*key, "minibatches", epoch))
            chosen += [torch.isin(group, part).nonzero().squeeze(1) for part in order.tensor_split(count)]
        return [rows for rows in chosen if batch.trained.cpu()[rows].any()]

    def _policy_step(self, mini: "_MiniBatch", gap: list | None) -> StepResult:
        recipe = self.recipe
        # Controls see every token of the mini-batch; without them, rows that cannot have a gradient are not computed.
        kept = mini.batch.trained if recipe.control else contributing(recipe, mini.batch)
        if not kept.any():
            return StepResult(stats={"rows/trained": 0.0}, grad_norm=0.0)
        some = mini if kept.all() else mini.select(kept.nonzero().squeeze(1))
        plan, halves = self._plan(some, mini.batch, kept)
        if len(plan) > 1:
            self._control(some, plan)
        result = self.actors.learner.step([self._micro_batch(some, part, gap) for part in plan], halves)
        mini.states = some.states
        result.stats["rows/trained"] = float(kept.sum())
        return result

    @torch.no_grad()
    def _control(self, mini: "_MiniBatch", plan: Sequence[Tensor]) -> None:
        """The recipe's controls, on the columns of all rows, in passes of their own."""
        if self.recipe.control:
            passes = [self._controlled_by(mini, rows, self._current(mini, rows)) for rows in plan]
            back = torch.cat(list(plan)).argsort()
            mini.control({name: torch.cat([columns[name] for columns in passes])[back] for name in passes[0]})

    def _plan(self, some: "_MiniBatch", whole: Batch, kept: Tensor) -> tuple[list[Tensor], Halves | None]:
        """Micro-batches of the kept rows; in two halves by group where the update part asks for the gradients of both.

        A mini-batch of one group has no halves: its rate is that of the step before.
        """

        def passes(rows: Tensor | None) -> list[Tensor]:
            size, groups = self.tokens_per_pass, self.recipe.keep_groups
            return list(self.policy.plan(some.rollouts, tokens_per_pass=size, keep_groups=groups, rows=rows))

        rule = self.recipe.update
        group = whole.group if "group" in whole else torch.arange(len(whole), device=whole.mask.device)
        present = group[whole.trained].unique()
        if not isinstance(rule, RateRule) or len(present) < 2:
            return passes(None), None
        first = torch.isin(group, present[: (len(present) + 1) // 2])
        share = float((first & whole.trained).sum() / whole.trained.sum())
        parts = [passes(rows.nonzero().squeeze(1).cpu()) if rows.any() else [] for rows in (first[kept], ~first[kept])]
        return parts[0] + parts[1], Halves(len(parts[0]), share, rule)

    def _current(self, mini: "_MiniBatch", rows: Tensor) -> dict[str, Tensor]:
        """The columns of some rows under the policy as it is now, and those that parts measure from until they have."""
        needs = self.columns
        if self.recipe.control and not mini.controlled:
            needs = needs.union(*(part.measured_from for part in self.measures))
        along, further = (frozenset({n} if self.compared else ()) for n in ("logp", "hidden"))
        columns = self.policy.score(mini.rollouts, (needs - along) | further, rows=rows, observe=self.observe)
        if self.compared:
            columns |= self.teaching.compare(mini.rollouts, mini.told, rows, columns["hidden"], self.compared | along)
            columns = {name: column for name, column in columns.items() if name not in further - needs}
        return {name: column.to(mini.batch.logp.device) for name, column in columns.items()}  # rollouts are on the CPU

    def _controlled_by(self, mini: "_MiniBatch", rows: Tensor, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the control parts see of some rows: columns without gradient, and what is measured from them."""
        seen = {name: column.detach() for name, column in columns.items()}
        read = self.columns | self.observe.keys() | self.compared
        made = {name: column for name, column in seen.items() if name in read}
        if self.measures:
            batch = mini.batch.select(rows).replace(**seen)
            step = self.actors.learner.next_step(self.policy.model.get_output_embeddings().weight)
            for part in self.measures:
                made |= part.measure(batch, step)
        return made

    def _micro_batch(self, mini: "_MiniBatch", rows: Tensor, gap: list | None) -> MicroBatch:
        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            columns = self._current(mini, rows)
            _check(columns, mini.batch.mask[rows])
            if self.recipe.control and not mini.controlled:  # the whole mini-batch is in this pass
                seen = self._controlled_by(mini, rows, columns)
                back = rows.argsort()
                mini.control({name: column[back] for name, column in seen.items()})
                columns = {name: column for name, column in columns.items() if name in seen}
            part = mini.batch.select(rows)
            if gap is not None:
                own = part.mask & sampled_now(part).unsqueeze(1)
                sampled = mini.rollouts.logp[rows].to(part.logp.device)
                difference = ((columns["logp"].detach() - sampled) * own).abs()
                gap.append((float(difference.sum()), float(difference.max()), int(own.sum())))
            return self.recipe.loss(part.replace(**columns))

        return loss

    def _critic_step(self, mini: "_MiniBatch") -> StepResult:
        critic, learner = self.actors.critic, self.actors.critic_learner

        def micro_batch(part_rows: Tensor) -> MicroBatch:
            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                part = mini.batch.select(part_rows)
                columns = {n: c.to(part.logp.device) for n, c in critic.score(mini.rollouts, part_rows).items()}
                _check(columns, part.mask)
                total = (self.recipe.critic(part.replace(**columns)) * part.token_share).sum()  # type: ignore[misc]
                return total, {"loss": total.detach()}

            return loss

        assert learner is not None
        plan = self.actors.policy.plan(mini.rollouts, tokens_per_pass=self.tokens_per_pass)
        return learner.step([micro_batch(part) for part in plan])

    @staticmethod
    def _add(totals: dict[str, float], step: StepResult, prefix: str, result: UpdateResult) -> None:
        for name, value in {**step.stats, "grad_norm": step.grad_norm}.items():
            totals[prefix + name] = totals.get(prefix + name, 0.0) + value
        if step.skipped:
            result.skipped.append(f"{prefix}{step.skipped}")


class _MiniBatch:
    """The rows of one optimizer step: batch, rollouts, and these as the teacher reads them (`told`), cut to their longest row;
    and what the recipe's parts remember.

    Without `control` parts the denominators are there from the start; with them, once `control` was called.
    """

    def __init__(self, recipe: Recipe, batch: Batch, rollouts: Rollouts, told: Rollouts, states: State) -> None:
        self.recipe, self.rollouts, self.told, self.states = recipe, rollouts, told, states
        self.batch = recipe.denominators(batch.narrow(rollouts.tokens.shape[1]))
        self.controlled = False

    def select(self, rows: Tensor) -> "_MiniBatch":
        """Some of the rows, with the denominators of all: what is left out has no gradient."""
        some = copy.copy(self)
        some.rollouts, some.told = _selected(self.rollouts, self.told, rows.cpu())
        some.batch = self.batch.select(rows).narrow(some.rollouts.tokens.shape[1])
        whole = some.batch
        shares = {n: getattr(whole, n) for n in whole if n.startswith(("token_share", "row_share"))}
        some.batch = whole.replace(**{n: share / share.sum().clamp(min=1e-12) for n, share in shares.items()})
        return some

    def control(self, columns: Mapping[str, Tensor]) -> None:
        """Calls the recipe's controls on the columns of all rows under the current policy."""
        self.batch, self.states = self.recipe.minibatch(self.batch.replace(**columns), self.states)
        self.controlled = True


def _selected(rollouts: Rollouts, told: Rollouts, rows: Tensor) -> tuple[Rollouts, Rollouts]:
    """Rows of both, which are the same object where nobody tells the teacher anything."""
    some = rollouts.select(rows)
    return some, some if told is rollouts else told.select(rows)


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
