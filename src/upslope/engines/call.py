"""One call of the engine: what was asked, and what has been drawn so far."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from upslope.engines.sampling import Uniforms
from upslope.engines.stopping import CONTINUE, END, StopRule
from upslope.recipe import Observation
from upslope.rollout import Finish, Rollouts, Sampling


class Call:
    """R rows over P prompts, with room for what is drawn, on the CPU.

    prompt    prompt of each row                                     [R] int64
    limit     the most tokens each row may have                      [R] int64
    width     the largest limit
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        counts: Sequence[int],
        sampling: Sampling,
        seed: int,
        context_length: int,
        stop_rule: StopRule,
        observe: Mapping[str, Observation],
    ) -> None:
        self.prompts, self.sampling, self.seed, self.stop_rule = prompts, sampling, seed, stop_rule
        self.prompt = torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
        self.limit = (context_length - lengths[self.prompt]).clamp(max=sampling.max_tokens)
        rows = len(self.prompt)
        self.width = int(self.limit.max()) if rows else 1
        self.tokens = torch.zeros(rows, self.width, dtype=torch.int64)
        self.logp = torch.zeros(rows, self.width)
        self.behavior_logp = torch.zeros(rows, self.width)
        self.observe = observe
        self.observed = {name: torch.zeros(rows, self.width) for name in observe}
        self.length = torch.zeros(rows, dtype=torch.int64)
        self.stopped = torch.zeros(rows, dtype=torch.bool)

    def rollouts(self) -> Rollouts:
        """Everything drawn, cut to the longest completion."""
        width = max(int(self.length.max()), 1) if len(self.length) else 1
        mask = torch.arange(width) < self.length[:, None]
        tokens = self.tokens[:, :width] * mask
        completions = [row[:length] for row, length in zip(tokens.tolist(), self.length.tolist(), strict=True)]
        finish: list[Finish] = ["stop" if stopped else "length" for stopped in self.stopped.tolist()]
        return Rollouts(
            prompts=[list(prompt) for prompt in self.prompts],
            prompt=self.prompt,
            tokens=tokens,
            mask=mask,
            length=self.length,
            logp=self.logp[:, :width].masked_fill(~mask, 0.0),
            behavior_logp=self.behavior_logp[:, :width].masked_fill(~mask, 0.0),
            observed={name: column[:, :width].masked_fill(~mask, 0.0) for name, column in self.observed.items()},
            finish=finish,
            text=[self.stop_rule.text(row) for row in completions],
        )


class Wave:
    """Rows of a call that are decoded together, step by step.

    rows     rows of the call that are still in the batch                      [r] int64
    alive    which of them have not ended                                      [r] bool
    left     how many have not ended
    """

    def __init__(self, call: Call, rows: Tensor) -> None:
        self.call, self.rows = call, rows
        self.alive = torch.ones(len(rows), dtype=torch.bool)
        self.left = len(rows)
        self.step = 0
        self.uniforms = Uniforms(call.seed, len(call.prompt))
        self.first_limit = int(call.limit[rows].min())
        self.drawn: list[tuple[Tensor, Tensor]] = []  # of each step: rows, and their tokens
        # Kept in one place: a step's small results, left lying between the large logits of the steps, would keep malloc from
        # using that space again, and memory would grow with every step.
        room = len(rows) * int(call.limit[rows].max())
        kinds = [torch.int64] + [torch.float32] * (2 + len(call.observed))
        self.columns = [torch.empty(room, dtype=kind) for kind in kinds]
        self.filled = 0

    def uniform(self) -> Tensor:
        """The random numbers of this step, [r] float64 in [0, 1)."""
        return self.uniforms.next()[self.rows]

    def observe(self, logits: Tensor, tokens: Tensor) -> list[Tensor]:
        """What the call observes of the distributions from which `tokens` [r] were drawn, logits [r, V]; each [r]."""
        if not self.call.observe:
            return []
        log_probs = logits.float().log_softmax(-1)
        return [function(log_probs, tokens) for function in self.call.observe.values()]

    def append(self, tokens: Tensor, logp: Tensor, behavior_logp: Tensor, observed: Sequence[Tensor] = ()) -> None:
        """One token of each row [r], its log-probs and what was observed, on the CPU. Updates `alive` and `left`.

        Raises:
            FloatingPointError: a log-prob of a row alive is not finite.
        """
        if not logp.isfinite().all():
            self._check_finite(logp)
        place = slice(self.filled, self.filled + len(tokens))
        for column, values in zip(self.columns, (tokens, logp, behavior_logp, *observed), strict=True):
            column[place] = values
        self.drawn.append((self.rows, self.columns[0][place]))
        self.filled, self.step = place.stop, self.step + 1
        flags = self.call.stop_rule.flags(tokens)
        if flags.any():
            self._end(self._stopped(flags), stopped=True)
        if self.step >= self.first_limit:
            self._end(self.alive & (self.call.limit[self.rows] <= self.step), stopped=False)

    def keep(self, kept: Tensor) -> None:
        """Keep only these rows [k] int64, indices into `rows`."""
        self.rows, self.alive = self.rows[kept], self.alive[kept]

    def store(self) -> None:
        """Write what was drawn into the call; what ended rows drew afterwards is cut off by their length."""
        rows = torch.cat([rows for rows, _ in self.drawn])
        tokens, logp, behavior_logp, *observed = (column[: self.filled] for column in self.columns)
        step = torch.repeat_interleave(torch.tensor([len(rows) for rows, _ in self.drawn]))
        self.call.tokens[rows, step] = tokens
        self.call.logp[rows, step] = logp
        self.call.behavior_logp[rows, step] = behavior_logp
        for column, values in zip(self.call.observed.values(), observed, strict=True):
            column[rows, step] = values

    def _stopped(self, flags: Tensor) -> Tensor:
        stopped = self.alive & (flags == END)
        for index in (self.alive & (flags != CONTINUE) & ~stopped).nonzero()[:, 0].tolist():
            row = self.rows[index]
            completion = [int(tokens[rows == row]) for rows, tokens in self.drawn]
            stopped[index] = self.call.stop_rule.ends_with_string(completion)
        return stopped

    def _end(self, ended: Tensor, stopped: bool) -> None:
        self.call.length[self.rows[ended]] = self.step
        self.call.stopped[self.rows[ended]] = stopped
        self.alive = self.alive & ~ended
        self.left = int(self.alive.sum())

    def _check_finite(self, logp: Tensor) -> None:
        wrong = self.rows[self.alive & ~logp.isfinite()]
        if len(wrong):
            row = int(wrong[0])
            raise FloatingPointError(
                f"The model's logits are not finite: row {row} (prompt {int(self.call.prompt[row])}) at step "
                f"{self.step}, and {len(wrong) - 1} more of {self.left} rows. Look for NaN or infinity in its weights."
            )
