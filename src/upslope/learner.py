"""One optimizer step over micro-batches: gradients add up, are checked, clipped and applied; or the step is skipped."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from upslope.config import OptimizerConfig
from upslope.errors import UsageError
from upslope.recipe import Stats
from upslope.runs.state import load_optimizer_state

MicroBatch = Callable[[], tuple[Tensor, Stats]]


class NotFiniteError(ArithmeticError):
    """A column, a loss or a gradient is NaN or infinite; the message says which."""


@dataclass
class StepResult:
    """Statistics summed over micro-batches, the gradient's norm before clipping, the learning rate (None: no step was taken),
    and why the step was skipped, if it was.
    """

    stats: dict[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    lr: float | None = None
    skipped: str | None = None


@runtime_checkable
class RateRule(Protocol):
    """A recipe's `update` part that scales the learning rate by what the gradients of two halves of a step say.

    ema           weight of the past in the moving averages of the two estimates
    rate_factor   from those averages, of |E g|^2 and of the trace of the covariance of g, to a factor of the scheduled rate;
                  the former's estimate has no bias, so it may be negative
    """

    ema: float

    def rate_factor(self, signal: float, noise: float) -> float: ...


@dataclass(frozen=True)
class Halves:
    """Two halves of a step's rows: the first has the first `count` micro-batches and is the given `share` of the rows."""

    count: int
    share: float
    rule: RateRule


@dataclass(frozen=True)
class AdamStep:
    """Adam before its next step of one parameter [V, ...]: its moments, zero before its first, settings and steps taken."""

    mean: Tensor
    square: Tensor
    taken: int
    lr: float
    betas: tuple[float, float]
    eps: float

    def direction(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """What the rows [...] of the parameter would move along, times -lr, if their gradient [..., *] were this one."""
        first, second = self.betas
        mean = self.mean[rows].lerp_(gradient, 1 - first)
        square = self.square[rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        steps = self.taken + 1
        square.div_(1 - second**steps).sqrt_().add_(self.eps).mul_(1 - first**steps)
        return mean.div_(square)


class Learner:
    """Parameters with their AdamW and schedule. `total_steps` is where a falling schedule ends, in optimizer steps.

    `rate_factor` scales the schedule, and `signal` and `noise` are its moving averages, where a RateRule is followed.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, config: OptimizerConfig, total_steps: int
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        # A step of 1e-6 is lost in bfloat16's 8 bits: such weights have a float32 master copy, which the optimizer moves.
        self.masters = [p.detach().float().clone() if p.dtype != torch.float32 else p for p in self.parameters]
        self.config, self.total_steps, self.taken, self.lr = config, max(total_steps, 1), 0, lr
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.masters, lr=lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.rate_factor, self.signal, self.noise = 1.0, 0.0, 0.0

    def rate(self) -> float:
        """The learning rate of the next step, as far as it is known before its gradient."""
        factor = min(1.0, (self.taken + 1) / (self.config.warmup + 1))
        progress = min(1.0, self.taken / self.total_steps)
        if self.config.schedule == "linear":
            factor *= 1 - progress
        elif self.config.schedule == "cosine":
            factor *= (1 + math.cos(math.pi * progress)) / 2
        elif self.config.schedule == "inverse_sqrt":
            warmup = max(self.config.warmup, 1)
            factor *= math.sqrt(warmup / max(warmup, self.taken))
        return self.lr * factor * self.rate_factor

    def next_step(self, parameter: Tensor) -> AdamStep:
        """Adam's moments and settings for a trained parameter. Raises UsageError for one that is not trained."""
        places = [index for index, trained in enumerate(self.parameters) if trained is parameter]
        if not places:
            raise UsageError(
                f"the step of a parameter of shape {list(parameter.shape)} is asked for, which this run does not train: adapters "
                "leave the output layer alone. Train every weight (lora.rank=0), or take another method."
            )
        master = self.masters[places[0]]
        state = self.optimizer.state.get(master, {})
        zeros = torch.zeros_like(master) if not state else None
        return AdamStep(
            mean=state.get("exp_avg", zeros),
            square=state.get("exp_avg_sq", zeros),
            taken=int(state.get("step", 0)),
            lr=self.rate(),
            betas=self.config.betas,
            eps=self.optimizer.defaults["eps"],
        )

    def step(self, micro_batches: Sequence[MicroBatch], halves: Halves | None = None) -> StepResult:
        """Each micro-batch's loss is made, differentiated and dropped; then one step, unless something is not finite.

        With `halves` the gradients of both are compared and the rule sets the rate. The first half's is held beside the
        second's, which takes the memory of one more gradient.
        """
        result = StepResult()
        totals: dict[str, Tensor] = {}
        try:
            count = len(micro_batches) if halves is None else halves.count
            self._accumulate(micro_batches[:count], totals)
            if halves is not None:
                first = [parameter.grad for parameter in self.parameters]
                self._forget_gradient()
                self._accumulate(micro_batches[count:], totals)
                estimates = self._join(first, halves.share)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
            result.grad_norm = float(norm)
            if not math.isfinite(result.grad_norm):
                raise NotFiniteError(f"the gradient's norm is {result.grad_norm}")
            if halves is not None:
                self._follow(halves.rule, *estimates)
            result.lr = self.rate()
            for group in self.optimizer.param_groups:
                group["lr"] = result.lr
            self._apply()
            self.taken += 1
        except NotFiniteError as error:
            result.skipped = str(error)
        self._forget_gradient()
        result.stats = {name: float(value) for name, value in totals.items()}
        if halves is not None:
            result.stats |= {"gradient/signal": self.signal, "gradient/noise": self.noise}
        return result

    @staticmethod
    def _accumulate(micro_batches: Sequence[MicroBatch], totals: dict[str, Tensor]) -> None:
        for micro_batch in micro_batches:
            loss, stats = micro_batch()
            if not loss.isfinite():
                raise NotFiniteError(f"the loss is {float(loss.detach())}")
            if loss.requires_grad:
                loss.backward()
            for name, value in stats.items():
                totals[name] = totals[name] + value if name in totals else value

    def _forget_gradient(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def _join(self, first: Sequence[Tensor | None], share: float) -> tuple[float, float]:
        """Adds the first half's gradient to the second's; estimates of |E g|^2 and of the trace of the covariance of g.

        With a the first half's, over its share s of the rows, and b the second's, over 1 - s: <a, b>, and s (1 - s) |a - b|^2.
        """
        own = other = product = 0.0
        for parameter, a in zip(self.parameters, first, strict=True):
            b = parameter.grad
            own += float(a.float().square().sum()) if a is not None else 0.0
            other += float(b.float().square().sum()) if b is not None else 0.0
            if a is not None:
                product += float((a.float() * b.float()).sum()) if b is not None else 0.0
                parameter.grad = a if b is None else a + b
        rest = 1 - share
        return product / (share * rest), own * rest / share + other * share / rest - 2 * product

    def _follow(self, rule: RateRule, signal: float, noise: float) -> None:
        # Both averages start at 0 and grow alike, so their ratio needs no correction for the start.
        self.signal = rule.ema * self.signal + (1 - rule.ema) * signal
        self.noise = rule.ema * self.noise + (1 - rule.ema) * noise
        self.rate_factor = rule.rate_factor(self.signal, self.noise)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, the steps taken, the learning rate's, and the master copies of weights that are not float32."""
        masters = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        rate = {"factor": self.rate_factor, "signal": self.signal, "noise": self.noise}
        return {"optimizer": self.optimizer.state_dict(), "taken": self.taken, "rate": rate, "masters": masters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned. Raises UsageError if it belongs to other parameters."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.taken, rate = state["taken"], state["rate"]
        self.rate_factor, self.signal, self.noise = rate["factor"], rate["signal"], rate["noise"]
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
