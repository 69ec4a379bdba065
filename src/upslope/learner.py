"""One optimizer step over micro-batches: gradients add up, are checked, clipped and applied; or the step is skipped."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upslope.config import OptimizerConfig
from upslope.recipe import Stats
from upslope.runs.state import load_optimizer_state

MicroBatch = Callable[[], tuple[Tensor, Stats]]


class NotFiniteError(ArithmeticError):
    """A column, a loss or a gradient is NaN or infinite; the message says which."""


@dataclass
class StepResult:
    """Statistics summed over micro-batches, the gradient's norm before clipping, and why the step was skipped, if it was."""

    stats: dict[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    skipped: str | None = None


class Learner:
    """Parameters with their AdamW and schedule. `total_steps` is where a falling schedule ends, in optimizer steps."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, config: OptimizerConfig, total_steps: int
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        # A step of 1e-6 is lost in bfloat16's 8 bits: such weights have a float32 master copy, which the optimizer moves.
        self.masters = [p.detach().float().clone() if p.dtype != torch.float32 else p for p in self.parameters]
        self.config, self.total_steps, self.taken, self.lr = config, max(total_steps, 1), 0, lr
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    def rate(self) -> float:
        """The learning rate of the next step."""
        factor = min(1.0, (self.taken + 1) / (self.config.warmup + 1))
        progress = min(1.0, self.taken / self.total_steps)
        if self.config.schedule == "linear":
            factor *= 1 - progress
        elif self.config.schedule == "cosine":
            factor *= (1 + math.cos(math.pi * progress)) / 2
        return self.lr * factor

    def step(self, micro_batches: Sequence[MicroBatch]) -> StepResult:
        """Each micro-batch's loss is made, differentiated and dropped; then one step, unless something is not finite."""
        result = StepResult()
        totals: dict[str, Tensor] = {}
        try:
            for micro_batch in micro_batches:
                loss, stats = micro_batch()
                if not loss.isfinite():
                    raise NotFiniteError(f"the loss is {float(loss.detach())}")
                if loss.requires_grad:
                    loss.backward()
                for name, value in stats.items():
                    totals[name] = totals[name] + value if name in totals else value
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
            result.grad_norm = float(norm)
            if not math.isfinite(result.grad_norm):
                raise NotFiniteError(f"the gradient's norm is {result.grad_norm}")
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            self._apply()
            self.taken += 1
        except NotFiniteError as error:
            result.skipped = str(error)
        for parameter in self.parameters:
            parameter.grad = None
        result.stats = {name: float(value) for name, value in totals.items()}
        return result

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, the steps taken, and the master copies of weights that are not float32."""
        masters = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        return {"optimizer": self.optimizer.state_dict(), "taken": self.taken, "masters": masters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned. Raises UsageError if it belongs to other parameters."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.taken = state["taken"]
        copies = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        for master, saved in zip(copies, state["masters"], strict=True):
            master.copy_(saved)

    @torch.no_grad()
    def _apply(self) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self.optimizer.step()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master is not parameter:
                parameter.copy_(master)
                master.grad = None
