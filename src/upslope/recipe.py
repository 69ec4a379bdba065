"""Recipe: a published method as parts. `prepare` once per step without gradient, `loss` per micro-batch, linear in the split."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from upslope.assembly import Assembly, as_tuple
from upslope.batch import Batch
from upslope.errors import UsageError

Level = Literal["token", "sequence"]
State = dict[str, Any]
Stats = dict[str, Tensor]
Observation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Plain settings and a `__call__`. Subclasses are frozen dataclasses; what they remember is passed in and out.

    needs      columns read besides logp and mask; a property where they depend on settings
    makes      columns by name, where a part of the stages `advantage`, `weight` and `control` returns a dict
    formula    the part in one line for `describe`, with {setting} places
    stateful   True: `init()` gives the first state and the call is `(batch, state) -> (result, state)`
    couples_group   True: the loss of a row depends on its group, so micro-batches keep groups whole
    vanishes_without_advantage   True: rows whose advantage is 0 have no gradient, so the trainer need not compute them
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    makes: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = ""
    stateful: ClassVar[bool] = False
    couples_group: ClassVar[bool] = False
    vanishes_without_advantage: ClassVar[bool] = False

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError

    def init(self) -> State:
        """The state before the first step: nested dicts of tensors, numbers and strings."""
        return {}

    def observes(self) -> Mapping[str, Observation]:
        """Columns [R, T] that are functions of the whole next-token distribution at every position, by name.

        Each maps log_probs [M, V] and the chosen tokens [M] to [M]. Nobody keeps the distributions: the engine evaluates the
        functions while it samples, the policy where it scores.
        """
        return {}

    def alter_prompt(self, ids: Sequence[int], blank: int, generator: torch.Generator) -> list[int]:
        """The prompt under which the column `masked_logp` is computed, for a part that reads it."""
        raise NotImplementedError

    def stats(self, batch: Batch) -> Stats:
        """Diagnostics per token [R, T] or per row [R], logged as batch-wide means; called without gradient."""
        return {}

    def describe(self) -> str:
        """`formula` with the settings filled in."""
        return self.formula.format(**{f.name: getattr(self, f.name) for f in fields(self)})

    def __str__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{type(self).__name__}({settings})"


Parts = Part | tuple[Part, ...] | None


@dataclass(frozen=True)
class Term:
    """One summand of a step's loss: a surrogate on some rows, aggregated over those rows only, times `coefficient`.

    `rows` maps the batch to a bool mask [R]; None takes every row. `weighted` applies the column `weight`.
    """

    surrogate: Part
    aggregate: Part
    rows: Part | None = None
    coefficient: float = 1.0
    regularizer: tuple[Part, ...] = ()
    weighted: bool = False


@dataclass(frozen=True)
class Recipe(Assembly):
    """The parts of a method, one field per stage; every stage but `surrogate` and `aggregate` may be None.

        reward -> advantage -> weight -> control -> surrogate + regularizer -> aggregate        (+ further `terms`)

    Rewards, advantages and weights are made once per step, over all its rollouts (`credit`). `control` parts run once per
    mini-batch, without gradient, on the current log-probs: they return columns by name, such as a selection of tokens, the
    bounds of a clip or a dual variable, and may remember (`minibatch`). `loss` runs per micro-batch.
    `rollout`, `update`, `curriculum` and `critic` are read by the trainer; so are `policy` and `optimizer`, by which a method
    for environments says its network and how that is optimized. A stage may hold a tuple of parts: rewards, weights
    and controls apply in that order, regularizers add up. Build variants with `replace`, settings with `with_settings`.
    """

    surrogate: Part
    aggregate: Part
    reward: Parts = None
    advantage: Part | None = None
    weight: Parts = None
    control: Parts = None
    regularizer: Parts = None
    rows: Part | None = None
    terms: tuple[Term, ...] = ()
    rollout: Part | None = None
    update: Part | None = None
    curriculum: Part | None = None
    critic: Part | None = None
    policy: Part | None = None
    optimizer: Part | None = None
    name: str = field(default="recipe", compare=False)
    STAGES: ClassVar[tuple[str, ...]] = (
        "curriculum", "policy", "rollout", "reward", "critic", "advantage", "weight", "control", "rows", "surrogate",
        "regularizer", "aggregate", "update", "optimizer",
    )  # fmt: skip

    def __call__(self, batch: Batch) -> tuple[Tensor, Stats]:
        """The loss (scalar, to be minimised) and its statistics for a whole batch: `prepare`, then `loss`."""
        return self.loss(self.prepare(batch))

    @property
    def needs(self) -> frozenset[str]:
        """Columns that the recipe reads from outside, besides logp and mask."""
        return self._read(frozenset(STAGES) - TRAINER_STAGES)

    @property
    def needs_each_pass(self) -> frozenset[str]:
        """Those of them that are read under the current policy: by `control`, and by the loss itself."""
        return self.needs & self._read(frozenset(STAGES) - TRAINER_STAGES - CREDIT_STAGES)

    @property
    def needs_before(self) -> frozenset[str]:
        """Those of them that are read once per step, under the policy that the rollouts came from."""
        return self.needs & self._read(CREDIT_STAGES)

    def observes(self) -> dict[str, Observation]:
        """The functions of next-token distributions that the parts ask for, by column."""
        return {name: function for _, part in self.stages() for name, function in part.observes().items()}

    def _read(self, stages: frozenset[str]) -> frozenset[str]:
        """Columns that the parts of these stages (and of all terms) read and no earlier part of theirs makes."""
        needed: set[str] = set()
        made: set[str] = set()
        for stage, part in self.stages():
            if stage in stages or (stage.startswith("terms") and "surrogate" in stages):
                needed |= part.needs - made
                made |= MADE_BY.get(stage, frozenset()) | part.makes
        return frozenset(needed)

    @property
    def keep_groups(self) -> bool:
        """Whether a micro-batch must hold whole groups."""
        return any(part.couples_group for _, part in self.stages())

    @property
    def level(self) -> Level:
        """Whether the main surrogate gives a loss per token [R, T] or per sequence [R]."""
        return getattr(self.surrogate, "level", "token")

    def check(self) -> "Recipe":
        """Raises UsageError where a surrogate and its aggregate do not fit, or a part rejects its settings."""
        for term in self.all_terms():
            level, takes = getattr(term.surrogate, "level", "token"), getattr(term.aggregate, "level", "token")
            if level != takes:
                fitting = (
                    "RowMean()" if level == "sequence" else "TokenMean(), SequenceMean(), SequenceSum(), ConstantSum(n)"
                )
                raise UsageError(
                    f"{self.name}: {type(term.surrogate).__name__} gives one loss per {level}, but "
                    f"{type(term.aggregate).__name__} aggregates per {takes}. Use aggregate={fitting}."
                )
        return self

    @overload
    def prepare(self, batch: Batch) -> Batch: ...
    @overload
    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]: ...
    def prepare(self, batch: Batch, state: State | None = None) -> Batch | tuple[Batch, State]:
        """`credit`, then `minibatch`: everything before `loss`, for a batch that is used in one optimizer step.

        With the `state` of the step before, returns the next one too; without, every part starts from `init()`.
        """
        batch, after = self.credit(batch, self.init() if state is None else state)
        batch, after = self.minibatch(batch, after)
        return batch if state is None else (batch, after)

    @torch.no_grad()
    def credit(self, batch: Batch, state: State) -> tuple[Batch, State]:
        """Rewards, advantages and weights of a step's whole batch, without gradient, and the next state.

        Rows whose reward failed (`valid` False) are masked out of the loss and of every denominator.
        """
        if "valid" in batch:
            if not batch.valid.any():
                raise UsageError(
                    "every row's reward failed (column 'valid' is all False): there is nothing to learn from."
                )
            batch = batch.replace(mask=batch.mask & batch.valid.unsqueeze(1))
        call = _Caller(self, state)
        for part in as_tuple(self.reward):
            shaped = call(part, batch)
            batch = batch.replace(**{"token_reward" if shaped.ndim == 2 else "reward": shaped})
        if self.advantage is not None:
            advantage = call(self.advantage, batch)
            batch = batch.replace(**(advantage if isinstance(advantage, dict) else {"advantage": advantage}))
        for part in as_tuple(self.weight):
            weight = call(part, batch)
            made = weight if isinstance(weight, dict) else {"weight": batch.weight * weight}
            batch = batch.replace(**made)
        return batch.read_by(None), call.states

    @torch.no_grad()
    def minibatch(self, batch: Batch, state: State) -> tuple[Batch, State]:
        """The columns of `control`, on the current log-probs of one mini-batch, its denominators, and the next state."""
        batch, after = self.controlled(batch, state)
        return self.denominators(batch), after

    @torch.no_grad()
    def controlled(self, batch: Batch, state: State) -> tuple[Batch, State]:
        """`minibatch` without the denominators."""
        call = _Caller(self, state)
        for part in as_tuple(self.control):
            batch = batch.replace(**call(part, batch))
        return batch.read_by(None), call.states

    @property
    def denominators_of_mask(self) -> bool:
        """Whether they are the same for every batch with the same mask."""
        return all(term.rows is None and getattr(term.aggregate, "of_mask", False) for term in self.all_terms())

    @torch.no_grad()
    def denominators(self, batch: Batch) -> Batch:
        """The columns by which `loss` multiplies: what is divided by what, over this batch as a whole.

        Each mini-batch has its own, so `minibatch` calls it.
        """
        columns: dict[str, Tensor] = {
            "token_share": batch.mask.to(batch.dtype) / batch.mask.sum(),
            "row_share": batch.trained.to(batch.dtype) / batch.trained.sum(),
        }
        for index, term in enumerate(self.all_terms()):
            whole, within = term.rows is None, batch.mask
            if term.rows is not None:
                within = within & term.rows(batch.read_by(term.rows)).unsqueeze(1)
            scale = penalty_scale = torch.zeros_like(batch.logp, dtype=batch.dtype)
            if whole or within.any():
                inner = batch if whole else batch.replace(mask=within)
                scale = term.aggregate(inner.read_by(term.aggregate))
                penalty_scale = (
                    scale
                    if scale.ndim == 2
                    else inner.mask / inner.length.clamp(min=1).unsqueeze(1) * scale.unsqueeze(1)
                )
            elif getattr(term.aggregate, "level", "token") == "sequence":
                scale = penalty_scale[:, 0]
            columns[f"scale_{index}"] = scale
            columns[f"penalty_scale_{index}"] = penalty_scale
            if term.rows is not None:
                columns[f"token_share_{index}"] = within / within.sum().clamp(min=1)
                columns[f"row_share_{index}"] = within.any(1) / within.any(1).sum().clamp(min=1)
        return batch.extended(columns)

    def loss(self, batch: Batch, *, statistics: bool = True) -> tuple[Tensor, Stats]:
        """The loss of a prepared micro-batch. Pure, and linear: losses and statistics of micro-batches add up.

        Statistics are sums over denominators of the whole batch, so they add up too; `statistics` False leaves out the parts'.
        """
        total: Tensor | None = None
        stats: Stats = {}
        for index, term in enumerate(self.all_terms()):
            contribution: Tensor | None = None
            for summands in self._summands(index, term, batch):
                contribution = summands.sum() if contribution is None else contribution + summands.sum()
            assert contribution is not None
            weighted = contribution if term.coefficient == 1 else term.coefficient * contribution
            total = weighted if total is None else total + weighted
            if self.terms:
                stats[f"loss/{index}"] = contribution.detach()
        assert total is not None  # there is always the main term
        stats["loss"] = total.detach()
        return total, {**stats, **self._stats(batch)} if statistics else stats

    @staticmethod
    def _summands(index: int, term: Term, batch: Batch) -> Iterator[Tensor]:
        """What is summed to a term before its coefficient: of the surrogate, then of each regularizer, [R] or [R, T]."""
        per = term.surrogate(batch.read_by(term.surrogate))
        scale = getattr(batch, f"scale_{index}")
        if term.weighted and "weight" in batch:
            scale = scale * (batch.weight if per.ndim == 2 else batch.read_by(term.surrogate).per_row("weight"))
        yield per * scale
        for part in term.regularizer:
            yield part(batch.read_by(part)) * getattr(batch, f"penalty_scale_{index}")

    @torch.no_grad()
    def row_losses(self, batch: Batch) -> Tensor:
        """What each row of a prepared micro-batch adds to each term of `loss`, coefficients included, [R, terms]."""
        found = batch.logp.new_zeros(len(batch), len(self.all_terms()))
        for index, term in enumerate(self.all_terms()):
            for summands in self._summands(index, term, batch):
                found[:, index] += term.coefficient * (summands.sum(1) if summands.ndim == 2 else summands)
        return found

    @torch.no_grad()
    def _stats(self, batch: Batch) -> Stats:
        """Means of what the parts tell, over all rows; of a term that is about some rows only, over these."""
        found: Stats = {}
        of_term = {
            id(part): f"_{index}"
            for index, term in enumerate(self.all_terms())
            if term.rows is not None
            for part in (term.surrogate, *term.regularizer)
        }
        for stage, part in self.stages():
            if stage in TRAINER_STAGES:
                continue
            for name, column in part.stats(batch.read_by(part)).items():
                share = getattr(batch, ("token" if column.ndim == 2 else "row") + "_share" + of_term.get(id(part), ""))
                found[name] = (column * share).sum()
        return found

    def objective(self) -> list[str]:
        """Lines such as `loss = mean over rows of [ ... ]`, then one per stage before it."""
        from upslope.formula import objective

        return objective(self)

    def trainer(self) -> Any:
        """The loop of this kind of recipe: collect, update. A `rollout` that plays in an environment has its own."""
        from upslope.trainer import Trainer

        own = getattr(self.rollout, "trainer", None)
        return Trainer if own is None else own()

    def reading(self) -> str:
        """The columns that the trainer has to give."""
        return f"reads {', '.join(sorted(self.needs)) or 'nothing'} besides logp and mask"

    def all_terms(self) -> tuple[Term, ...]:
        """The main line as a term, then `terms`."""
        main = Term(self.surrogate, self.aggregate, self.rows, regularizer=as_tuple(self.regularizer), weighted=True)
        return (main, *self.terms)


class _Caller:
    """Calls parts of a recipe; those that remember with their state, which is replaced by the one they return."""

    def __init__(self, recipe: Recipe, state: State) -> None:
        self.recipe, self.states = recipe, dict(state)

    def __call__(self, part: Part, batch: Batch) -> Any:
        if not part.stateful:
            return part(batch.read_by(part))
        key = next(key for key, held in self.recipe.parts().items() if held is part)
        result, self.states[key] = part(batch.read_by(part), self.states[key])
        return result


STAGES = Recipe.STAGES
TRAINER_STAGES = frozenset({"curriculum", "policy", "rollout", "critic", "update", "optimizer"})
CREDIT_STAGES = frozenset({"reward", "advantage", "weight"})
MADE_BY = {
    "reward": frozenset({"token_reward"}),
    "advantage": frozenset({"advantage", "returns"}),
    "weight": frozenset({"weight"}),
}
