"""The contract that every method on stored transitions keeps; run by `upslope.testing.check_method`."""

import copy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from upslope.actor_critic.learner import Learner
from upslope.actor_critic.recipe import ActorCritic
from upslope.actor_critic.replay import EXTRAS, Layout
from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy
from upslope.tasks.spaces import ActionSpec, Leaf, ObservationSpec

ROWS, OBSERVATION, ACTION = 16, 4, 2


def check_actor_critic(recipe: ActorCritic) -> None:
    """Exactly its declared columns; updates that repeat; state that is whole; ends of episodes; extreme rewards."""
    recipe = _small(recipe.check())
    check_columns(recipe)
    check_repeats(recipe)
    check_ends(recipe)
    check_extremes(recipe)


def transitions(layout: Layout, seed: int = 0, rows: int = ROWS) -> Tensor:
    """Random rows [rows, width] with actions in (-1, 1), and a third of them last ones."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, layout.width, generator=generator)
    for name, (first, last) in layout.columns().items():
        if name in ("action", "next_action"):
            made[:, first:last] = made[:, first:last].tanh()
        if name == "terminated":
            made[:, first] = (torch.arange(rows) % 3 == 0).float()
    return made


def learner_of(recipe: ActorCritic, *, extras: tuple[str, ...] | None = None, seed: int = 0) -> Learner:
    """A learner with small networks' worth of random weights, for a few numbers of observation and action."""
    torch.manual_seed(seed)
    layout = Layout(OBSERVATION, ACTION, tuple(sorted(recipe.needs)) if extras is None else extras)
    observations = ObservationSpec((Leaf("observation", (OBSERVATION,)),))
    actions = ActionSpec("continuous", (ACTION,), low=(-1.0,) * ACTION, high=(1.0,) * ACTION)
    policy = ControlPolicy(observations, actions, recipe.policy)  # type: ignore[arg-type]
    learner = Learner(recipe, policy, layout, torch.Generator().manual_seed(seed))
    learner.index_log(transitions(layout, rows=4 * ROWS))
    return learner


def check_columns(recipe: ActorCritic) -> None:
    """Without a column that it declares an update says so; with exactly those it gives numbers."""
    unknown = recipe.needs - set(EXTRAS)
    assert not unknown, f"{recipe.name} reads {', '.join(sorted(unknown))}, which no transition has"
    for column in sorted(recipe.needs):
        learner = learner_of(recipe, extras=tuple(sorted(recipe.needs - {column})))
        complaint = ""
        try:
            for _ in range(_cycle(recipe)):
                learner.update(transitions(learner.layout))
        except UsageError as error:
            complaint = str(error)
        assert column in complaint, f"{recipe.name} needs {column!r} but, without it, says: {complaint or 'nothing'}"


def check_repeats(recipe: ActorCritic) -> None:
    """The same seed gives the same weights, also where state was taken out and put back; and everything that should learn does."""
    one, other = learner_of(recipe), learner_of(recipe)
    first = {name: flat.values.clone() for name, flat in one.flats.items()}
    cycle = _cycle(recipe)
    for index in range(2 * cycle):
        if index == cycle:
            fresh = learner_of(recipe, seed=1)
            fresh.load_state_dict(copy.deepcopy(other.state_dict()))
            other = fresh
        for learner in (one, other):
            learner.update(transitions(learner.layout, index))
    for name, flat in one.flats.items():
        assert torch.equal(flat.values, other.flats[name].values), f"{recipe.name}: {name} differs after a resume"
        assert flat.values.isfinite().all(), f"{recipe.name}: {name} is not finite"
        assert not torch.equal(flat.values, first[name]), f"{recipe.name}: {name} does not learn"
    for name, target in one.targets.items():
        assert torch.equal(target.values, other.targets[name].values), f"{recipe.name}: target {name} after a resume"
    assert one.state == other.state, f"{recipe.name}: the parts' state differs after a resume"


def check_ends(recipe: ActorCritic) -> None:
    """Where an episode ended for good, the target is the reward alone."""
    if recipe.target is None:
        return
    learner = learner_of(recipe)
    rows = transitions(learner.layout)
    rows[:, learner.columns["terminated"][0]] = 1.0
    m = learner.minibatch(rows)
    with torch.no_grad():
        target = recipe.target(m)
    torch.testing.assert_close(
        target, m.reward, msg=f"{recipe.name}: something is expected after the end of an episode"
    )


def check_extremes(recipe: ActorCritic) -> None:
    """Rewards of 1e6, equal transitions, actions on the bounds: finite numbers."""
    learner = learner_of(recipe)
    layout, columns = learner.layout, learner.columns
    large, equal, edge = (transitions(layout) for _ in range(3))
    large[:, columns["reward"][0]] *= 1e6
    equal[:] = equal[:1]
    first, last = columns["action"]
    edge[:, first:last] = edge[:, first:last].sign()
    for case, rows in {"rewards of 1e6": large, "equal transitions": equal, "actions on the bounds": edge}.items():
        learner = learner_of(recipe)
        for _ in range(2 * _cycle(recipe)):
            learner.update(rows, watch=True)
        assert learner.finite() is None, f"{recipe.name}: {case}: {learner.finite()} is not finite"
        bad = [name for name, value in learner.stats.items() if value != value]
        assert not bad, f"{recipe.name}: {case}: {', '.join(bad)} is NaN"


def _cycle(recipe: ActorCritic) -> int:
    """Updates until everything has been updated once."""
    update: Any = recipe.update
    return max(int(update.actor_every), int(getattr(recipe.targets, "every", 1)))


def _small(recipe: ActorCritic) -> ActorCritic:
    """The recipe with networks that are quick."""
    changed = {}
    for stage in ("policy", "critic", "value", "proposer"):
        part = getattr(recipe, stage)
        names = {f.name for f in fields(part)} & {"hidden"} if part is not None else set()
        if names:
            changed[stage] = replace(part, **dict.fromkeys(names, (8, 8)))
    return recipe.replace(**changed)
