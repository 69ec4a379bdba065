"""upslope doctor [--model M] [--task T | --data FILE] [...]"""

import importlib.metadata
import platform
from typing import Annotated

import tyro

from upslope.cli.train import Repeated, resolve
from upslope.threads import available_cores, use_threads

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "datasets",
    "reasoning-gym",
    "math-verify",
    "numpy",
)


def command(
    *,
    method: str = "grpo",
    model: str = "tiny",
    task: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    set: Annotated[Repeated, tyro.conf.arg(help="path=value, as for train; repeatable.")] = (),
) -> int:
    """Check this machine; with a task or data, also the model on them: what `upslope train` checks before its first step.

    Args:
        method: whose loss the micro-batch check uses.
        model: tiny, a Hugging Face folder, or a hub id.
        task: a name that `upslope tasks` lists.
        data: your own data, as for train.
        reward: your own reward, as for train.
    """
    from upslope.selfcheck import self_checks
    from upslope.setup import open_parts

    given = {"model": model, "task": task or (None if data else "chain_sum"), "data": data, "reward": reward}
    config = resolve(method, given, set, config=None, out=None, resume=False)
    use_threads(config.threads)
    for line in machine():
        print(line)
    parts = open_parts(config, recipe=None, task=None, policy=None, weights=None)
    try:
        print(f"model      {config.model}: {facts_of(parts.actors.policy)}")
        print(f"task       {parts.task.name}: {len(parts.eval_examples)} held-out prompts")
        checks = self_checks(parts, config)
    finally:
        parts.task.close()
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.message}")
    return 0 if all(check.ok for check in checks) else 1


def machine() -> list[str]:
    """Versions, cores, threads and accelerators, one line each."""
    import torch

    from upslope import __version__

    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return [
        f"upslope    {__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"packages   {versions}",
        f"processor  {available_cores()} cores, {torch.get_num_threads()} torch threads",
        f"devices    {', '.join(devices) or 'cpu'}",
    ]


def facts_of(policy: object) -> str:
    """Size, type, packing and context of a policy in words."""
    count = sum(p.numel() for p in policy.model.parameters())  # type: ignore[attr-defined]
    packing = f"{policy.packing}{f' ({policy.why_padded})' if policy.why_padded else ''}"  # type: ignore[attr-defined]
    return f"{count / 1e6:.2f}M parameters, {policy.dtype}, packing {packing}, context {policy.context_length}"  # type: ignore[attr-defined]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
