"""upslope diagnose pass-rates MODEL --data FILE --reward REWARD --out FILE"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.cli.train import resolve
from upslope.errors import UsageError
from upslope.rollout import Example, Sampling
from upslope.runs.files import RunError, write_atomic

EXAMPLE = "upslope diagnose pass-rates tiny --data answers.jsonl --reward exact --out with_rates.jsonl"
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
    out = new_file("pass-rates", {"--data": data, "--reward": reward, "--out": out}, EXAMPLE)
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
    write_rows(out, [{**example.data, "pass_rate": rates.get(_identity(example))} for example in examples])
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


def new_file(what: str, given: Mapping[str, object], example: str) -> Path:
    """The file that --out names. Raises UsageError for options that are missing, for a file that cannot be new JSON lines."""
    out = given["--out"]
    absent = [name for name, value in given.items() if value is None]
    if absent or not isinstance(out, Path):
        raise UsageError(f"diagnose {what}: missing {', '.join(absent)}. Example: {example}")
    if out.exists() or not out.parent.is_dir():
        wrong = "exists already" if out.exists() else "is in a folder that does not exist"
        raise UsageError(f"diagnose {what}: --out {out} {wrong}. Name a new file.")
    if out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"diagnose {what}: --out {out} will hold JSON lines. Name a file that ends in .jsonl.")
    return out


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines, written as a whole. Raises UsageError for a value that JSON has no name for."""
    lines = []
    for row in rows:
        try:
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            wrong = next((name for name, value in row.items() if not _is_json(value)), "?")
            raise UsageError(
                f"the column {wrong} cannot be written as JSON ({error}). Leave it out of the data."
            ) from None
    try:
        write_atomic(out, "".join(lines).encode("utf-8", "surrogatepass"))
    except RunError as error:
        raise UsageError(f"{out} cannot be written: {error}") from None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


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
