"""PPO in plain PyTorch: a loop over steps, a loop over mini-batches, torch's own Adam. It shares no code with Upslope.

What `benchmarks/on_policy.py` and the tests compare the library with. Discrete actions; details as in the method `ppo`, except
that the rate may fall by rollouts, as in cleanrl's ppo.py.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical


@dataclass(frozen=True)
class Settings:
    """`value_clip` None: the plain squared error. The defaults are those of cleanrl's ppo.py."""

    environments: int = 4
    steps: int = 128
    minibatches: int = 4
    epochs: int = 4
    lr: float = 2.5e-4
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    entropy: float = 0.01
    value: float = 0.5
    norm: float = 0.5


@dataclass
class Rollout:
    """[S, N] each, observations [S, N, D]; `next_value`: V of what the step led to, 0 where the episode terminated."""

    observation: Tensor
    action: Tensor
    logp: Tensor
    reward: Tensor
    value: Tensor
    next_value: Tensor
    ended: Tensor


def network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64, tanh, orthogonal, biases 0."""
    layers: list[nn.Module] = []
    for wide, narrow, scale in ((inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, gain)):
        layer = nn.Linear(wide, narrow)
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def advantages(rollout: Rollout, gamma: float, lam: float) -> Tensor:
    """[S, N], from the last step back."""
    found, later = torch.zeros_like(rollout.reward), torch.zeros_like(rollout.reward[0])
    for t in reversed(range(len(found))):
        delta = rollout.reward[t] + gamma * rollout.next_value[t] - rollout.value[t]
        later = delta + gamma * lam * torch.where(rollout.ended[t], 0.0, later)
        found[t] = later
    return found


class Plain:
    """Actor and critic of `inputs` numbers and `choices` actions, with one Adam for both."""

    def __init__(self, settings: Settings, inputs: int, choices: int) -> None:
        self.settings = settings
        self.actor, self.critic = network(inputs, choices, 0.01), network(inputs, 1, 1.0)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=settings.lr, eps=1e-5)

    def update(self, rollout: Rollout, orders: Iterable[Tensor], rate: Callable[[], float]) -> None:
        """An epoch for each order [S * N] of the transitions, which are counted step by step (t * N + copy)."""
        settings = self.settings
        advantage = advantages(rollout, settings.gamma, settings.lam)
        returns = (advantage + rollout.value).flatten()
        advantage, observation = advantage.flatten(), rollout.observation.flatten(0, 1)
        action, logp, value = rollout.action.flatten(), rollout.logp.flatten(), rollout.value.flatten()
        for order in orders:
            for some in order.chunk(settings.minibatches):
                now = Categorical(logits=self.actor(observation[some]))
                ratio = (now.log_prob(action[some]) - logp[some]).exp()
                scaled = advantage[some]
                scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                policy_loss = torch.maximum(-scaled * ratio, -scaled * clipped).mean()
                v = self.critic(observation[some]).squeeze(-1)
                error = (v - returns[some]) ** 2
                if settings.value_clip is not None:
                    near = value[some] + (v - value[some]).clamp(-settings.value_clip, settings.value_clip)
                    error = torch.maximum(error, (near - returns[some]) ** 2)
                loss = policy_loss - settings.entropy * now.entropy().mean() + settings.value * 0.5 * error.mean()
                self.adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, settings.norm)
                self.adam.param_groups[0]["lr"] = rate()
                self.adam.step()


class Game:
    """Copies of an environment that go on from rollout to rollout. `recent`: the returns of the last 100 episodes."""

    def __init__(self, task: str, count: int, seed: int) -> None:
        self.copies = [gymnasium.make(task) for _ in range(count)]
        self.seen = np.stack([copy.reset(seed=1000 * seed + row)[0] for row, copy in enumerate(self.copies)])
        self.totals = np.zeros(count)
        self.recent: deque[float] = deque(maxlen=100)

    @torch.no_grad()
    def play(self, plain: Plain, steps: int) -> Rollout:
        """`steps` actions in each copy."""
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(steps):
            observation = torch.tensor(self.seen, dtype=torch.float32)
            found = Categorical(logits=plain.actor(observation))
            action = found.sample()
            told = (torch.tensor(column) for column in self._step(action.tolist()))
            rows.append((observation, action, found.log_prob(action), *told))
        observation, action, logp, reached, reward, terminated, ended = (
            torch.stack(column) for column in zip(*rows, strict=True)
        )
        value, after = (plain.critic(seen.float()).squeeze(-1) for seen in (observation, reached))
        return Rollout(observation, action, logp, reward, value, torch.where(terminated, 0.0, after), ended)

    def _step(self, actions: list[int]) -> tuple[np.ndarray, list[float], list[bool], list[bool]]:
        reached, rewards, ends, overs = [], [], [], []
        for row, (copy, action) in enumerate(zip(self.copies, actions, strict=True)):
            seen, reward, terminated, truncated, _ = copy.step(action)
            self.totals[row] += float(reward)
            reached.append(seen)
            rewards.append(float(reward))
            ends.append(terminated)
            overs.append(terminated or truncated)
            if overs[-1]:
                self.recent.append(self.totals[row])
                self.totals[row] = 0.0
                seen, _ = copy.reset()
            self.seen[row] = seen
        return np.stack(reached), rewards, ends, overs


def actions_to(goal: float, task: str, settings: Settings, actions: int, seed: int) -> int | None:
    """Actions after which the last 100 training episodes have a mean return of `goal`; None where `actions` do not suffice."""
    torch.manual_seed(seed)
    game = Game(task, settings.environments, seed)
    space = game.copies[0].action_space
    assert isinstance(space, gymnasium.spaces.Discrete)
    plain = Plain(settings, game.seen.shape[1], int(space.n))
    each = settings.environments * settings.steps
    updates = actions // each
    for done in range(updates):
        rollout = game.play(plain, settings.steps)
        if game.recent and np.mean(game.recent) >= goal:
            return (done + 1) * each
        rate = settings.lr * (1 - done / updates)
        plain.update(rollout, (torch.randperm(each) for _ in range(settings.epochs)), lambda rate=rate: rate)
    return None
