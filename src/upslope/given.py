"""One step's rows from data that holds completions, in the place of sampled rollouts."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from upslope.batch import SOURCES, Batch
from upslope.collect import ROW_COLUMNS, Collected, row_columns
from upslope.evaluate import Evaluation
from upslope.outcomes import Event
from upslope.prompts import Prompts, PromptStream
from upslope.recipe import Recipe, State
from upslope.rollout import Example, Finish, Outcome, Rollouts, Sampling
from upslope.update import Updater

EXPERT = SOURCES.index("expert")
GIVEN_COLUMNS = ROW_COLUMNS | {"label"}
"""Columns that a step's batch of given completions has for any recipe."""


class GivenCollector:
    """Draws prompts with their completions, epoch after epoch in a seeded order. `state`: {"cursor": position}.

    `policy` tokenizes; completions are cut to `max_tokens`, or where the model's context ends.
    """

    def __init__(
        self, *, policy: Any, stream: PromptStream, recipe: Recipe, limit: int, max_tokens: int | None
    ) -> None:
        self.policy, self.recipe, self.max_tokens = policy, recipe, max_tokens
        self.prompts = Prompts(stream, policy.encode, limit)

    def collect(
        self, state: State, *, prompts: int, sampling: Sampling, key: Sequence[object]
    ) -> tuple[Collected, State]:
        """The rows of one step for `prompts` prompts, and the next state; `sampling` and `key` are not read."""
        started = time.perf_counter()
        chosen, cursor, events = self.prompts.draw(int(state["cursor"]), prompts)
        found = self.rows([example for _, example in chosen])
        found.events[:0] = events
        found.seconds["rollout"] = time.perf_counter() - started
        return found, {**state, "cursor": cursor}

    def rows(self, examples: Sequence[Example]) -> Collected:
        """All completions of the examples, those of one example as a group."""
        policy, cut = self.policy, 0
        prompts = [self.prompts.ids(example) for example in examples]
        tokens, text, of_row, finish = [], [], [], list[Finish]()
        for index, example in enumerate(examples):
            room = policy.context_length - len(prompts[index])
            longest = room if self.max_tokens is None else min(room, self.max_tokens)
            for completion in example.data["completions"]:
                ids, said = policy.encode_completion(example.prompt, completion.text)
                cut += len(ids) > longest
                finish.append("length" if len(ids) > longest else "stop")
                tokens.append(ids[:longest])
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
        )
        metrics = {
            "tokens": float(rollouts.mask.sum()),
            "length/mean": float(rollouts.length.float().mean()),
            "length/max": float(rollouts.length.max()),
            "length/truncated": cut / len(of_row),
        }
        events = [Event("completion cut", "longer than max_tokens or the model's context", cut)] if cut else []
        seconds = {"rollout": 0.0, "reward": 0.0}
        return Collected(rollouts, of_rows, outcomes, batch, metrics, seconds, source, events, sampled=False)


def evaluate_given(
    collector: GivenCollector, updater: Updater, examples: Sequence[Example], states: State, seed: int
) -> Evaluation:
    """The recipe's loss and statistics on held-out completions, as eval/loss, eval/pairs/accuracy and so on."""
    found = collector.rows(examples)
    assert found.batch is not None
    stats = updater.measure(found.rollouts, found.batch, states, (seed, "eval"))
    metrics = {f"eval/{name}": value for name, value in stats.items()}
    return Evaluation({**metrics, "eval/prompts": float(len(examples))}, found.rollouts, found.examples, found.outcomes)
