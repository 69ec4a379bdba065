"""OSPO: agents of one kind that act in the same step are each other's baseline; only what one step earned counts.

    p(j|i)  softmax of score(i, j) over the orders j that agent i could take, of one network for all agents
    taken   the assignment of agents to orders with the largest sum of log p + Gumbel noise (Hungarian method)
    A_it    (r_it - mean_t) / (std_t + 1e-8) - (sigma_t - sigma_(t-1)),  r_it what the agent earned by the order it took in step t,
            mean_t and std_t over the agents that took one in that step, with n; sigma_t the std over all agents of what each has
            earned in the episode so far, so that making them more unequal is punished                       [R, T]
    loss    mean over choices of max(-A r, -A clip(r, 0.8, 1.28)) - 0.05 entropy (+ beta KL(old || new) if asked for)

Differs from ppo:  no critic, no return: the mean of the step's other agents stands for the value, and what comes after the step
    is left out. Rows are agents. A clip that is wider above. 10 epochs of one episode.
Limits:  equal rewards in a step: no advantage but the fairness term, which is 0 where the agents' earnings stay as unequal.
    One agent: no advantage at all but that. beta = 0 (the default): no KL, and no mini-batch is left out.
Expects:  an environment of many agents that are alike, laid out as upslope/Dispatch-v0 is (pairs, open, workers, earned), whose
    reward is the sum of what they earn. Rewards that tell at once whether a choice was good: what an order does to later
    steps is not seen. Memory: agents * steps * orders * numbers of a pair, 35 MB for 30 * 60 * 30 * 10 in 2 episodes.
Source:  arXiv:2507.15351; the authors' RS2002/OSPO (OSPO/Platform.py, Worker.py, train.py; d3781d9, 3cf5d70). @grpo is its
    GRPO folder: all of the batch's rewards whitened together, then discounted returns, less the same punishment.
Deviations:  exploration is by Gumbel noise, so the choice of an agent alone is a draw from its softmax; theirs gives random pairs
    the best score, with a chance that falls from 1, and assigns by the sum of p. An epoch goes over all choices in mini-batches;
    theirs draws 10 batches of 256 with replacement. Their lr is 1e-5 times 0.99 per episode, for thousands of episodes
    of 1000 vehicles; here it is 1e-3 throughout, for hundreds of episodes of 30. With beta > 0 the KL is against the policy of the
    step's start, estimated at the choices; theirs is KL(new || best policy so far), from when an evaluation has not improved;
    as there, a mini-batch whose KL is above 0.01 is left out and beta doubled, until the next step.
Not this:  probabilities over the agents for each order (choice="agents"), which some descriptions of the method have: in the
    authors' code the softmax is over orders. IPPO and MAPPO: a learned value, of returns.
Claim:  better than baselines with a value function: not at our scale, docs/results/dispatch.md. It is better than greedy
    nearest, and loses to PPO with a shared critic where an order that pays more keeps its vehicle longer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError, check_within
from upslope.methods.control.ppo import ppo
from upslope.parts.assignment import Assignments, PairScores
from upslope.parts.gae import discounted_sum
from upslope.parts.kl import token_rewards
from upslope.parts.steps import Optimizer, StepUpdate
from upslope.parts.surrogate import ClippedRatio, EntropyLoss, token_ratio
from upslope.recipe import Part, Recipe, State
from upslope.registry import method, preset


@dataclass(frozen=True)
class StepWhitened(Part):
    """A [R, T] of one-step rewards, whitened over the agents of an episode that acted in the step, less `fairness` times the
    change that the step made to the spread of earnings over all its agents.
    """

    fairness: float = 1.0
    eps: float = 1e-8
    formula: ClassVar[str] = "(reward - mean of the step) / (std + {eps}) - {fairness} * change of the earnings' std"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "trajectory"})

    def __call__(self, batch: Batch) -> Tensor:
        reward, acting = torch.where(batch.mask, token_rewards(batch), 0.0), batch.mask.to(batch.dtype)
        count = _over_agents(batch, acting).clamp(min=1)
        centered = torch.where(batch.mask, reward - _over_agents(batch, reward) / count, 0.0)
        std = (_over_agents(batch, centered**2) / count).sqrt()
        return torch.where(batch.mask, centered / (std + self.eps) - self.fairness * unfairness(batch), 0.0)


@dataclass(frozen=True)
class WhitenedReturn(Part):
    """A [R, T]: rewards whitened over all choices of the batch, then the sum of those from the step on, discounted by `gamma` for
    each step of time, acted in or not; less `fairness` times the step's change of the earnings' spread.
    """

    gamma: float = 0.99
    fairness: float = 1.0
    eps: float = 1e-8
    formula: ClassVar[str] = (
        "sum of later (reward - mean) / (std + {eps}), discounted by {gamma}, - {fairness} * change of the earnings' std"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "trajectory"})

    def __post_init__(self) -> None:
        check_within(self, 0, 1, "gamma")

    def __call__(self, batch: Batch) -> Tensor:
        white = self.whitened(batch)
        returns = discounted_sum(white, torch.full_like(white, self.gamma))
        return torch.where(batch.mask, returns - self.fairness * unfairness(batch), 0.0)

    def whitened(self, batch: Batch) -> Tensor:
        """(reward - mean) / (std + eps), with n, over all choices; 0 where there was none."""
        reward = token_rewards(batch)
        centered = torch.where(batch.mask, reward - batch.masked_mean(reward), 0.0)
        return centered / ((centered**2).sum() / batch.mask.sum()).sqrt().add(self.eps)


def _over_agents(batch: Batch, column: Tensor) -> Tensor:
    """Sum of a column [R, T] over the rows of each row's episode."""
    episode = torch.unique(batch.trajectory, return_inverse=True)[1]
    valid = torch.where(batch.valid.unsqueeze(1), column, 0.0)
    return column.new_zeros(int(episode.max()) + 1, column.shape[1]).index_add_(0, episode, valid)[episode]


def unfairness(batch: Batch) -> Tensor:
    """sigma_t - sigma_(t-1), [R, T]: the change of the std (with n) over an episode's agents of what each has earned so far."""
    earned = torch.where(batch.valid.unsqueeze(1), token_rewards(batch), 0.0).cumsum(1)
    count = _over_agents(batch, torch.ones_like(earned)).clamp(min=1)
    spread = (_over_agents(batch, (earned - _over_agents(batch, earned) / count) ** 2) / count).sqrt()
    return torch.diff(spread, dim=1, prepend=torch.zeros_like(spread[:, :1]))


@dataclass(frozen=True)
class DoublingKL(Part):
    """The column `kl_beta` [R]: `beta`, doubled for the rest of the step whenever a mini-batch's KL(old || new) is above `limit`;
    that mini-batch is left out (`kept` 0 and no advantage). beta = 0: never.
    """

    beta: float = 0.0
    limit: float = 0.01
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})
    makes: ClassVar[frozenset[str]] = frozenset({"kl_beta", "kept", "advantage"})

    def __post_init__(self) -> None:
        if not self.beta >= 0 or not self.limit > 0:
            raise UsageError(f"{self}: beta must be at least 0 and limit above 0, e.g. beta=0.5, limit=0.01.")

    def describe(self) -> str:
        if not self.beta:
            return ""
        return f"beta = {self.beta:g}, doubled and the mini-batch left out where KL(old || new) > {self.limit:g}"

    def init(self) -> State:
        return {"step": 0, "beta": self.beta}

    def __call__(self, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        step = int(batch.step[0])
        beta = state["beta"] if step == state["step"] else self.beta
        ratio = token_ratio(batch)
        beyond = self.beta > 0 and float(batch.masked_mean(ratio - 1 - ratio.log())) > self.limit
        rows = torch.ones(len(batch), dtype=batch.dtype)
        made = {"kl_beta": beta * rows, "kept": rows * (not beyond), "advantage": batch.advantage * (not beyond)}
        return made, {"step": step, "beta": 2 * beta if beyond else beta}


@dataclass(frozen=True)
class KeptEntropy(EntropyLoss):
    """EntropyLoss in mini-batches that are not left out."""

    coefficient: float = 0.05
    needs: ClassVar[frozenset[str]] = EntropyLoss.needs | {"kept"}

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch) * batch.kept.unsqueeze(1)


@dataclass(frozen=True)
class KeptKL(Part):
    """kl_beta (r - 1 - log r) per choice [R, T]: KL(old || new), in mini-batches that are not left out."""

    formula: ClassVar[str] = "beta (r - 1 - log r)"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "kl_beta", "kept"})

    def __call__(self, batch: Batch) -> Tensor:
        ratio = token_ratio(batch)
        return (batch.kl_beta * batch.kept).unsqueeze(1) * (ratio - 1 - ratio.log())


@method(paper="2507.15351", title="OSPO: One-Step Policy Optimization for order dispatch", parent="ppo")
def ospo() -> Recipe:
    return ppo().replace(
        policy=PairScores(hidden=(128, 128), activation="relu", choice="orders"),
        rollout=Assignments(episodes=1, environments=1),
        critic=None,
        advantage=StepWhitened(),
        control=DoublingKL(beta=0.0),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.28),
        regularizer=(KeptEntropy(coefficient=0.05), KeptKL()),
        update=StepUpdate(epochs=10, minibatches=1, value_coefficient=None),
        optimizer=Optimizer(lr=1e-3, eps=1e-8, grad_clip=1.0),
    )


@preset("grpo", version="RS2002/OSPO, folder GRPO, d3781d9")
def ospo_grpo() -> Recipe:
    return ospo().replace(advantage=WhitenedReturn(gamma=0.99))
