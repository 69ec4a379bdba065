"""The temperature: constant, or a dual variable that holds the policy's entropy at a target."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from upslope.errors import UsageError, check_within
from upslope.recipe import Part, State


@dataclass(frozen=True)
class Constant(Part):
    """alpha as given."""

    alpha: float = 0.2
    stateful: ClassVar[bool] = True
    formula: ClassVar[str] = "{alpha:g}"

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "alpha")

    def value(self, state: State) -> float:
        """alpha."""
        return self.alpha

    def __call__(self, state: State, logp: float, size: int, rate: float = 1.0) -> State:
        return state


@dataclass(frozen=True)
class Automatic(Part):
    """alpha = exp(x); one Adam step on x per actor step, so that the mean of -log pi(a|s) comes to `target`.

    target      None: -A, the number of action dimensions with the sign turned
    gradient    "log": of -x mean(log pi + target); "alpha": of -exp(x) mean(log pi + target), which is alpha times that
    The log-probs are those of the current policy's own actions.
    """

    target: float | None = None
    initial: float = 1.0
    lr: float = 3e-4
    gradient: Literal["log", "alpha"] = "log"
    stateful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.initial < math.inf:
            raise UsageError(f"temperature.initial is {self.initial}; it must be above 0 and finite: alpha = exp(x).")
        check_within(self, 0, math.inf, "lr")
        if self.target is not None and not math.isfinite(self.target):
            raise UsageError(f"temperature.target is {self.target}; it must be finite, or None for -A.")

    def init(self) -> State:
        return multiplier(self.initial)

    def value(self, state: State) -> float:
        """alpha."""
        return math.exp(state["x"])

    def __call__(self, state: State, logp: float, size: int, rate: float = 1.0) -> State:
        """The next state; `logp` is the mean of log pi(a|s), `size` the number A of action dimensions, `rate` the factor of lr that
        the actor's schedule gives."""
        return adam(state, self.slope(state, logp, size), self.lr * rate)

    def slope(self, state: State, logp: float, size: int) -> float:
        """The gradient with respect to x."""
        target = -float(size) if self.target is None else self.target
        slope = -(logp + target)
        return slope * math.exp(state["x"]) if self.gradient == "alpha" else slope

    def describe(self) -> str:
        target = "-A" if self.target is None else f"{self.target:g}"
        return f"alpha = exp(x), x by Adam so that mean(-log pi(a|s)) = {target}"


def multiplier(initial: float) -> State:
    """The state of a number above 0 that is learned as exp(x)."""
    return {"x": math.log(initial), "mean": 0.0, "square": 0.0, "steps": 0}


def adam(state: State, slope: float, lr: float) -> State:
    """Adam with its usual constants, on one number x with this gradient."""
    steps = state["steps"] + 1
    mean = 0.9 * state["mean"] + 0.1 * slope
    square = 0.999 * state["square"] + 0.001 * slope**2
    move = (mean / (1 - 0.9**steps)) / (math.sqrt(square / (1 - 0.999**steps)) + 1e-8)
    return {"x": state["x"] - lr * move, "mean": mean, "square": square, "steps": steps}


def alpha_of(part: Any, state: State) -> float:
    """The temperature of a recipe's part; 0 where it has none."""
    return 0.0 if part is None else float(part.value(state))
