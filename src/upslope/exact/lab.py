"""A tabular autoregressive policy so small that all its sequences can be enumerated.

    lab = ExactLab(vocabulary=3, horizon=4, reward=lambda tokens: float(tokens[-1] == 2))
    lab.expected_reward(lab.theta), lab.gradient(lab.theta)     the truth, in float64
    print(lab.estimate("rloo", group_size=2))                   a recipe's estimator: scale, cosine, bias, variance

S sequences, T positions, V tokens, N prefixes that a token may follow. The parameters `theta` are [N, V]: one row of logits
per prefix, shortest prefixes first, then in the order of their tokens. Gradients have the shape of theta. With several prompts
all of this, S and N included, is one prompt's after the other's: their policies share no parameter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.exact.estimator import Estimate, Estimator
from upslope.recipe import Recipe
from upslope.registry import make

MAX_SEQUENCES = 100_000
Tokens = tuple[int, ...]
Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ExactLab:
    """Every sequence of a tabular policy, its reward, and what follows exactly from them.

    vocabulary   V, the number of tokens
    horizon      T, the largest number of tokens
    reward       of each sequence, [S] or a function of its tokens; default: uniform in [0, 1), seeded
    eos          a token that ends the sequence early, so that lengths differ; None: every sequence has T tokens
    seed         of the default reward and of `theta`
    spread       standard deviation of the logits in `theta`
    prompts      how many; every group of a batch is one prompt's, each as likely, and expectations are means over prompts

    Raises UsageError for more than 100,000 sequences, a reward of the wrong length or not finite, an eos outside the vocabulary.
    """

    vocabulary: int = 3
    horizon: int = 4
    reward: Callable[[Tokens], float] | Tensor | None = None
    eos: int | None = None
    seed: int = 0
    spread: float = 1.0
    prompts: int = 1

    def __post_init__(self) -> None:
        if self.vocabulary < 2 or self.horizon < 1 or self.prompts < 1:
            raise UsageError(
                f"ExactLab(vocabulary={self.vocabulary}, horizon={self.horizon}, prompts={self.prompts}): needs vocabulary >= 2, "
                "horizon >= 1 and prompts >= 1."
            )
        if self.eos is not None and not 0 <= self.eos < self.vocabulary:
            raise UsageError(f"ExactLab(eos={self.eos}): not a token of 0..{self.vocabulary - 1}.")
        branching = self.vocabulary - (self.eos is not None)
        if self.prompts * self.vocabulary * branching ** (self.horizon - 1) > MAX_SEQUENCES:
            raise UsageError(
                f"ExactLab(vocabulary={self.vocabulary}, horizon={self.horizon}) has more than {MAX_SEQUENCES} sequences: "
                "they cannot all be enumerated. Take a smaller vocabulary or horizon."
            )

    @cached_property
    def prefixes(self) -> list[Tokens]:
        """The prefixes of one prompt that a token may follow, in the order of theta's rows: all N if there is one prompt."""
        level: list[Tokens] = [()]
        found = list(level)
        for _ in range(self.horizon - 1):
            level = [(*prefix, token) for prefix in level for token in range(self.vocabulary) if token != self.eos]
            found += level
        return found

    @cached_property
    def words(self) -> list[Tokens]:
        """The S sequences as tuples of tokens, the end token included, in the order of their tokens."""
        ended = [(*prefix, self.eos) for prefix in self.prefixes if self.eos is not None]
        full = [(*p, v) for p in self.prefixes if len(p) == self.horizon - 1 for v in range(self.vocabulary)]
        return sorted({*ended, *full}) * self.prompts

    @cached_property
    def prompt(self) -> Tensor:
        """Prompt that each sequence answers, [S]."""
        return torch.arange(self.prompts).repeat_interleave(len(self.words) // self.prompts)

    @cached_property
    def sequences(self) -> Tensor:
        """Token ids [S, T], 0 beyond the end."""
        return torch.tensor([[*word, *[0] * (self.horizon - len(word))] for word in self.words])

    @cached_property
    def mask(self) -> Tensor:
        """True at the tokens of each sequence, [S, T]."""
        return torch.arange(self.horizon) < torch.tensor([len(word) for word in self.words]).unsqueeze(1)

    @cached_property
    def prefix(self) -> Tensor:
        """Row of theta that each token is drawn from, [S, T]; beyond the end the first of its prompt."""
        index = {prefix: n for n, prefix in enumerate(self.prefixes)}
        within = torch.tensor([[index.get(word[:t], 0) for t in range(self.horizon)] for word in self.words])
        return within + len(index) * self.prompt.unsqueeze(1)

    @cached_property
    def rewards(self) -> Tensor:
        """Reward of each sequence, [S] float64."""
        if self.reward is None:
            return torch.rand(len(self.words), generator=self._generator(1), dtype=torch.float64)
        given = [self.reward(word) for word in self.words] if callable(self.reward) else self.reward
        rewards = torch.as_tensor(given, dtype=torch.float64)
        if rewards.shape != (len(self.words),) or not rewards.isfinite().all():
            raise UsageError(
                f"ExactLab(reward=...) gives rewards of shape {list(rewards.shape)}; it must be [{len(self.words)}], one finite "
                "number per sequence, in the order of lab.words."
            )
        return rewards

    @cached_property
    def theta(self) -> Tensor:
        """Seeded logits to start from, [N, V]."""
        shape = (self.prompts * len(self.prefixes), self.vocabulary)
        return self.spread * torch.randn(shape, generator=self._generator(0), dtype=torch.float64)

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(2 * self.seed + stream)

    def checked(self, theta: Tensor) -> Tensor:
        """`theta` as float64 [N, V]. Raises UsageError for another shape or entries that are not finite."""
        logits = torch.as_tensor(theta, dtype=torch.float64)
        if logits.shape != self.theta.shape or not logits.isfinite().all():
            raise UsageError(
                f"theta has shape {list(logits.shape)}; it must be {list(self.theta.shape)}, one row of finite logits per prefix, "
                "in the order of lab.prefixes."
            )
        return logits

    def log_distribution(self, theta: Tensor) -> Tensor:
        """Log-probs of every next token along each sequence, [S, T, V]."""
        return self.checked(theta)[self.prefix].log_softmax(-1)

    def logp(self, theta: Tensor) -> Tensor:
        """Log-prob of each token, [S, T], 0 beyond the end; differentiable in theta, as is everything below."""
        return self.log_distribution(theta).gather(-1, self.sequences.unsqueeze(-1)).squeeze(-1) * self.mask

    def probability(self, theta: Tensor) -> Tensor:
        """Probability of each sequence given its prompt, [S]; each prompt's add up to 1."""
        return self.logp(theta).sum(1).exp()

    def expected_reward(self, theta: Tensor) -> Tensor:
        """J = E[reward], scalar."""
        return self.probability(theta) @ self.rewards / self.prompts

    def entropy(self, theta: Tensor) -> Tensor:
        """Entropy of the sequence in nats, scalar: the expected sum of the per-token entropies."""
        return -(self.probability(theta) @ self.logp(theta).sum(1)) / self.prompts

    def kl(self, theta: Tensor, ref: Tensor) -> Tensor:
        """KL(policy(theta) || policy(ref)) of the sequence, scalar."""
        return self.probability(theta) @ (self.logp(theta) - self.logp(ref)).sum(1) / self.prompts

    def value(self, theta: Tensor) -> Tensor:
        """Expected reward given the prefix before each token, [S, T], 0 beyond the end: what a perfect critic says."""
        probability, states = self.probability(theta).unsqueeze(1) * self.mask, self.theta.new_zeros(len(self.theta))
        reached = states.index_add(0, self.prefix.flatten(), probability.flatten())
        earned = states.index_add(0, self.prefix.flatten(), (probability * self.rewards.unsqueeze(1)).flatten())
        return (earned / reached)[self.prefix] * self.mask

    def prompt_mean(self, theta: Tensor, column: Tensor) -> Tensor:
        """Expectation of a column [S] of the sequences, such as `rewards`, for each prompt, [prompts]."""
        return (self.probability(theta) * column).view(self.prompts, -1).sum(1)

    def gradient(self, theta: Tensor, of: Objective | None = None) -> Tensor:
        """Gradient [N, V] of a scalar function of theta, by default of the expected reward.

        `lab.gradient(theta, lambda th: lab.kl(th, ref))`
        """
        leaf = self.checked(theta).detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad((of or self.expected_reward)(leaf), leaf)
        return gradient

    def estimate(
        self,
        recipe: str | Recipe,
        *,
        group_size: int = 2,
        groups: int = 1,
        theta: Tensor | None = None,
        old: Tensor | None = None,
        behavior: Tensor | None = None,
        ref: Tensor | None = None,
        target: Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
        shuffle: bool = False,
        limit: int | None = None,
        samples: int = 20_000,
        seed: int = 0,
    ) -> Estimate:
        """Mean, bias and variance of -(gradient of a recipe's loss), over batches of `groups` x `group_size` sequences.

        Every batch is enumerated, weighted by its probability; batches that differ in row order count once, with their
        multiplicity: C(S + G - 1, G) of them for one group (S = 81: 3,321 for G = 2, 1.9 million for G = 4). Above `limit`
        batches (default: 8 million rows in all, or 20,000 batches of a recipe with statistics over the batch, which are evaluated
        one by one), `samples` batches are drawn instead and `standard_error` says how well the mean is known. On one core a
        million batches of 4 take about 6 s, a thousand one by one 2 s.

        recipe     a method's name or a Recipe, from its first state; its update and critic are the trainer's and not read, of its
                   rollout only reference_rows: these are the first of the prompt's sequences with the highest reward
        theta      where the gradient is taken, default `lab.theta`
        old        policy of the column old_logp, default theta
        behavior   policy that the sequences are drawn from (behavior_logp), default old
        ref        policy of the column ref_logp, default theta
        target     the gradient to compare with, default that of the expected reward at theta
        columns    further columns, one entry per sequence: [S] or [S, T]; `value`, `old_value` and `expected_reward` are exact
                   unless given
        shuffle    draw batches, one by one, whose rows have random `trajectory` and `prompt_key`: for recipes whose choices depend
                   on the order of rows or are drawn by their identity, so that the mean is over these choices, too

        A curriculum that drops groups (DAPO) makes the mean conditional on the groups kept.
        Raises UsageError for a column that the lab does not have, and for a recipe that depends on the order of rows.
        """
        theta = self.checked(self.theta if theta is None else theta).detach()
        estimator = self._estimator(recipe, (groups, group_size), theta, old, behavior, ref, columns)
        truth = self.gradient(theta) if target is None else self.checked(target)
        return estimator.run(truth, limit=limit, samples=samples, seed=seed, shuffle=shuffle)

    def draw(
        self,
        recipe: str | Recipe,
        *,
        samples: int,
        group_size: int = 2,
        groups: int = 1,
        old: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """-(gradient of the loss at `theta`) of batches drawn at random, [samples, N, V]; the same batches for the same seed.

        What a user of the recipe sees; `estimate` says what is behind it. Arguments and errors are those of `estimate`.
        """
        return self._estimator(recipe, (groups, group_size), self.theta, old, None, None, None).draw(samples, seed)

    def _estimator(
        self,
        recipe: str | Recipe,
        shape: tuple[int, int],
        theta: Tensor,
        old: Tensor | None,
        behavior: Tensor | None,
        ref: Tensor | None,
        columns: Mapping[str, Tensor] | None,
    ) -> Estimator:
        old = theta if old is None else self.checked(old).detach()
        return Estimator(
            lab=self,
            recipe=make(recipe) if isinstance(recipe, str) else recipe.check(),
            shape=shape,
            theta=theta,
            old=old,
            behavior=old if behavior is None else self.checked(behavior).detach(),
            ref=theta if ref is None else self.checked(ref).detach(),
            given=dict(columns or {}),
        )
