"""upslope diagnose pass-rates MODEL --data FILE --reward REWARD --out FILE"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upslope.cli.train import resolve
from upslope.errors import UsageError
from upslope.rollout import Example, Sampling

CHUNK = 128  # prompts that are answered together


def measure(
    model: str,
    data: str | None,
    reward: str | None,
    out: Path | None,
    samples: int,
    seed: int,
    overrides: tuple[str, ...],
) -> dict[str, Any]:
    """Writes the data's rows with the column pass_rate to `out`; a summary: prompts, mean, how many are never and always solved.

    Raises UsageError for what is missing, for an `out` that exists, for a reward that fails on every answer.
    """
    absent = [name for name, value in (("--data", data), ("--reward", reward), ("--out", out)) if value is None]
    if absent or out is None:
        raise UsageError(
            f"diagnose pass-rates: missing {', '.join(absent)}. Example: upslope diagnose pass-rates tiny --data answers.jsonl "
            "--reward exact --out with_rates.jsonl"
        )
    if out.exists() or not out.parent.is_dir():
        wrong = "exists already" if out.exists() else "is in a folder that does not exist"
        raise UsageError(f"diagnose pass-rates: --out {out} {wrong}. Name a new file.")
    if samples < 1:
        raise UsageError(f"diagnose pass-rates: --samples is {samples}; it must be at least 1.")
    from upslope.runs.checkpoint import model_folder
    from upslope.setup import open_parts
    from upslope.threads import use_threads

    given = {"model": model_folder(model), "data": data, "reward": reward, "seed": seed}
    config = resolve("reinforce", given, overrides, config=None, out=None, resume=False)
    use_threads(config.threads)
    parts = open_parts(config, recipe=None, task=None, policy=None, weights=None)
    try:
        examples = [*parts.task.examples("train"), *parts.task.examples("eval")]
        rates, failed = _rates(parts, config, examples, samples)
    finally:
        parts.close()
    with open(out, "x", encoding="utf-8") as file:
        for example in examples:
            rate = rates.get(_identity(example))
            file.write(json.dumps({**example.data, "pass_rate": rate}, ensure_ascii=False) + "\n")
    known = [rate for rate in rates.values() if rate is not None]
    return {
        "model": model,
        "rows": len(examples),
        "prompts": len(rates),
        "samples": samples,
        "mean": sum(known) / len(known),
        "never": sum(rate == 0 for rate in known),
        "always": sum(rate == 1 for rate in known),
        "too_long": len(rates) - len(known),
        "failed": failed,
        "out": str(out),
    }


def _identity(example: Example) -> str:
    return json.dumps(example.prompt, sort_keys=True)


def _rates(parts: Any, config: Any, examples: Sequence[Example], samples: int) -> tuple[dict[str, float | None], int]:
    """Share of right answers by prompt, None where it is too long for the model; how many rewards failed."""
    from upslope.evaluate import evaluate

    rates: dict[str, float | None] = {_identity(example): None for example in examples}
    distinct = {_identity(example): example for example in examples}
    fitting = {
        name: one for name, one in distinct.items() if len(parts.actors.policy.encode(one.prompt)) <= parts.prompt_limit
    }
    names, failed, answered = list(fitting), 0, 0
    for start in range(0, len(names), CHUNK):
        part = names[start : start + CHUNK]
        found = evaluate(
            engine=parts.engine,
            judge=parts.task.judge,
            encode=parts.actors.policy.encode,
            examples=[fitting[name] for name in part],
            samples=samples,
            sampling=Sampling(parts.max_tokens, 1.0, config.top_p, config.top_k, config.stop),
            solved_at=parts.task.solved_at,
            seed=config.seed + start,
            ks=(1,),
        )
        passed = [o.value is not None and o.value >= parts.task.solved_at - 1e-9 for o in found.outcomes]
        failed += int(found.metrics["eval/failed"])
        answered += len(passed)
        for index, name in enumerate(part):
            rates[name] = sum(passed[index * samples : (index + 1) * samples]) / samples
    if failed == answered:
        raise UsageError(
            f"all {failed} rewards failed, so no pass rate is known. Try the reward on one answer of the data."
        )
    return rates, failed
