"""`upslope export`: a policy for machines without PyTorch."""

from pathlib import Path

import tyro

from upslope.errors import UsageError


def command(run: tyro.conf.Positional[str], file: tyro.conf.Positional[Path]) -> None:
    """Write a control policy as ONNX: raw observations in, the action that the environment takes out.

    The actions of ONNX Runtime are compared with those of PyTorch before anything is written.

    Example: `upslope export runs/ppo-CartPole-v1 cartpole.onnx`

    Args:
        run: a run's folder (its newest checkpoint) or a checkpoint.
        file: what is written; its name ends in .onnx.
    """
    from upslope.cli.returns import policy_folder
    from upslope.policies.control import ControlPolicy
    from upslope.policies.exporting import export_onnx

    if file.suffix != ".onnx":
        raise UsageError(f"export: {file} does not end in .onnx, which is what is written.")
    folder = policy_folder(run)
    if folder is None and not Path(run).expanduser().exists():
        raise UsageError(f"export: there is no {run}. Give a run's folder, or one of its checkpoints.")
    if folder is None:
        raise UsageError(
            f"export: {run} holds no policy for an environment. A language model's checkpoint is a Hugging Face folder already."
        )
    policy = ControlPolicy.load(folder)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        gap = export_onnx(policy, file)
    except OSError as error:
        raise UsageError(
            f"export: {file} cannot be written: {error.strerror or error}. Choose another place."
        ) from None
    print(f"{file}  ({file.stat().st_size:,} bytes; ONNX Runtime's outputs differ from PyTorch's by at most {gap:.0e})")
