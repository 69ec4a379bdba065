"""One step's rollouts: prompts from the stream, completions from the engine, rewards from the task, groups that are kept."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from upslope.batch import COLUMNS, SOURCES, Batch
from upslope.errors import UsageError
from upslope.outcomes import TEACHER, Event, failure_events, group_metrics, reward_metrics
from upslope.policies.plans import score_in_passes
from upslope.prompts import Encode, Prompts, PromptStream, weighted_order
from upslope.recipe import Observation, Recipe, State
from upslope.references import reference_rollouts, reference_text
from upslope.replay import Kept, recall, remember
from upslope.rollout import Example, Outcome, Rollouts, Sampling, Visit
from upslope.tasks.scorers import VERDICT_COLUMNS


def seeded(*key: object) -> torch.Generator:
    """A CPU generator that depends on the key alone, so a resumed step draws what the interrupted one would have drawn."""
    return torch.Generator().manual_seed(key_number("/".join(map(str, key))))


@dataclass
class Collected:
    """A step's rows, aligned: rollouts, the example and outcome of each, and the batch before `prepare` (None: no row kept).

    `source` [R] int64 says where each row came from. `sampled`: the policy of this step wrote them.
    """

    rollouts: Rollouts
    examples: list[Example]
    outcomes: list[Outcome]
    batch: Batch | None
    metrics: dict[str, float]
    seconds: dict[str, float]
    source: Tensor
    events: list[Event] = field(default_factory=list)
    sampled: bool = True


class Collector:
    """Draws prompts until enough groups are kept. `state` is passed in and out; the first is {"cursor": 0}.

    cursor        position in the stream
    steps         steps collected
    rollout       what the part of that stage remembers
    curriculum    likewise
    replay        the rollouts of the last steps, where the recipe replays
    """

    def __init__(
        self,
        *,
        engine: Any,
        judge: Any,
        encode: Encode,
        stream: PromptStream,
        recipe: Recipe,
        limit: int,
        tokens_per_pass: int = 16384,
        rescore: bool = False,
    ) -> None:
        """`limit`: tokens that a prompt may have. `rescore`: log-probs of new rollouts are the policy's, not the engine's."""
        self.engine, self.judge, self.recipe = engine, judge, recipe
        self.prompts = Prompts(stream, encode, limit)
        self.tokens_per_pass, self.rescore = tokens_per_pass, rescore
        self.observe = observed_at_sampling(recipe)

    def collect(
        self, state: State, *, prompts: int, sampling: Sampling, key: Sequence[object]
    ) -> tuple[Collected, State]:
        """The rollouts of one step for `prompts` groups, and the next state; `key` seeds the sampling."""
        rollout, curriculum, after = self._begin(state)
        old = recall(
            after["replay"],
            chance=rollout.replay,
            window=rollout.replay_window,
            step=after["steps"],
            generator=seeded(*key, "replay"),
        )
        if old is not None:
            return self._replayed(*old), after
        adapt = rollout.adapt(after["rollout"])
        sampling = replace(sampling, adapt=adapt) if adapt is not None else sampling
        rounds: list[Collected] = []
        events: list[Event] = []
        places: dict[int, str] = {}
        kept_groups = 0
        for attempt in range(curriculum.max_rounds):
            weights = curriculum.weights(len(self.prompts), after["curriculum"])
            order = None if weights is None else weighted_order(weights, seeded(*key, attempt, "prompts"))
            chosen, after["cursor"], dropped = self.prompts.draw(after["cursor"], prompts - kept_groups, order)
            examples = [example for _, example in chosen]
            places |= {place: example.key for place, example in chosen}
            events += dropped
            self._scout(examples, sampling, after, seeded(*key, attempt, "scout"))
            rounds.append(self.sample(examples, sampling, seeded(*key, attempt), rollout.reference_rows))
            if rounds[-1].batch is not None:
                kept_groups += int(curriculum.keep(rounds[-1].batch).sum())
            if kept_groups >= prompts:
                break
        else:
            if kept_groups < prompts and len(rounds) > 1:
                events.append(
                    Event(
                        "few groups",
                        f"{kept_groups} of {prompts} groups had rewards that differ, in {len(rounds)} rounds",
                    )
                )
        first = self._merge(rounds, events)
        if first.batch is None:
            return first, after
        found = self._with_second(first, sampling, after["rollout"], seeded(*key, "second"))
        assert found.batch is not None
        after["rollout"] = rollout.observe(first.batch, after["rollout"])
        self._track(found, places, after)
        if rollout.replay:
            kept = Kept(found.rollouts, found.examples, found.outcomes, found.source)
            after["replay"] = remember(after["replay"], kept, step=after["steps"], window=rollout.replay_window)
        return found, after

    def _begin(self, state: State) -> tuple[Any, Any, State]:
        """The parts that choose and sample, and the state with everything in it, one step on."""
        rollout, curriculum = self.recipe.rollout, self.recipe.curriculum
        assert rollout is not None
        assert curriculum is not None
        first = {"rollout": rollout.init(), "curriculum": curriculum.init(), "replay": [], "steps": 0}
        after = {**first, **state}
        after["steps"] += 1
        if not rollout.replay:  # type: ignore[attr-defined]
            after["replay"] = []
        return rollout, curriculum, after

    def _scout(self, examples: list[Example], sampling: Sampling, state: State, generator: torch.Generator) -> None:
        """Samples what the curriculum wants to know before; its state in `state` is replaced."""
        curriculum: Any = self.recipe.curriculum
        keys = [example.key for example in examples]
        counts = curriculum.scout(keys, state["curriculum"])
        if not any(counts):
            return
        rollouts = self.engine.generate([self.prompts.ids(e) for e in examples], counts, sampling, generator, {})
        outcomes = self._judge(rollouts, [examples[index] for index in rollouts.prompt.tolist()])
        rewards: list[list[float]] = [[] for _ in examples]
        for index, outcome in zip(rollouts.prompt.tolist(), outcomes, strict=True):
            if outcome.value is not None:
                rewards[index].append(outcome.value)
        known = [index for index, earned in enumerate(rewards) if earned]
        state["curriculum"] = curriculum.scouted(
            [keys[index] for index in known], [rewards[index] for index in known], state["curriculum"]
        )

    def sample(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        generator: torch.Generator,
        references: int,
        count: int | None = None,
    ) -> Collected:
        """`count` completions of each example (None: what the group's `references` leave) and that many reference answers."""
        started = time.perf_counter()
        ids = [self.prompts.ids(e) for e in examples]
        count = self.recipe.rollout.group_size - references if count is None else count  # type: ignore[union-attr]
        rollouts = self.engine.generate(ids, [count] * len(examples), sampling, generator, self.observe)
        source = torch.zeros(len(rollouts), dtype=torch.int64)
        if references:
            tokenizer, column = self.engine.policy.tokenizer, self.recipe.rollout.reference_column  # type: ignore[union-attr]
            texts = [reference_text(self.judge, example, column) for example in examples]
            given = reference_rollouts(tokenizer, ids, texts, references, sampling.max_tokens)
            given = self._scored(given)
            rollouts = Rollouts.side_by_side(rollouts, replace(given, behavior_logp=given.logp))
            place = torch.arange(len(rollouts)) % (count + references)
            source = torch.where(place < count, 0, SOURCES.index("teacher"))
        if self.rescore:
            rollouts = self._scored(rollouts)
        sampled = time.perf_counter()
        of_row = [examples[index] for index in rollouts.prompt.tolist()]
        outcomes = self._judge(rollouts, of_row)
        seconds = {"rollout": sampled - started, "reward": time.perf_counter() - sampled}
        batch = first_batch(rollouts, outcomes, of_row, self.recipe.needs, source)
        return Collected(rollouts, of_row, outcomes, batch, {}, seconds, source)

    def _judge(self, rollouts: Rollouts, examples: Sequence[Example]) -> list[Outcome]:
        ids = [row[:length].tolist() for row, length in zip(rollouts.tokens, rollouts.length.tolist(), strict=True)]
        return with_columns(self.judge.score(examples, rollouts.text, ids), self.recipe.needs)

    def _scored(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with the policy's log-probs, and what is observed at sampling, as it sees them now."""
        made = score_in_passes(
            self.engine.policy,
            rollouts,
            frozenset({"logp"}),
            tokens_per_pass=self.tokens_per_pass,
            observe=self.observe,
        )
        return replace(rollouts, logp=made.pop("logp"), observed=made)

    def _merge(self, rounds: list[Collected], events: list[Event]) -> Collected:
        """All rounds' kept groups as one; metrics are over everything that the policy sampled, kept or not."""
        outcomes = [
            o for part in rounds for o, s in zip(part.outcomes, part.source.tolist(), strict=True) if s != TEACHER
        ]
        metrics = reward_metrics(outcomes) | group_metrics(rounds)
        rows = [self._kept_rows(part) for part in rounds]
        chosen = [(part, kept) for part, kept in zip(rounds, rows, strict=True) if len(kept)]
        events += failure_events([outcome for part in rounds for outcome in part.outcomes])
        seconds = {name: sum(part.seconds[name] for part in rounds) for name in rounds[0].seconds}
        if not chosen:
            return replace(rounds[0], batch=None, metrics=metrics, seconds=seconds, events=events)
        merged = self._joined([(part, kept) for part, kept in chosen])
        return replace(merged, metrics=metrics, seconds=seconds, events=events)

    def _joined(self, chosen: Sequence[tuple[Collected, Tensor]]) -> Collected:
        """Rows [r] of each, one after the other."""
        rollouts = Rollouts.concatenate([part.rollouts.select(kept) for part, kept in chosen])
        examples = [part.examples[row] for part, kept in chosen for row in kept.tolist()]
        outcomes = [part.outcomes[row] for part, kept in chosen for row in kept.tolist()]
        source = torch.cat([part.source[kept] for part, kept in chosen])
        batch = first_batch(rollouts, outcomes, examples, self.recipe.needs, source)
        return Collected(rollouts, examples, outcomes, batch, {}, {}, source)

    def _kept_rows(self, part: Collected) -> Tensor:
        if part.batch is None:
            return torch.zeros(0, dtype=torch.int64)
        return self.recipe.curriculum.keep(part.batch)[part.batch.group].nonzero().squeeze(1)  # type: ignore[union-attr]

    def _with_second(self, first: Collected, sampling: Sampling, state: State, generator: torch.Generator) -> Collected:
        """The rows and, behind them, those of the second draw, as far as the rollout part joins them."""
        rollout: Any = self.recipe.rollout
        wish = rollout.second(state)
        if wish is None or first.batch is None:
            return first
        share, temperature = wish
        group = first.batch.group.tolist()
        starts = [group.index(one) for one in range(max(1, round(share * (max(group) + 1))))]
        examples = [first.examples[row] for row in starts]
        second = self.sample(examples, replace(sampling, temperature=temperature, adapt=None), generator, 0)
        events = first.events + failure_events(second.outcomes)
        seconds = {name: first.seconds[name] + second.seconds[name] for name in first.seconds}
        tokens = first.metrics["tokens"] + float(second.rollouts.mask.sum())
        metrics = {**first.metrics, "tokens": tokens, "second/temperature": temperature, "second/rows": 0.0}
        if second.batch is None:
            return replace(first, metrics=metrics, seconds=seconds, events=events)
        stays, comes = rollout.join(first.batch, second.batch, state)
        second.source = torch.full_like(second.source, SOURCES.index("tempered"))
        kept = replace(first, rollouts=replace(first.rollouts, mask=first.rollouts.mask & stays[:, None]))
        parts = [(kept, torch.arange(len(kept.rollouts))), (second, comes.nonzero().squeeze(1))]
        metrics["second/rows"] = float(comes.sum())
        joined = self._joined([(part, rows) for part, rows in parts if len(rows)])
        return replace(joined, metrics=metrics, seconds=seconds, events=events)

    def _track(self, found: Collected, places: dict[int, str], state: State) -> None:
        """Adds what the curriculum tells of the prompts to the batch; its state in `state` is replaced."""
        assert found.batch is not None
        keys = [example.key for example in found.examples]
        visit = Visit(found.rollouts, found.batch, keys, places, lambda rollouts: self._scored(rollouts).logp)
        columns, state["curriculum"] = self.recipe.curriculum.track(visit, state["curriculum"])  # type: ignore[union-attr]
        if "expected_reward" in self.recipe.needs - columns.keys():
            raise UsageError(
                f"'{self.recipe.name}' reads 'expected_reward' ({COLUMNS['expected_reward'].meaning}), but its curriculum "
                f"{type(self.recipe.curriculum).__name__} tells none. Take curriculum=spo_single_stream."
            )
        found.batch = found.batch.replace(**columns)

    def _replayed(self, kept: Kept, age: int) -> Collected:
        """An earlier step's rows, as a step's."""
        source = torch.where(kept.source == 0, SOURCES.index("replay"), kept.source)
        batch = first_batch(kept.rollouts, kept.outcomes, kept.examples, self.recipe.needs, source)
        seconds = {"rollout": 0.0, "reward": 0.0}
        found = Collected(
            kept.rollouts, list(kept.examples), list(kept.outcomes), batch, {}, seconds, source, sampled=False
        )
        found.metrics = reward_metrics(found.outcomes) | group_metrics([found])
        found.metrics |= {"groups/sampled": 0.0, "replay/age": float(age)}
        return found


ROW_COLUMNS = frozenset(
    {
        "logp", "mask", "tokens", "turn", "reward", "valid", "truncated", "group", "prompt", "prompt_key", "trajectory", "source",
        "weight", "progress", "step",
    }
)  # fmt: skip
"""Columns of a step's rows wherever they come from: those of `row_columns`, the trainer's, and those that have a default."""

SAMPLED_COLUMNS = ROW_COLUMNS | {"old_logp", "behavior_logp"}
"""Columns that a step's batch of sampled completions has for any recipe."""


def row_columns(rollouts: Rollouts, examples: Sequence[Example], source: Tensor) -> dict[str, Tensor]:
    """The columns that tell of rows what they are and where they belong. `examples`: that of each row."""
    return {
        "logp": rollouts.logp,
        "mask": rollouts.mask,
        "tokens": rollouts.tokens,
        "turn": torch.zeros_like(rollouts.tokens),
        "truncated": torch.tensor([finish == "length" for finish in rollouts.finish]),
        "group": rollouts.prompt,
        "prompt": rollouts.prompt,
        "prompt_key": torch.tensor([key_number(example.key) for example in examples]),
        "trajectory": torch.arange(len(rollouts)),
        "source": source,
    }


def first_batch(
    rollouts: Rollouts,
    outcomes: Sequence[Outcome],
    examples: Sequence[Example],
    needs: frozenset[str] = frozenset(),
    source: Tensor | None = None,
) -> Batch | None:
    """The columns that sampling and rewards give; None where no reward is valid. `examples`: that of each row.

    Where nobody judges (no outcome has a value or a failure), every row is valid and there is no column `reward`.
    Of `needs`, columns that the verifier gives beside the reward are taken from there; `expected_reward` is 0 until a
    curriculum tells it. `source` None: all rows are the policy's.
    Raises UsageError where it does not give one that only it can give.
    """
    judged = any(outcome.judged for outcome in outcomes)
    valid = torch.tensor([outcome.value is not None or not judged for outcome in outcomes])
    if not valid.any():
        return None
    reward = [0.0 if outcome.value is None else outcome.value for outcome in outcomes]
    source = torch.zeros(len(rollouts), dtype=torch.int64) if source is None else source
    return Batch(
        **row_columns(rollouts, examples, source),
        old_logp=rollouts.logp,
        behavior_logp=rollouts.behavior_logp,
        reward=torch.tensor(reward, dtype=torch.float32) if judged else None,
        valid=valid,
        expected_reward=torch.zeros(len(rollouts)) if "expected_reward" in needs else None,
        **rollouts.observed,
        **_verdict_columns(rollouts, outcomes, needs),
    )


def _verdict_columns(rollouts: Rollouts, outcomes: Sequence[Outcome], needs: frozenset[str]) -> dict[str, Tensor]:
    """What the verifier says beside the reward. Where it gives no `answer`, the completion's last line is the answer."""
    made = {}
    for name in sorted(needs & VERDICT_COLUMNS):
        missing = [outcome for outcome in outcomes if outcome.value is not None and name not in outcome.columns]
        if name == "answer":
            last = [text.strip().rpartition("\n")[2] for text in rollouts.text]
            numbers: dict[float | str | None, int] = {}
            answers = last if missing else [outcome.columns.get(name) for outcome in outcomes]
            made[name] = torch.tensor([numbers.setdefault(answer, len(numbers)) for answer in answers])
        elif missing:
            raise UsageError(
                f"the method reads '{name}' ({COLUMNS[name].meaning}), but the reward does not give it for {len(missing)} of "
                f'{len(outcomes)} completions. Return {{"score": ..., "{name}": ...}} from the reward function, or, in TRL\'s '
                f'signature, call log_extra("{name}", values).'
            )
        else:
            made[name] = torch.tensor([float(outcome.columns.get(name, 0.0)) for outcome in outcomes])
    return made


def with_columns(outcomes: Sequence[Outcome], needs: frozenset[str]) -> list[Outcome]:
    """The outcomes; one that lacks a column of `needs` which the verifier gives for others becomes a failure."""
    valid = [outcome for outcome in outcomes if outcome.value is not None]
    given = sorted(name for name in needs & VERDICT_COLUMNS if any(name in outcome.columns for outcome in valid))

    def checked(outcome: Outcome) -> Outcome:
        missing = [name for name in given if name not in outcome.columns]
        if outcome.value is None or not missing:
            return outcome
        return Outcome(None, failure=f"the reward gives no '{missing[0]}', which the method reads")

    return [checked(outcome) for outcome in outcomes]


def key_number(key: str) -> int:
    """A 63-bit number for a key, such as an example's: the same in every process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def observed_at_sampling(recipe: Recipe) -> dict[str, Observation]:
    """What a recipe reads of the distributions that are sampled from, before the update; its rollout part may read them, too."""
    functions = {"entropy": entropy_of, **recipe.observes()}
    read = recipe.needs_before | (recipe.rollout.needs if recipe.rollout is not None else frozenset())
    return {name: functions[name] for name in sorted(read & functions.keys())}


def entropy_of(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Entropy [M] of distributions [M, V], in nats."""
    return torch.special.entr(log_probs.exp()).sum(-1)
