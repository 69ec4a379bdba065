"""What passes between a task, an engine and a policy: questions, sampled answers, verdicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.batch import Batch

Message = Mapping[str, str]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Example:
    """One question of a task.

    `key` is its stable identity (curricula and per-prompt state are keyed by it), `prompt` a plain string or a list of
    chat messages, `data` whatever the verifier reads: the reference answer, metadata, extra columns of the user's file.
    """

    key: str
    prompt: str | Sequence[Message]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A verifier's verdict on one completion: a value with named parts, or a failure with a reason. Never both.

    Neither: nobody judges. `columns` are what the verifier says beside the reward, for methods that read it: answer, prediction,
    stratum.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    columns: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether somebody judged: with a value, or in vain."""
        return self.value is not None or self.failure is not None


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `top_k` 0 and `top_p` 1 mean no truncation; `stop` strings end a completion.

    `adapt`, where given, maps the entropies [r] of the next-token distributions (temperature 1, nats) to the temperatures [r]
    at which they are sampled, instead of `temperature`.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    adapt: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Rollouts:
    """R sampled completions of P distinct prompts, as tokens; text is for reading, never tokenized again.

    prompts         token ids of each distinct prompt, P lists
    prompt          index into `prompts` of each row                        [R] int64
    tokens          completion ids, the end-of-sequence token included      [R, T] int64, right-padded with 0
    mask            True where the policy wrote the token                   [R, T] bool (False: padding, tool text)
    length          tokens of each completion, masked-out ones included     [R] int64
    logp            log-prob of each token under the model, temperature 1   [R, T] float32, 0 beyond `length`
    behavior_logp   log-prob under the distribution that was sampled from   [R, T] float32, 0 beyond `length`
    finish          "stop" (end token or stop string) or "length"           R strings
    text            decoded completion without special tokens               R strings
    observed        further columns of what was sampled from, by name       each [R, T] float32
    """

    prompts: Sequence[Sequence[int]]
    prompt: Tensor
    tokens: Tensor
    mask: Tensor
    length: Tensor
    logp: Tensor
    behavior_logp: Tensor
    finish: Sequence[Finish]
    text: Sequence[str]
    observed: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    def select(self, rows: Tensor) -> "Rollouts":
        """The given rows [r] int64, in that order, cut to their longest completion; `prompts` stays as it is."""
        width = max(int(self.length[rows].max()), 1) if len(rows) else 1
        columns = {name: getattr(self, name)[rows, :width] for name in TOKEN_COLUMNS}
        return replace(
            self,
            prompt=self.prompt[rows],
            length=self.length[rows],
            finish=[self.finish[row] for row in rows.tolist()],
            text=[self.text[row] for row in rows.tolist()],
            observed={name: column[rows, :width] for name, column in self.observed.items()},
            **columns,
        )

    @staticmethod
    def given(
        prompts: Sequence[Sequence[int]],
        prompt: Tensor,
        tokens: Sequence[Sequence[int]],
        finish: Sequence[Finish],
        text: Sequence[str],
    ) -> "Rollouts":
        """Rows whose tokens are known, R lists, all of them trained on; log-probs 0, to be filled in."""
        length = torch.tensor([len(ids) for ids in tokens])
        mask = torch.arange(max(int(length.max()), 1)) < length[:, None]
        padded = torch.zeros(mask.shape, dtype=torch.int64)
        padded[mask] = torch.tensor([token for ids in tokens for token in ids], dtype=torch.int64)
        zeros = torch.zeros(mask.shape)
        return Rollouts(prompts, prompt, padded, mask, length, zeros, zeros, finish, text)

    @staticmethod
    def concatenate(parts: "Sequence[Rollouts]") -> "Rollouts":
        """One after the other; prompts are not merged, so equal prompts of different parts stay apart."""
        width = max(part.tokens.shape[1] for part in parts)
        offsets = torch.tensor([0, *(len(part.prompts) for part in parts)]).cumsum(0)

        def joined(columns: Sequence[Tensor]) -> Tensor:
            return torch.cat([torch.nn.functional.pad(column, (0, width - column.shape[1])) for column in columns])

        columns = {name: joined([getattr(part, name) for part in parts]) for name in TOKEN_COLUMNS}
        return Rollouts(
            prompts=[ids for part in parts for ids in part.prompts],
            prompt=torch.cat([part.prompt + offset for part, offset in zip(parts, offsets, strict=False)]),
            length=torch.cat([part.length for part in parts]),
            finish=[finish for part in parts for finish in part.finish],
            text=[text for part in parts for text in part.text],
            observed={name: joined([part.observed[name] for part in parts]) for name in parts[0].observed},
            **columns,
        )

    @staticmethod
    def side_by_side(one: "Rollouts", other: "Rollouts") -> "Rollouts":
        """The rows of both, of the same `prompts`, those of a prompt together: first those of `one`."""
        joined = Rollouts.concatenate([one, other])
        of_prompt = joined.prompt % len(one.prompts)
        return replace(joined, prompts=one.prompts, prompt=of_prompt).select(of_prompt.argsort(stable=True))


TOKEN_COLUMNS = ("tokens", "mask", "logp", "behavior_logp")


@dataclass(frozen=True)
class Visit:
    """A step's new rollouts as its curriculum sees them, before the update.

    rollouts, batch    aligned, R rows
    keys               key of each row's example                                   R strings
    places             key of each example that the step drew, by its place among the training examples
    score              log-probs [r, T] of r rollouts under the policy as it is now
    """

    rollouts: Rollouts
    batch: Batch
    keys: Sequence[str]
    places: Mapping[int, str]
    score: Callable[[Rollouts], Tensor]
