"""What on-policy methods would do in an environment, without training: their gradient estimators on one frozen policy.

As `upslope.probe` does for language models: K batches of whole episodes, played with one policy; every method's gradient on each.
The gradient of the expected return, undiscounted and up to the time limit, is estimated without bias by the returns to go, less
those of the other episodes at the same step.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.collect import seeded
from upslope.control.learning import MODEL_COLUMNS
from upslope.control.on_policy import CRITIC_COLUMNS, PLAYED_COLUMNS, OnPolicyAgent
from upslope.control.playing import Played
from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy, Critic
from upslope.probe import UPDATES, ProbeResult, change, moments
from upslope.recipe import Recipe
from upslope.runs.checkpoint import load_checkpoint
from upslope.tasks.environments import Environments

Part = tuple[Played, Batch]
AHEAD = 256  # steps whose noise is drawn at once


def probe_control(
    recipes: Sequence[tuple[str, Recipe]],
    agent: OnPolicyAgent,
    *,
    batches: int,
    episodes: int,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[ProbeResult]:
    """Measures every recipe on the same `batches` batches of `episodes` episodes of the agent's policy, which stays as it is.

    The agent's critic says what methods that read values are given. `entropy`, `kl` are per action, `effective` is of whole
    episodes, `contributing` the share of actions whose log-prob has a gradient. Raises UsageError for a recipe that reads other
    columns.
    """
    for name, recipe in recipes:
        _check(name, recipe)
    play = lambda *key: play_rows(agent.environments, agent.policy, agent.critic, episodes, seeded(seed, *key))  # noqa: E731
    if agent.policy.moments is not None and not agent.policy.moments.count:
        played, batch = play("moments")
        agent.policy.observe(played.observation[batch.mask])
    parts = [play("probe", index) for index in range(batches)]
    say("expected return")
    reference = torch.stack([return_gradient(agent.policy, *part) for part in parts])
    results: list[ProbeResult] = []
    first = 0.0
    for name, recipe in recipes:
        say(name)
        started = time.perf_counter()
        found = [gradient_of(recipe, agent.policy, *part) for part in parts]
        seconds = time.perf_counter() - started
        first = first or seconds
        used = sum(float(share) for _, share in found) / len(found)
        measured: dict[str, Any] = moments(torch.stack([gradient for gradient, _ in found]), reference)
        measured |= _effect(recipe, agent.policy, agent.critic, parts, seed)
        results.append(ProbeResult(name, contributing=used, seconds=seconds / first, **measured))
    return results


def _check(name: str, recipe: Recipe) -> None:
    made = PLAYED_COLUMNS | MODEL_COLUMNS | (CRITIC_COLUMNS if recipe.critic is not None else frozenset())
    if absent := sorted(recipe.needs - made):
        raise UsageError(f"probe: '{name}' reads {', '.join(absent)}, which episodes of a frozen policy do not have.")


def play_rows(
    environments: Environments, policy: ControlPolicy, critic: Critic | None, count: int, generator: torch.Generator
) -> Part:
    """`count` whole episodes (rounded up to as many of each copy) as rows [R, T], with the columns that an on-policy step has.

    With a critic, what a time limit cut off is worth V of what was reached there. Raises EnvironmentFailure.
    """
    copies = environments.count
    left = np.full(copies, -(-count // copies))
    rows: list[list[Any]] = [[] for _ in range(copies)]
    whole: list[tuple[list[Any], np.ndarray, bool]] = []
    observation, taken = environments.reset(), 0
    while left.any():
        if taken % AHEAD == 0:
            draw = policy.sampler(generator, AHEAD)
        action, taken = draw(observation), taken + 1
        step = environments.step(action)
        for row in left.nonzero()[0].tolist():
            if step.valid is None or step.valid[row]:
                rows[row].append((observation[row], action[row], float(step.reward[row])))
            if step.terminated[row] or step.truncated[row]:
                whole.append((rows[row], step.next_observation[row], bool(step.terminated[row])))
                rows[row], left[row] = [], left[row] - 1
        observation = step.observation
    environments.skip()
    length = torch.tensor([len(episode) for episode, *_ in whole])
    padded = [
        torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(np.array([one[i] for one in episode])) for episode, *_ in whole], batch_first=True
        )
        for i in range(3)
    ]
    positions = torch.arange(int(length.max()))
    reward = padded[2].float()
    columns = {
        "token_reward": reward,
        "reward": reward.sum(1),
        "mask": positions < length[:, None],
        "ended": positions == length[:, None] - 1,
        "progress": torch.zeros(len(whole)),
        "step": torch.ones(len(whole), dtype=torch.int64),
    }
    if critic is not None:
        columns |= _values(critic, padded[0], columns["mask"], columns["ended"], whole)
    with torch.no_grad():
        logp = policy.distribution(padded[0]).log_prob(padded[1])
    logp = torch.where(columns["mask"], logp, 0.0)
    return Played(padded[0], padded[1]), Batch(logp=logp, old_logp=logp, **columns)


@torch.no_grad()
def _values(
    critic: Critic, seen: Tensor, mask: Tensor, ended: Tensor, whole: Sequence[tuple[Any, np.ndarray, bool]]
) -> dict[str, Tensor]:
    """old_value and next_value [R, T]: V of the next step; at the end of an episode 0, or V of what a time limit cut off."""
    value = torch.where(mask, critic(seen), 0.0)
    reached = critic(torch.from_numpy(np.stack([last for _, last, _ in whole])))
    beyond = torch.where(torch.tensor([over for *_, over in whole]), 0.0, reached)[:, None]
    following = torch.cat([value[:, 1:], torch.zeros_like(beyond)], 1)
    return {"old_value": value, "next_value": torch.where(ended, beyond, following)}


def return_gradient(policy: ControlPolicy, played: Played, batch: Batch) -> Tensor:
    """An estimate [D] without bias of the gradient of the expected undiscounted return, from whole episodes [R, T]."""
    reward = torch.where(batch.mask, batch.token_reward, 0.0).double()
    to_go = reward.flip(1).cumsum(1).flip(1)
    others = (to_go.sum(0) - to_go) / (len(to_go) - 1)
    logp = policy.distribution(played.observation).log_prob(played.action)
    objective = (torch.where(batch.mask, logp, 0.0) * (to_go - others)).sum() / len(to_go)
    return _flat(torch.autograd.grad(objective, _parameters(policy), allow_unused=True), policy)


def gradient_of(recipe: Recipe, policy: ControlPolicy, played: Played, batch: Batch) -> tuple[Tensor, Tensor]:
    """The direction in which a recipe's policy loss falls [D], from one batch taken as one mini-batch, and the share of actions
    whose log-prob has a gradient.
    """
    credited, states = recipe.credit(batch, recipe.init())
    observation, action = played.observation, played.action
    single = recipe.update.transitions  # type: ignore[union-attr]
    if single:
        observation, action, credited = observation[credited.mask], action[credited.mask], credited.transitions()
    found = policy.distribution(observation)
    columns = {"logp": found.log_prob(action)}
    if "entropy" in recipe.needs:
        columns["entropy"] = found.entropy()
    columns = {
        name: column.unsqueeze(1) if single else torch.where(credited.mask, column, 0.0)
        for name, column in columns.items()
    }
    mini, _ = recipe.minibatch(credited.replace(**columns), states)
    loss, _ = recipe.loss(mini)
    *gradients, at = torch.autograd.grad(loss, [*_parameters(policy), columns["logp"]], allow_unused=True)
    used = torch.zeros(()) if at is None else (at[mini.mask] != 0).float().mean()
    return -_flat(gradients, policy), used


def _parameters(policy: ControlPolicy) -> list[Tensor]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def _flat(gradients: Sequence[Tensor | None], policy: ControlPolicy) -> Tensor:
    pairs = zip(gradients, _parameters(policy), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def _effect(
    recipe: Recipe, policy: ControlPolicy, critic: Critic | None, parts: Sequence[Part], seed: int
) -> dict[str, float]:
    """Entropy change, KL and effective sample size on the next batch, after one optimizer step from the policy as it is."""
    rule: Any = recipe.update
    once = recipe.replace(update=dataclasses.replace(rule, epochs=1, minibatches=1, target_kl=None))
    optimizer: Any = recipe.optimizer
    changes = []
    for index, (played, batch) in enumerate(parts[:UPDATES]):
        moved, judge = copy.deepcopy((policy, critic))
        updater = optimizer.updater()(once, moved, judge if recipe.critic is not None else None, 1)
        updater.update(played, batch, once.init(), (seed, "probe", index))
        others, told = parts[(index + 1) % len(parts)]
        changes.append(change(_columns(policy, others), _columns(moved, others), told.mask))
    entropy, kl, effective = (sum(column) / len(changes) for column in zip(*changes, strict=True))
    return {"entropy": entropy, "kl": kl, "effective": effective}


@torch.no_grad()
def _columns(policy: ControlPolicy, played: Played) -> dict[str, Tensor]:
    found = policy.distribution(played.observation)
    return {"logp": found.log_prob(played.action), "entropy": found.entropy()}


def load_run(agent: OnPolicyAgent, run: str) -> None:
    """Gives an agent the policy of a run's newest checkpoint and, where both have one of the same layers, its critic.

    Raises UsageError for a run of another network or environment.
    """
    checkpoint = load_checkpoint(Path(run))
    try:
        agent.load_policy(checkpoint.path)
        critic = checkpoint.tree().get("agent", {}).get("critic", {})
        if agent.critic is not None and critic:
            agent.critic.load_state_dict(critic)
    except RuntimeError as error:
        found = [line.strip().rstrip(".:") for line in str(error).splitlines()]
        what = found[min(1, len(found) - 1)]
        raise UsageError(
            f"probe: the networks of {run} are not those of '{agent.recipe.name}' on {agent.environments.name} ({what}). "
            "Give the run's own --task, set policy.hidden as it has it, or leave --model out."
        ) from None
