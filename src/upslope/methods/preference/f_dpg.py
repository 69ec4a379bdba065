"""f-DPG: the policy is brought to a target distribution by the gradient of an f-divergence, each sample weighted by -f'.

    P     unnormalized target: ref exp(R / beta) ("reward"), or ref where R > threshold and 0 elsewhere ("filter")
    Z     mean of P / old over all completions of the prompt so far, those of the step included          [G]
    u     old / (P / Z), of whole completions                                       [R]
    A     -f'(u) - mean of -f' over the last `window` completions before the step   [R]
    loss  mean over sequences of -A * (sum over tokens of logp)

    f'    js log 2 - log(1 + 1/u);  forward_kl -1/u;  reverse_kl log u + 1;  tv sign(log u) / 2;  chi2 1 - u^-2

Differs from reinforce:  the pseudo-reward -f'(u) with its baseline in place of the reward. The partition function per prompt and
    the window of the baseline are remembered from step to step.
Limits:  E[f'(u) grad log policy] is the gradient of D_f(policy || target). reverse_kl with the reward target is reinforce on
    R / beta less the log-ratio to the reference, but for a constant per prompt: KL-penalized REINFORCE. At the target u = 1.
Expects:  short completions, or rewards for which P / old is not dominated by few: Z is an average of whole-sequence ratios. Several
    completions per prompt, and prompts that come again.
Source:  Go et al. 2023 (arXiv:2302.08215); the authors' naver/disco, losses/*.py and tuner.py. Jensen-Shannon, window 1024.
Deviations:  the baseline's window goes back in whole steps. One optimizer step per batch, from the policy itself: no proposal
    beside it, so the importance weights are 1. beta = 1 and 8 completions per prompt are our choice (there: 1024). f' is kept
    within +-largest, where forward_kl and chi2 are unbounded; their code bounds Z. js is that of their code, twice the usual one.
Not this:  GDC's moment constraints as targets. reinforce on a reward that is 1 or 0: it collapses to one such completion.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.reinforce import reinforce
from upslope.recipe import Part, Recipe, State
from upslope.registry import method

Divergence = Literal["js", "forward_kl", "reverse_kl", "tv", "chi2"]


@dataclass(frozen=True)
class TargetDivergence(Part):
    """A [R], as above. Remembers log of the sum of P / old and their number per prompt_key, and the pseudo-rewards of past steps.

    Raises UsageError for the reverse KL to a target that excludes completions: it is infinite.
    """

    divergence: Divergence = "js"
    target: Literal["reward", "filter"] = "reward"
    beta: float = 1.0
    threshold: float = 0.5
    window: int = 1024
    largest: float = 100.0
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_logp", "ref_logp", "prompt_key"})

    def __post_init__(self) -> None:
        if self.target == "filter" and self.divergence == "reverse_kl":
            raise UsageError(
                "TargetDivergence(target='filter', divergence='reverse_kl') is infinite for completions that the target "
                "excludes. Take divergence='js', or target='reward'."
            )
        if not (self.beta > 0 and self.window > 0 and self.largest > 0):
            raise UsageError(f"TargetDivergence: beta, window and largest must be positive, not {self}.")

    def init(self) -> State:
        return {"log_sum": {}, "count": {}, "sums": [], "sizes": []}

    def describe(self) -> str:
        target = f"ref exp(R / {self.beta:g})" if self.target == "reward" else f"ref where R > {self.threshold:g}"
        return f"-f'(old Z / P) - mean of the last {self.window} before, f: {self.divergence}, P = {target}"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        log_weight = self.log_weight(batch)
        log_z, log_sum, count = self._partition(batch, log_weight, state)
        reward = torch.where(batch.trained, -slope(log_z - log_weight, self.divergence, self.largest), 0.0)
        sums, sizes = state["sums"], state["sizes"]
        baseline = sum(sums) / sum(sizes) if sizes else 0.0
        fresh = reward[batch.trained]
        sums, sizes = [*sums, float(fresh.sum())], [*sizes, len(fresh)]
        while sum(sizes[1:]) >= self.window:
            sums, sizes = sums[1:], sizes[1:]
        following = {"log_sum": log_sum, "count": count, "sums": sums, "sizes": sizes}
        return torch.where(batch.trained, reward - baseline, 0.0), following

    def log_weight(self, batch: Batch) -> Tensor:
        """log(P / old) of whole completions, [R]; -inf where the target excludes one."""
        ratio = ((batch.ref_logp - batch.old_logp) * batch.mask).sum(1)
        if self.target == "reward":
            return ratio + batch.reward / self.beta
        return torch.where(batch.reward > self.threshold, ratio, -torch.inf)

    def _partition(
        self, batch: Batch, log_weight: Tensor, state: State
    ) -> tuple[Tensor, dict[str, float], dict[str, int]]:
        """log Z of each row's prompt [R], and what is remembered of all prompts."""
        log_sum, count = dict(state["log_sum"]), dict(state["count"])
        log_z = torch.zeros_like(log_weight)
        for key in batch.prompt_key[batch.trained].unique().tolist():
            rows = (batch.prompt_key == key) & batch.trained
            name, total = str(key), float(log_weight[rows].double().logsumexp(0))
            log_sum[name] = float(torch.tensor([log_sum.get(name, -math.inf), total]).double().logsumexp(0))
            count[name] = count.get(name, 0) + int(rows.sum())
            log_z[rows] = log_sum[name] - math.log(count[name])
        return log_z, log_sum, count


def slope(log_u: Tensor, divergence: Divergence, largest: float) -> Tensor:
    """f'(u) at log u (inf, or NaN of inf - inf, where the target excludes the completion), within +-largest."""
    log_u = log_u.nan_to_num(nan=torch.inf, posinf=torch.inf)
    value = {
        "js": lambda: math.log(2) - F.softplus(-log_u),
        "forward_kl": lambda: -(-log_u).exp(),
        "reverse_kl": lambda: log_u + 1,
        "tv": lambda: log_u.sign() / 2,
        "chi2": lambda: 1 - (-2 * log_u).exp(),
    }[divergence]()
    return value.clamp(-largest, largest)


@method(
    paper="2302.08215",
    title="Aligning Language Models with Preferences through f-divergence Minimization",
    parent="reinforce",
)
def f_dpg() -> Recipe:
    return reinforce().replace(advantage=TargetDivergence(divergence="js", target="reward", beta=1.0))
