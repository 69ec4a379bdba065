"""A trained policy by the folder of its run."""

from pathlib import Path

from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy


def load(run: str | Path) -> ControlPolicy:
    """The policy of a run in an environment or on a log: of a run's folder (its newest checkpoint), a checkpoint, or what
    `ControlPolicy.save` wrote.

        policy = upslope.load("runs/ppo-CartPole-v1")
        action, _ = policy.predict(observation, deterministic=True)

    Raises UsageError where there is no such policy; models of language are folders that transformers loads.
    """
    from upslope.runs.checkpoint import model_folder

    folder = Path(model_folder(str(run)))
    if not (folder / "policy.json").is_file() and (folder / "config.json").is_file():
        raise UsageError(
            f"{run} is a language model: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it."
        )
    return ControlPolicy.load(folder)
