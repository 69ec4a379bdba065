"""Logs of five qualities from a training run, as D4RL's are made, in Minari's layout with reference scores.

    random          uniform actions
    expert          the checkpoint of the best held-out return, whose actions are drawn
    medium          the same of the checkpoint whose normalized score is nearest to a third (or `medium_score`), of those from the
                    first that reaches it on: one before may have learned nothing
    medium-replay   everything that the run had stored by that checkpoint, in its order
    medium-expert   half of either

ref_min_score and ref_max_score are the mean returns of uniform actions and of the expert's likeliest actions, over fresh episodes.
Where the run was trained with noise on its observations, all of this is played with it, and the metadata say how much.

Source: Fu et al. 2020 (arXiv:2004.07219), section 5 and appendix; Farama-Foundation/Minari 0.5.4 for the layout.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from upslope.actor_critic.log import run_log
from upslope.collect import key_number, seeded
from upslope.config import Config, config_from, read_config
from upslope.control.certifying import trained_noise
from upslope.control.evaluation import play_episodes
from upslope.errors import UsageError
from upslope.offline.densities import policy_logp, to_log, uniform_logp
from upslope.offline.found import normalized_score
from upslope.offline.minari import METADATA
from upslope.offline.writing import LoggedEpisode, write_minari
from upslope.policies.control import ControlPolicy
from upslope.runs.checkpoint import list_checkpoints, load_checkpoint
from upslope.runs.metrics import read_metrics
from upslope.tasks.environments import Environments
from upslope.tasks.noise import noisy
from upslope.tasks.opening import open_environments
from upslope.tasks.spaces import ActionSpec

Quality = Literal["random", "medium", "medium-replay", "medium-expert", "expert"]
QUALITIES: tuple[str, ...] = get_args(Quality)
COPIES, EACH, REFERENCE_EPISODES = 10, 1000, 100  # EACH: transitions per copy at least, or whole episodes overshoot
Act = Callable[[np.ndarray], np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Request:
    """What log is asked for: of which quality, of how many transitions at least, in whole episodes. A medium-replay has as many
    as the run stored."""

    quality: str
    transitions: int = 100_000
    seed: int = 0
    medium_score: float = 100 / 3

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise UsageError(f"there is no quality {self.quality!r}. There are {', '.join(QUALITIES)}.")
        if self.transitions < 1:
            raise UsageError(f"a log of {self.transitions} transitions: at least 1 is needed.")


@dataclass(frozen=True)
class Tiers:
    """Which checkpoints of a run are the expert and the medium one, and what the scores are measured by."""

    random_return: float
    expert_return: float
    expert_step: int
    medium_step: int
    medium_reached: float


def make_log(run: Path, out: Path, request: Request, tiers: Tiers | None = None) -> dict[str, Any]:
    """Makes a log from a finished run's folder; returns its facts, which stand in its metadata, too.

    `tiers` are what `choose` has found for an earlier log of the same run, seed and medium score. The same run, request and
    versions give the same log. Raises UsageError where the run has learned nothing, or has not what the quality needs; nothing is
    written then.
    """
    config = _config(run)
    tiers = tiers if tiers is not None else choose(run, request)
    with_run = {"method": config.method, "task": config.task, "steps": config.steps, "training_seed": config.seed}
    episodes, spec = _episodes(run, config, request, tiers)
    returns = np.array([episode.total for episode in episodes])
    references = (tiers.random_return, tiers.expert_return)
    facts: dict[str, Any] = {**asdict(request), **with_run, **asdict(tiers), "return_mean": float(returns.mean())}
    facts["observation_noise"] = _noise(config)
    facts |= {"episodes": len(episodes), "steps_logged": sum(len(one.rewards) for one in episodes)}
    facts["score_mean"] = normalized_score(facts["return_mean"], references)
    about = {
        "dataset_id": dataset_id(str(config.task), request.quality),
        "algorithm_name": config.method,
        "ref_min_score": tiers.random_return,
        "ref_max_score": tiers.expert_return,
        "num_episodes_average_score": REFERENCE_EPISODES,
        "description": f"{request.quality} data of {config.task}, made by upslope data make with {config.method}.",
        "upslope": facts,
    }
    about |= _env_spec(config)
    size = episodes[0].observations.shape[1:]
    write_minari(out, episodes, _box(size), _space(spec), about)
    return facts


def already_made(out: Path, request: Request, **run: Any) -> bool:
    """Whether `out` has the log of that request, from a run with those facts (task, method, steps).

    Raises UsageError where it has another one.
    """
    place = out / "data" / METADATA
    if not place.exists():
        return False
    try:
        there = json.loads(place.read_text()).get("upslope") or {}
    except (OSError, ValueError):
        there = {}
    if all(there.get(name) == value for name, value in {**asdict(request), **run}.items()):
        return True
    raise UsageError(f"{out} has another log already. Choose another --out, or remove it.")


def dataset_id(task: str, quality: str) -> str:
    """The name by which Minari finds the log, where --out is that path below MINARI_DATASETS_PATH."""
    plain = "".join(c if c.isalnum() else "-" for c in task.lower()).strip("-")
    return f"upslope/{plain}-{quality}-v0"


def _config(run: Path) -> Config:
    config = config_from(read_config(run / "config.yaml"), where=str(run / "config.yaml"))
    if config.task is None:
        raise UsageError(f"the run in {run} has no task to play in.")
    return config


def choose(run: Path, request: Request) -> Tiers:
    """The checkpoints that the qualities are of. Raises UsageError where none is better than uniform actions."""
    config = _config(run)
    returns = {int(row["step"]): float(row["eval/return"]) for row in read_metrics(run) if "eval/return" in row}
    found = {step: returns[step] for step in list_checkpoints(run) if step in returns and step > 0}
    if not found:
        raise UsageError(
            f"no checkpoint in {run} has a held-out return. Train with eval.every equal to checkpoint_every."
        )
    best = max(found, key=lambda step: found[step])
    expert = ControlPolicy.load(load_checkpoint(run, best).path)
    with _opened(config, "reference", request.seed, expert.convention) as environments:
        played = play_episodes(expert, environments, REFERENCE_EPISODES, deterministic=True, seed=request.seed)
    with _opened(config, "random", request.seed, "clip") as environments:
        uniform: Any = _Uniform(environments.actions, request.seed)
        by_chance = play_episodes(uniform, environments, REFERENCE_EPISODES, seed=request.seed)
    high, low = (float(np.mean([episode.total for episode in some])) for some in (played, by_chance))
    if not high > low:
        raise UsageError(
            f"the best checkpoint of {run} earns {high:.4g}, no more than uniform actions ({low:.4g}): train longer (--steps)."
        )
    scores = {step: normalized_score(value, (low, high)) for step, value in found.items() if step <= best}
    medium = nearest(scores, request.medium_score)
    return Tiers(low, high, best, medium, scores[medium])


def nearest(scores: dict[int, float], wanted: float) -> int:
    """The step whose score is nearest to `wanted`, from the first on that reaches it; of all, where none does."""
    first = min((step for step, score in scores.items() if score >= wanted), default=0)
    return min((step for step in scores if step >= first), key=lambda step: abs(scores[step] - wanted))


def record(environments: Environments, act: Act, transitions: int, score: Score | None = None) -> list[LoggedEpisode]:
    """Whole episodes of at least so many transitions: each copy plays its share of them, and its last episode to the end.

    `score` gives the log-probs of what `act` did; None: they are not logged.
    """
    share = np.full(environments.count, transitions // environments.count)
    share[: transitions % environments.count] += 1
    steps: list[tuple[np.ndarray, ...]] = []
    played, active = np.zeros_like(share), share > 0
    observation = environments.reset()
    while active.any():
        action = act(observation)
        step = environments.step(action)
        valid = active if step.valid is None else active & step.valid
        taken = environments.actions.to_environment(np.asarray(action), environments.convention)
        logp = () if score is None else (score(observation, to_log(taken, environments.actions)),)
        seen = (observation, step.next_observation, taken, step.reward, step.terminated, step.truncated)
        steps.append((*seen, *logp, valid.copy()))
        played += valid
        active = active & ~((step.terminated | step.truncated) & (played >= share))
        observation = step.observation
    columns = [np.stack(column) for column in zip(*steps, strict=True)]
    found: list[LoggedEpisode] = []
    for copied in range(environments.count):
        kept = columns[-1][:, copied]
        found += split(*(column[kept, copied] for column in columns[:-1]))
    return found


def split(
    observation: np.ndarray,
    following: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    logp: np.ndarray | None = None,
) -> list[LoggedEpisode]:
    """The episodes of transitions [n, ...] in their order; the last one is cut where it has no end."""
    ended, cut = terminated.astype(bool), truncated.astype(bool)
    if len(reward):
        cut[-1] |= not ended[-1]
    places = np.flatnonzero(ended | cut) + 1
    found = []
    for first, last in zip([0, *places[:-1].tolist()], places.tolist(), strict=True):
        rows = slice(first, last)
        states = np.concatenate([observation[rows], following[last - 1 : last]])
        own = None if logp is None else logp[rows]
        found.append(LoggedEpisode(states, action[rows], reward[rows], ended[rows], cut[rows], own))
    return found


class _Uniform:
    """Uniform actions, as a policy."""

    def __init__(self, spec: ActionSpec, seed: int) -> None:
        if spec.kind == "multi_discrete" or (spec.kind == "continuous" and not spec.bounded):
            raise UsageError(f"uniform actions need one discrete choice or a finite Box; the actions are {spec.kind}.")
        self.spec, self.generator = spec, np.random.default_rng(key_number(f"{seed}/uniform"))

    def act(self, observation: np.ndarray, *_: Any) -> tuple[np.ndarray, None]:
        count = len(observation)
        if self.spec.kind == "discrete":
            return self.generator.integers(self.spec.values[0], size=count), None
        low, high = self.spec.box
        return self.generator.uniform(low, high, (count, self.spec.size)).astype(np.float32), None


def _episodes(run: Path, config: Config, request: Request, tiers: Tiers) -> tuple[list[LoggedEpisode], ActionSpec]:
    if request.quality == "medium-replay":
        return _stored(run, config, request, tiers.medium_step)
    copies = max(1, min(COPIES, request.transitions // EACH))
    if request.quality == "random":
        with _opened(config, "log", request.seed, "clip", copies) as environments:
            uniform = _Uniform(environments.actions, request.seed + 1)
            logp = uniform_logp(environments.actions)
            score: Score = lambda rows, _: np.full(len(rows), logp)  # noqa: E731
            found = record(environments, lambda rows: uniform.act(rows)[0], request.transitions, score)
            return found, environments.actions
    half = request.transitions // 2
    parts = {
        "medium": [(tiers.medium_step, request.transitions)],
        "expert": [(tiers.expert_step, request.transitions)],
        "medium-expert": [(tiers.medium_step, half), (tiers.expert_step, request.transitions - half)],
    }[request.quality]
    found = []
    for step, count in parts:
        policy = ControlPolicy.load(load_checkpoint(run, step).path)
        generator = seeded(request.seed, "log", step)
        with _opened(config, f"log/{step}", request.seed, policy.convention, copies) as environments:
            found += record(environments, _drawn(policy, generator), count, _score(policy))
    return found, policy.actions


def _score(policy: ControlPolicy) -> Score | None:
    """The log-probs of its actions; None where it has no density."""
    nothing = np.zeros((0, policy.observations.size), np.float32)
    action = (
        np.zeros(0, np.int64) if policy.actions.kind == "discrete" else np.zeros((0, policy.actions.size), np.float32)
    )
    if policy_logp(policy, nothing, action) is None:
        return None

    def score(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        found = policy_logp(policy, observation, action)
        assert found is not None
        return found

    return score


def _drawn(policy: ControlPolicy, generator: torch.Generator) -> Act:
    @torch.no_grad()
    def act(observation: np.ndarray) -> np.ndarray:
        return policy.act(observation, generator)[0]

    return act


def _stored(run: Path, config: Config, request: Request, step: int) -> tuple[list[LoggedEpisode], ActionSpec]:
    """What the run had stored by its checkpoint of that step."""
    if not (run / "replay" / "about.json").is_file():
        raise UsageError(
            f"medium-replay is what a run has stored, and '{config.method}' stores nothing. Take --method sac."
        )
    if json.loads((run / "replay" / "about.json").read_text())["environments"] != 1:
        raise UsageError(
            "medium-replay needs a run of one environment, whose steps are in order. Leave rollout.environments at 1."
        )
    log = run_log(run)
    count = next((int(row["env_steps"]) for row in read_metrics(run) if row["step"] == step and "env_steps" in row), 0)
    if count == 0:
        raise UsageError(
            f"the medium checkpoint of {run} is the one before training, which has stored nothing. Train in smaller steps: "
            "--checkpoints."
        )
    with _opened(config, "spaces", request.seed, "scale") as environments:
        spec = environments.actions
    columns = [getattr(log, name)[:count] for name in ("observation", "next_observation", "action")]
    columns[2] = spec.to_environment(columns[2], "scale")
    columns += [getattr(log, name)[:count] for name in ("reward", "terminated", "truncated")]
    return split(*columns), spec


class _opened:  # noqa: N801 - reads as a function
    """The run's environment, `copies` of it, for the length of a `with`."""

    def __init__(
        self, config: Config, what: str, seed: int, convention: Literal["clip", "scale"], copies: int = COPIES
    ) -> None:
        number = key_number(f"{seed}/data/{what}") % 2**32
        settings = config.task_settings
        opened = open_environments(config.task, copies, number, settings=settings, convention=convention)
        self.found = noisy(opened, _noise(config))

    def __enter__(self) -> Environments:
        return self.found

    def __exit__(self, *_: object) -> None:
        self.found.close()


def _noise(config: Config) -> float:
    """The noise on observations that the run was trained with."""
    return trained_noise({"method": config.method, "settings": config.settings})


def _box(shape: tuple[int, ...]) -> Any:
    from gymnasium import spaces

    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def _space(spec: ActionSpec) -> Any:
    from gymnasium import spaces

    if spec.kind == "discrete":
        return spaces.Discrete(spec.values[0], start=spec.start[0])
    low, high = (bound.reshape(spec.shape) for bound in spec.box)
    return spaces.Box(low, high, dtype=np.float32)


def _env_spec(config: Config) -> dict[str, Any]:
    """env_spec of a registered environment, with the run's keywords; {} for one's own."""
    import gymnasium

    if config.task not in gymnasium.registry:
        return {}
    spec = copy.deepcopy(gymnasium.spec(config.task))
    settings = dict(config.task_settings)
    limit = settings.pop("max_episode_steps", None)
    spec.max_episode_steps = spec.max_episode_steps if limit is None else limit
    spec.kwargs = {**spec.kwargs, **settings}
    try:
        return {"env_spec": spec.to_json()}
    except (TypeError, ValueError):
        return {}
