"""One step's rows from data that holds completions, in the place of sampled rollouts or beside them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.batch import SOURCES, Batch
from upslope.collect import ROW_COLUMNS, Collected, row_columns, seeded
from upslope.evaluate import Evaluation
from upslope.outcomes import Event, failure_events, reward_metrics
from upslope.parts.data import FromData
from upslope.prompts import Prompts, PromptStream
from upslope.recipe import Recipe, State
from upslope.rollout import Example, Finish, Outcome, Rollouts, Sampling
from upslope.samples import reads_samples
from upslope.stored import logps_of
from upslope.tasks.files import prompt_text
from upslope.update import Updater
from upslope.writers import Drawn, Writers, draw, remember

EXPERT = SOURCES.index("expert")
GIVEN_COLUMNS = ROW_COLUMNS | {"label"}
"""Columns that a step's batch of given completions has for any recipe; with samples beside them, old_logp too."""


class GivenCollector:
    """Draws prompts with their completions, epoch after epoch in a seeded order. `state`: {"cursor": position}, and the pool's.

    `policy` tokenizes; completions are cut to `max_tokens`, or where the model's context ends. With `rollout.samples`, `writers`
    sample to the same prompts; `judge` rewards these, where given. With `rescore` old_logp is the model's, not the engine's.
    `stored`: the data's column with the log-probs of a teacher that is not asked.
    """

    def __init__(
        self,
        *,
        policy: Any,
        stream: PromptStream,
        recipe: Recipe,
        limit: int,
        max_tokens: int | None,
        writers: Writers | None = None,
        judge: Any = None,
        rescore: bool = False,
        stored: str | None = None,
    ) -> None:
        self.policy, self.recipe, self.max_tokens, self.stored = policy, recipe, max_tokens, stored
        self.writers, self.judge, self.rescore = writers, judge, rescore
        self.prompts = Prompts(stream, policy.encode, limit)

    @property
    def rollout(self) -> FromData:
        """The recipe's part that says what is sampled."""
        assert isinstance(self.recipe.rollout, FromData)
        return self.recipe.rollout

    def collect(
        self, state: State, *, prompts: int, sampling: Sampling, key: Sequence[object]
    ) -> tuple[Collected, State]:
        """The rows of one step for `prompts` prompts, and the next state; `key` seeds what is sampled."""
        started = time.perf_counter()
        chosen, cursor, events = self.prompts.draw(int(state["cursor"]), prompts)
        state, rollout = {**state, "cursor": cursor}, self.rollout
        if rollout.samples and rollout.sampler == "pool":
            every, size = rollout.pool_every, rollout.pool_size
            state = remember(state, self.policy, every=every, size=size, keep=rollout.pool_keep)
        found = self.rows([example for _, example in chosen], state=state, sampling=sampling, key=key)
        found.events[:0] = events
        found.seconds["rollout"] = time.perf_counter() - started - found.seconds["reward"]
        return found, state

    def rows(
        self,
        examples: Sequence[Example],
        *,
        state: State | None = None,
        sampling: Sampling | None = None,
        key: Sequence[object] = (),
    ) -> Collected:
        """All completions of the examples, those of one example as a group; with `sampling`, the samples beside them."""
        given = self._given(examples)
        rollout = self.rollout
        if not rollout.samples or sampling is None:
            return given
        assert self.writers is not None
        who = draw(state or {}, rollout.sampler, seeded(*key, "checkpoint"))
        prompts = given.rollouts.prompts
        sampled = self.writers.write(who, prompts, rollout.samples, sampling, seeded(*key, "samples"))
        return self._beside(given, self._judged(sampled, examples), who)

    def _given(self, examples: Sequence[Example]) -> Collected:
        policy, cut = self.policy, 0
        prompts = [self.prompts.ids(example) for example in examples]
        tokens, text, of_row, finish = [], [], [], list[Finish]()
        logps: list[list[float]] = []
        for index, example in enumerate(examples):
            room = policy.context_length - len(prompts[index])
            longest = room if self.max_tokens is None else min(room, self.max_tokens)
            for completion in example.data["completions"]:
                ids, said = policy.encode_completion(example.prompt, completion.text)
                cut += len(ids) > longest
                finish.append("length" if len(ids) > longest else "stop")
                tokens.append(ids[:longest])
                if self.stored is not None:
                    logps.append(logps_of(example, len(ids), self.stored)[:longest])
                text.append(said)
                of_row.append(index)
        rollouts = Rollouts.given(prompts, torch.tensor(of_row), tokens, finish, text)
        completions = [completion for example in examples for completion in example.data["completions"]]
        outcomes = [Outcome(one.label if one.score is None else one.score) for one in completions]
        of_rows = [examples[index] for index in of_row]
        source = torch.full((len(of_row),), EXPERT)
        batch = Batch(
            **row_columns(rollouts, of_rows, source),
            label=torch.tensor([completion.label for completion in completions], dtype=torch.float32),
            reward=torch.tensor([outcome.value for outcome in outcomes], dtype=torch.float32),
            teacher_logp=_padded(logps, rollouts.mask) if logps else None,
        )
        metrics = {"tokens": float(rollouts.mask.sum()), **length_metrics(rollouts)}
        events = [Event("completion cut", "longer than max_tokens or the model's context", cut)] if cut else []
        seconds = {"rollout": 0.0, "reward": 0.0}
        return Collected(rollouts, of_rows, outcomes, batch, metrics, seconds, source, events, sampled=False)

    def _judged(self, sampled: Rollouts, examples: Sequence[Example]) -> Collected:
        """The samples as rows, with rewards where there is a judge; an outcome without value or failure otherwise."""
        started = time.perf_counter()
        of_rows = [examples[index] for index in sampled.prompt.tolist()]
        metrics = {f"samples/{name}": value for name, value in length_metrics(sampled).items()}
        metrics["samples/entropy"] = -float((sampled.logp * sampled.mask).sum() / sampled.mask.sum())
        outcomes = [Outcome(None)] * len(sampled)
        if self.judge is not None:
            ids = [row[:length].tolist() for row, length in zip(sampled.tokens, sampled.length.tolist(), strict=True)]
            outcomes = self.judge.score(of_rows, sampled.text, ids)
            metrics |= reward_metrics(outcomes)
        source = torch.full((len(sampled),), SOURCES.index("policy" if self.rollout.sampler == "policy" else "earlier"))
        seconds = {"rollout": 0.0, "reward": time.perf_counter() - started}
        events = failure_events(outcomes)
        return Collected(sampled, of_rows, outcomes, None, metrics, seconds, source, events)

    def _beside(self, given: Collected, sampled: Collected, who: Drawn) -> Collected:
        """Both as one step's rows, those of a prompt next to each other: first the given ones."""
        assert given.batch is not None
        assert self.writers is not None
        order = torch.cat([given.rollouts.prompt, sampled.rollouts.prompt]).argsort(stable=True)
        rollouts = Rollouts.side_by_side(self._scored(given.rollouts, who), sampled.rollouts)
        if self.rescore and "old_logp" in self.recipe.needs:
            rollouts = replace(rollouts, logp=self.writers.score(who, rollouts))
        examples, outcomes = given.examples + sampled.examples, given.outcomes + sampled.outcomes
        examples, outcomes = ([column[row] for row in order.tolist()] for column in (examples, outcomes))
        source = torch.cat([given.source, sampled.source])[order]
        failed = torch.tensor([outcome.value is None for outcome in outcomes]) & (source != EXPERT)
        empty = torch.zeros(len(sampled.rollouts))
        reward = [0.0 if outcome.value is None else outcome.value for outcome in outcomes]
        columns = {
            **row_columns(rollouts, examples, source),
            "group": 2 * rollouts.prompt + (source != EXPERT),
            "label": torch.cat([given.batch.label, empty])[order],
            "reward": torch.tensor(reward, dtype=torch.float32),
        }
        if reads_samples(self.recipe):  # whoever reads no reward loses no row to one that failed
            columns["valid"] = ~failed
        if "old_logp" in self.recipe.needs:
            columns["old_logp"] = rollouts.logp
        metrics = {**given.metrics, **sampled.metrics, "tokens": float(rollouts.mask.sum())}
        events = given.events + sampled.events
        now = self.rollout.sampler == "policy"
        return Collected(
            rollouts, examples, outcomes, Batch(**columns), metrics, sampled.seconds, source, events, sampled=now
        )

    def _scored(self, given: Rollouts, who: Drawn) -> Rollouts:
        """The given rows with the log-probs of who writes the samples, where the recipe reads those."""
        if self.rescore or "old_logp" not in self.recipe.needs:
            return given
        assert self.writers is not None
        return replace(given, logp=self.writers.score(who, given))


def _padded(rows: list[list[float]], mask: Tensor) -> Tensor:
    """Rows of as many numbers as the mask [R, T] has at their beginning, 0 beyond, [R, T] float32."""
    column = torch.zeros(mask.shape)
    column[mask] = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
    return column


def length_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Mean and largest number of trained tokens, and the share of completions that were cut."""
    length: Tensor = rollouts.mask.sum(1).float()
    cut = sum(finish == "length" for finish in rollouts.finish) / len(rollouts)
    return {"length/mean": float(length.mean()), "length/max": float(length.max()), "length/truncated": cut}


def evaluate_given(
    collector: GivenCollector,
    updater: Updater,
    examples: Sequence[Example],
    states: State,
    seed: int,
    *,
    state: State | None = None,
    sampling: Sampling | None = None,
) -> Evaluation:
    """The recipe's loss and statistics on held-out completions, as eval/loss, eval/pairs/accuracy and so on; the loss with a
    bootstrap interval over prompts (_low, _high).

    Where the recipe samples beside given completions, it does here too, by `sampling` and with the collector's `state`; the rows
    of the evaluation that are shown are then the samples.
    """
    key = (seed, "eval")
    found = collector.rows(examples, state=state, sampling=sampling, key=key)
    assert found.batch is not None
    numbers: dict[str, int] = {}
    prompt = [numbers.setdefault(prompt_text(example.prompt), len(numbers)) for example in found.examples]
    stats = updater.measure(found.rollouts, found.batch, states, key, torch.tensor(prompt))
    metrics = {f"eval/{name}": value for name, value in stats.items()}
    shown = (found.source != EXPERT).nonzero().squeeze(1)
    shown = shown if len(shown) else torch.arange(len(found.rollouts))
    rollouts, rows = found.rollouts.select(shown), shown.tolist()
    shown_examples, outcomes = ([column[row] for row in rows] for column in (found.examples, found.outcomes))
    return Evaluation({**metrics, "eval/prompts": float(len(examples))}, rollouts, shown_examples, outcomes)
