"""OTR: at every position of a demonstration the policy draws one token, which is rewarded if it is the demonstration's.

    q     softmax(log pi / temperature) at the position, without gradient                                  [V]
    R(v)  1 if v is the demonstration's token x, else -penalty
    loss  mean over the batch's tokens of -sum over v of q(v) R(v) log pi(v)                               (samples = 0)
          or of -(1 / K) sum over K draws a ~ q of R(a) log pi(a)                                          (samples = K)

Differs from dft:  q in the place of p where temperature is not 1; the penalty of the other tokens.
Limits:  at temperature 1 the gradient is 1 + penalty times dft's, exactly without sampling and in expectation with it:
    the penalty then only changes the learning rate. Only another temperature is a method of its own.
Expects:  data with prompt and completion. Two functions of the whole distribution at every token, without a pass of their
    own; with samples the distributions are kept, which takes memory: vocabulary x tokens of a pass.
Source:  arXiv:2509.26313; no code was found. Rewards 1 and a small negative number, K = 256 and the reward without
    gradient are the paper's; penalty = 0.1 and temperature = 1.3 are from memory.
Deviations:  samples=0, the expectation, is the default: the paper draws K = 256. The mean is over the tokens of the
    batch, theirs over a completion's and then over completions: aggregate=SequenceMean().
Not this:  a rollout: the context is the demonstration's throughout. The settings temperature and samples of that stage, which are
    of completions; those of the loss are surrogate.temperature and surrogate.samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.supervised.sft import sft
from upslope.parts.hashing import uniform_of
from upslope.recipe import Observation, Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class OneTokenRollout(Part):
    """The loss per token [R, T], as above. What is drawn depends on the step, the completion and the position alone."""

    penalty: float = 0.1
    temperature: float = 1.3
    samples: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf") or self.samples < 0:
            raise UsageError(
                f"OneTokenRollout(temperature={self.temperature:g}, samples={self.samples}): the temperature must be positive, "
                "samples 0 for the expectation or the number of draws, e.g. 256."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Two functions of the distributions, or the distributions themselves."""
        return frozenset(
            {"log_distribution", "tokens", "trajectory"} if self.samples else {"target_chance", "other_tokens"}
        )

    def observes(self) -> Mapping[str, Observation]:
        if self.samples:
            return {}
        return {"target_chance": self._target_chance, "other_tokens": self._other_tokens}

    def describe(self) -> str:
        reward = f"R = 1 for the token of the data, -{self.penalty:g} for others"
        how = f"{self.samples} draws" if self.samples else "all tokens"
        return f"-R log pi over {how} of softmax(log pi / {self.temperature:g}), {reward}"

    def __call__(self, batch: Batch) -> Tensor:
        if self.samples:
            return self._sampled(batch)
        return self.penalty * batch.other_tokens - batch.target_chance.detach() * batch.logp

    def stats(self, batch: Batch) -> Stats:
        return {"nll": -batch.logp}

    def _chances(self, log_probs: Tensor) -> Tensor:
        return (log_probs.detach() / self.temperature).softmax(-1)

    def _target_chance(self, log_probs: Tensor, tokens: Tensor) -> Tensor:
        """q(x) [M]."""
        return self._chances(log_probs).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def _other_tokens(self, log_probs: Tensor, tokens: Tensor) -> Tensor:
        """Sum over v other than x of q(v) log pi(v), [M]."""
        chance = self._chances(log_probs).scatter(-1, tokens.unsqueeze(-1), 0.0)
        return (chance * torch.where(chance > 0, log_probs, 0.0)).sum(-1)

    def _sampled(self, batch: Batch) -> Tensor:
        log_probs, device = batch.log_distribution, batch.logp.device
        position = torch.arange(log_probs.shape[1]).unsqueeze(-1)
        row, step = (column.cpu().view(-1, 1, 1) for column in (batch.trajectory, batch.step))
        uniform = uniform_of(step, row, position, torch.arange(self.samples)).to(device)
        below = self._chances(log_probs.double()).cumsum(-1)
        drawn = torch.searchsorted(below, uniform * below[..., -1:], right=True).clamp(max=log_probs.shape[-1] - 1)
        reward = torch.where(drawn == batch.tokens.unsqueeze(-1), 1.0, -self.penalty)
        loss = -(reward.to(log_probs.dtype) * log_probs.gather(-1, drawn)).mean(-1)
        return torch.where(batch.mask, loss, 0.0)


@method(
    paper="2509.26313",
    title="One-Token Rollout: Guiding Supervised Fine-Tuning of LLMs with Policy Gradient",
    parent="dft",
)
def one_token_rollout() -> Recipe:
    return sft().replace(surrogate=OneTokenRollout(penalty=0.1, temperature=1.3))
