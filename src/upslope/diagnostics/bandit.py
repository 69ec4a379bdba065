"""A bandit whose good arms may be far from where the policy begins: who moves there first, and why.

    bandit = PeakBandit(peak=70)                            far from the reference, whose median is arm 20; peak=20 is near
    learn(bandit, "dpo", steps=150, seed=0).reward[-1]      pairs of its own samples: raises the best, lowers the worst
    learn(bandit, "best_of_n", steps=150, seed=0)           likelihood of the best: only raises

Three axes: whether samples come from the current policy (`refresh`: gradient steps per batch of samples), how often each is used
(`reuse`), and whether the loss lowers anything (`LEARNERS`). Policies are tables of logits, so rewards and KL are exact; losses
are those of the library's recipes.

Source: the bandits of Tajwar et al. 2024 (arXiv:2404.14367) and of their code (Asap7772/understanding-rlhf, bandit_experiment):
arms, rewards, reference and N = 10. Theirs is a network over random contexts; here a table, which has to be told of every arm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.advantage import GroupBaseline
from upslope.parts.preference import Preferred
from upslope.recipe import Recipe
from upslope.registry import make


@dataclass(frozen=True)
class PeakBandit:
    """Sequences of `length` of V = `arms` arms, each earning exp(-((arm - peak) / width)^2), the reward their mean.

    The reference is the same at every position: tanh of a Cauchy variable at -0.7 with scale 0.4, cut into V equal bins, so
    that it is around arm 20 of 100, with heavy tails.
    """

    peak: float = 70.0
    arms: int = 100
    length: int = 1
    width: float = 10.0

    def rewards(self) -> Tensor:
        """Of each arm, [V] float64."""
        return torch.exp(-(((torch.arange(self.arms).double() - self.peak) / self.width) ** 2))

    def reference(self) -> Tensor:
        """Log-probs [T, V] float64."""
        edges = np.arctanh(np.linspace(-1, 1, self.arms + 1)[1:-1])
        inner = np.arctan((edges + 0.7) / 0.4) / math.pi + 0.5
        chance = torch.tensor(np.diff(np.concatenate([[0.0], inner, [1.0]])))
        return chance.log().expand(self.length, -1).contiguous()


@dataclass(frozen=True)
class Learner:
    """A recipe, and how many samples a group has; `weight` maps rewards [R] to the rows' weights, where they are weighted.

    lowers   whether the loss lowers the probability of some samples
    refresh  gradient steps per batch of samples, unless told otherwise
    """

    build: Callable[[], Recipe]
    lowers: bool
    group_size: int = 10
    refresh: int = 1
    weight: Callable[[Tensor], Tensor] | None = None
    what: str = ""


def _exponential(reward: Tensor, temperature: float = 0.1) -> Tensor:
    weight = (reward / temperature).exp()
    return weight / weight.mean()


def _likelihood_of_the_best() -> Recipe:
    return make("sft", rows=Preferred(pairs="reward"))


LEARNERS: Mapping[str, Learner] = {
    "best_of_n": Learner(_likelihood_of_the_best, False, what="`sft` on the best of 10"),
    "pref_ft": Learner(_likelihood_of_the_best, False, group_size=2, what="`sft` on the better of 2"),
    "rwr": Learner(lambda: make("sft"), False, weight=_exponential, what="`sft`, weights exp(reward / 0.1)"),
    "reinforce": Learner(lambda: make("reinforce"), False, what="`reinforce` without a baseline: rewards are positive"),
    "rloo": Learner(lambda: make("rloo", beta=0.0), True, what="`rloo`: the others' mean as baseline"),
    "grpo": Learner(
        lambda: make("grpo", regularizer=None, advantage=GroupBaseline("mean")), True, what="`grpo` without its KL"
    ),
    "ppo": Learner(lambda: make("ppo_llm"), True, refresh=4, what="`ppo_llm`, 4 steps per batch, a value per position"),
    "dpo": Learner(
        lambda: make("dpo", beta=0.01, pairs="reward", which="extremes"), True, what="`dpo`, best against worst of 10"
    ),
    "ipo": Learner(
        lambda: make("ipo", beta=0.01, pairs="reward", which="extremes"), True, what="`ipo`, best against worst of 10"
    ),
}


@dataclass(frozen=True)
class Learning:
    """Exact expected reward and KL from the reference (nats) after every gradient step from 0 on, [steps + 1], and logits."""

    reward: np.ndarray
    kl: np.ndarray
    logits: Tensor


@dataclass
class _State:
    """What is learned: the policy's logits [T, V] and a value per position [T], with an optimizer."""

    logits: Tensor
    values: Tensor
    optimizer: torch.optim.Optimizer


def learn(
    bandit: PeakBandit,
    learner: str | Learner,
    *,
    steps: int,
    seed: int,
    lr: float = 0.1,
    samples: int = 100,
    refresh: int | None = None,
    reuse: int = 1,
) -> Learning:
    """Adam on the learner's loss, `samples` completions per gradient step.

    refresh   gradient steps until the current policy is sampled again, which then gives samples for all of them: 1 is
              on-policy, `steps` is learning from the reference's samples only; None: the learner's own
    reuse     how often each sample is used: a batch has samples / reuse for every step of `refresh`, drawn anew in each pass
    """
    learner = LEARNERS[learner] if isinstance(learner, str) else learner
    refresh = learner.refresh if refresh is None else refresh
    groups = samples // learner.group_size
    if min(steps, refresh, reuse, groups) < 1 or refresh % reuse:
        raise UsageError(
            f"learn(steps={steps}, samples={samples}, refresh={refresh}, reuse={reuse}): all positive, refresh a multiple of "
            f"reuse, and samples for at least one group of {learner.group_size}."
        )
    recipe, ref = learner.build(), bandit.reference()
    logits = ref.clone().requires_grad_()
    values = torch.zeros(bandit.length, dtype=torch.float64, requires_grad=True)
    state = _State(logits, values, torch.optim.Adam([logits, values], lr=lr))
    generator = torch.Generator().manual_seed(seed)
    found = [_measure(bandit, logits, ref)]
    for step in range(steps):
        place = step % refresh
        if place == 0:
            drawn = _sample(bandit, logits.detach(), groups * refresh // reuse * learner.group_size, generator)
            order = torch.cat([torch.randperm(groups * refresh // reuse, generator=generator) for _ in range(reuse)])
        chosen = order[place * groups : (place + 1) * groups]
        rows = (chosen.unsqueeze(1) * learner.group_size + torch.arange(learner.group_size)).flatten()
        _update(bandit, recipe, learner, state, {name: column[rows] for name, column in drawn.items()}, ref)
        found.append(_measure(bandit, logits, ref))
    reward, kl = np.array(found).T
    return Learning(reward, kl, logits.detach())


@torch.no_grad()
def _measure(bandit: PeakBandit, logits: Tensor, ref: Tensor) -> tuple[float, float]:
    logp = logits.log_softmax(-1)
    chance = logp.exp()
    return float((chance @ bandit.rewards()).mean()), float((chance * (logp - ref)).sum())


def _sample(bandit: PeakBandit, logits: Tensor, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Arms [R, T], their log-probs then, and rewards [R]."""
    logp = logits.log_softmax(-1)
    arms = torch.multinomial(logp.exp(), rows, replacement=True, generator=generator).T
    reward = bandit.rewards()[arms].mean(1)
    return {"arms": arms, "old_logp": _of(logp, arms), "reward": reward}


def _of(logp: Tensor, arms: Tensor) -> Tensor:
    """Log-probs [R, T] of arms [R, T] under [T, V]."""
    return logp.gather(1, arms.T).T


def _update(
    bandit: PeakBandit, recipe: Recipe, learner: Learner, state: _State, drawn: dict[str, Tensor], ref: Tensor
) -> None:
    """One gradient step on the recipe's loss, and on its critic's where it has one."""
    arms, reward = drawn["arms"], drawn["reward"]
    rows = len(arms)
    value = state.values.expand(rows, -1)
    batch = Batch(
        logp=_of(state.logits.log_softmax(-1), arms),
        old_logp=drawn["old_logp"],
        ref_logp=_of(ref, arms),
        reward=reward,
        group=torch.arange(rows) // learner.group_size,
        trajectory=torch.arange(rows),
        old_value=value.detach(),
        weight=None if learner.weight is None else learner.weight(reward).unsqueeze(1).expand(-1, bandit.length),
    )
    prepared = recipe.prepare(batch)
    loss, _ = recipe.loss(prepared)
    if recipe.critic is not None:
        error = recipe.critic(prepared.replace(value=value))
        loss = loss + (error * prepared.token_share).sum()
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
