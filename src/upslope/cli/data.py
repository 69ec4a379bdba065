"""upslope data make --env ENV --quality QUALITY --out DIR"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from upslope.cli.train import Repeated, resolve, train
from upslope.errors import UsageError
from upslope.offline.found import need_h5py

if TYPE_CHECKING:
    from upslope.offline.making import Request


def command(
    what: tyro.conf.Positional[Literal["make"]],
    *,
    env: str,
    quality: Literal["random", "medium", "medium-replay", "medium-expert", "expert", "all"],
    out: Path,
    method: str = "sac",
    steps: int = 50,
    transitions: int = 100_000,
    checkpoints: int = 20,
    seed: int = 0,
    run: Path | None = None,
    set: Repeated = (),
) -> int:
    """Make a log of transitions to learn from offline: train, choose checkpoints, play, and write Minari's layout.

    random, medium (a third of the way from random actions to the expert), expert, medium-expert (half of either), medium-replay
    (all that training had stored by the medium checkpoint). All qualities share one training run, which goes on where it was
    stopped; the log has the returns of random actions and of the expert, by which scores are normalized.

    Examples:
      upslope data make --env Pendulum-v1 --quality all --out data/pendulum --steps 20
      upslope data make --env Pendulum-v1 --quality medium-replay --out data/pendulum-medium-replay --steps 20
      upslope data make --env HalfCheetah-v5 --quality medium --out data/cheetah-medium --steps 500
      upslope train iql --data data/pendulum-medium-replay

    Args:
        what: make.
        env: as train's --task: an id registered with Gymnasium, module:Class or file.py:function.
        quality: which log; all: each of the five.
        out: the log's folder; of all of them, a folder with one of each quality's name.
        method: what is trained by: sac, ppo, or another method that acts in an environment.
        steps: of the training run; sac takes 1000 actions a step.
        transitions: of the log, at least: episodes are whole. A medium-replay has what training stored.
        checkpoints: of the run, evenly spaced, among which the medium and the expert are.
        seed: of the training, and of what is played.
        run: the training run's folder; one under runs/ where not given, by method, env and seed.
        set: path=value, settings of the training run, as for train; repeatable.
    """
    from upslope.offline.making import QUALITIES, Request, already_made

    if checkpoints < 1 or steps < 1:
        raise UsageError(f"data make: --steps {steps} --checkpoints {checkpoints}: at least 1 of each.")
    places = {name: out / name for name in QUALITIES} if quality == "all" else {quality: out}
    wanted = {place: Request(name, transitions, seed) for name, place in places.items()}
    need_h5py()
    made = {place for place, one in wanted.items() if already_made(place, one, task=env, method=method, steps=steps)}
    left = {place: one for place, one in wanted.items() if place not in made}
    print("".join(f"{place} has this log already.\n" for place in sorted(made)), end="")
    if not left:
        return 0
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in env)
    folder = run or Path("runs", f"data-{Path(method).stem}-{plain}-{seed}")
    every = max(1, steps // checkpoints)
    own = (f"checkpoint_every={every}", f"keep_checkpoints={steps + 1}", f"eval.every={every}", "eval.episodes=10")
    resume = _same(folder, env, method, seed)
    given = {"task": env, "steps": steps, "seed": seed}
    config = resolve(method, given, (*own, *set), config=None, out=folder, resume=resume)
    return train(config, folder, resume) or _make(folder, steps, left)


def _make(run: Path, steps: int, wanted: Mapping[Path, "Request"]) -> int:
    """Logs of a run that has been trained; 1 where it has not been, to its end."""
    from upslope.compare import finished
    from upslope.offline.making import choose, make_log

    if not finished(run, steps):  # its best checkpoint is not the expert yet
        print("no log is made of a run that was stopped; the same command goes on with it.")
        return 1
    tiers = choose(run, next(iter(wanted.values())))
    for place, request in wanted.items():
        _tell(make_log(run, place, request, tiers), place)
    return 0


def _same(folder: Path, env: str, method: str, seed: int) -> bool:
    """Whether the training run is in that folder already. Raises UsageError where it is another one."""
    from upslope.config import read_config

    if not (folder / "config.yaml").is_file():
        return False
    there, wanted = read_config(folder / "config.yaml"), {"task": env, "method": method, "seed": seed}
    if other := [name for name, value in wanted.items() if there.get(name, value) != value]:
        was = ", ".join(f"{name} {there[name]!r}" for name in other)
        raise UsageError(f"the training run in {folder} is of {was}. Choose another --run, or leave it out.")
    return True


def _tell(found: dict[str, Any], out: Path) -> None:
    print()
    print(
        f"{out}: {found['steps_logged']:,} transitions in {found['episodes']:,} episodes of {found['task']}, {found['quality']}"
    )
    print(f"mean return {found['return_mean']:.4g}, normalized {found['score_mean']:.1f}")
    low, high = found["random_return"], found["expert_return"]
    print(f"0 is random actions, {low:.4g}; 100 the expert, {high:.4g} (step {found['expert_step']})")
    if found["quality"].startswith("medium"):
        print(
            f"medium is step {found['medium_step']}, whose held-out return was {found['medium_reached']:.1f} normalized"
        )
        if abs(found["medium_reached"] - found["medium_score"]) > 15:
            print("  far from a third: no checkpoint is nearer. More of them: --checkpoints, with a new --run")
