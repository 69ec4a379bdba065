"""One call of the engine: what was asked, and what has been drawn so far."""

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.engines.sampling import uniforms
from upslope.engines.stopping import CONTINUE, END, StopRule
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
    ) -> None:
        self.prompts, self.sampling, self.seed, self.stop_rule = prompts, sampling, seed, stop_rule
        self.prompt = torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
        self.limit = (context_length - lengths[self.prompt]).clamp(max=sampling.max_tokens)
        rows = len(self.prompt)
        self.width = int(self.limit.max()) if rows else 1
        self._tokens = torch.zeros(rows, self.width, dtype=torch.int64)
        self._logp = torch.zeros(rows, self.width)
        self._behavior_logp = torch.zeros(rows, self.width)
        self._length = torch.zeros(rows, dtype=torch.int64)
        self._stopped = torch.zeros(rows, dtype=torch.bool)

    def uniform(self, step: int, rows: Tensor) -> Tensor:
        """The random numbers of these rows [r] at a step, [r] float64 in [0, 1)."""
        return uniforms(self.seed, step, len(self.prompt))[rows]

    def record(
        self, step: int, rows: Tensor, alive: Tensor, tokens: Tensor, logp: Tensor, behavior_logp: Tensor
    ) -> Tensor:
        """Store one token of each row [r]; rows that are not `alive` are ignored. Which rows it ended, [r] bool.

        Raises:
            FloatingPointError: a log-prob of a row alive is not finite.
        """
        if not alive.all():
            rows, tokens, logp, behavior_logp = rows[alive], tokens[alive], logp[alive], behavior_logp[alive]
        self._check_finite(step, rows, logp)
        self._tokens[rows, step] = tokens
        self._logp[rows, step] = logp
        self._behavior_logp[rows, step] = behavior_logp
        self._length[rows] = step + 1
        flags = self.stop_rule.flags(tokens)
        stopped = flags == END
        for index in ((flags != CONTINUE) & ~stopped).nonzero()[:, 0].tolist():
            row = int(rows[index])
            stopped[index] = self.stop_rule.ends_with_string(self._tokens[row, : step + 1].tolist())
        self._stopped[rows] = stopped
        ended = torch.zeros_like(alive)
        ended[alive] = stopped | (self.limit[rows] == step + 1)
        return ended

    def rollouts(self) -> Rollouts:
        """Everything drawn, cut to the longest completion."""
        width = max(int(self._length.max()), 1) if len(self._length) else 1
        mask = torch.arange(width) < self._length[:, None]
        completions = [
            tokens[:length] for tokens, length in zip(self._tokens.tolist(), self._length.tolist(), strict=True)
        ]
        finish: list[Finish] = ["stop" if stopped else "length" for stopped in self._stopped.tolist()]
        return Rollouts(
            prompts=[list(prompt) for prompt in self.prompts],
            prompt=self.prompt,
            tokens=self._tokens[:, :width].contiguous(),
            mask=mask,
            length=self._length,
            logp=self._logp[:, :width].contiguous(),
            behavior_logp=self._behavior_logp[:, :width].contiguous(),
            finish=finish,
            text=[self.stop_rule.text(tokens) for tokens in completions],
        )

    def _check_finite(self, step: int, rows: Tensor, logp: Tensor) -> None:
        wrong = ~logp.isfinite()
        if not wrong.any():
            return
        row = int(rows[wrong][0])
        raise FloatingPointError(
            f"The model's logits are not finite: row {row} (prompt {int(self.prompt[row])}) at step {step}, and "
            f"{int(wrong.sum()) - 1} more of {len(rows)} rows. Look for NaN or infinity in its weights."
        )
