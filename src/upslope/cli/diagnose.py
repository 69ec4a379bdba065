"""upslope diagnose ranking RUN [--data pairs.jsonl] | pass-rates MODEL --data FILE --reward REWARD --out FILE | data LOG |
teacher-logps TEACHER --data FILE --out FILE
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from upslope.cli import teacher_logps
from upslope.cli.logged_data import examine, tell
from upslope.cli.pass_rates import measure
from upslope.cli.train import Flag, Repeated
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.diagnostics.pairs import ScoredPairs
    from upslope.rollout import Example

DEFAULT_BETA = 0.1
READ = {
    "ranking": ("data", "split", "reference", "beta", "pairs", "bins", "device"),
    "pass-rates": ("data", "reward", "out", "samples", "seed", "set"),
    "data": ("reference", "policy", "seed", "set"),
    "teacher-logps": ("data", "policy", "out", "set"),
}
FEW = 30  # pairs of which shares say little


def command(
    what: tyro.conf.Positional[Literal["ranking", "pass-rates", "data", "teacher-logps"]],
    model: tyro.conf.Positional[str],
    *,
    data: str | None = None,
    split: Literal["train", "eval", "all"] | None = None,
    reference: str | None = None,
    beta: float | None = None,
    pairs: int | None = None,
    bins: int | None = None,
    device: str | None = None,
    reward: str | None = None,
    out: Path | None = None,
    samples: int | None = None,
    seed: int | None = None,
    policy: str | None = None,
    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False,
    set: Repeated = (),
) -> None:
    """Examine a trained model. ranking: does it rank preference pairs as they are labelled, and how far from it are the rest?

    A pair that the reference ranks wrong by c nats is ranked right only where its DPO loss is below -log sigmoid(beta c), however
    far the loss has fallen before. The table shows accuracy, loss and that bound by difficulty c.

    pass-rates: how often the model solves each prompt of a file; writes the rows again with the column pass_rate (see `ded`).

    teacher-logps: a teacher's log-prob of every token of given completions; writes the rows again with the column teacher_logps,
    which `lightning_opd` reads in the place of a teacher.

    data: what a log of transitions is worth: returns, TQ (quality of its episodes), SACo (what it covers of --reference), and what
    a policy would earn by it (FQE).

    Examples:
      upslope diagnose ranking runs/dpo-pairs
      upslope diagnose ranking ./my-model --reference ./its-start --data pairs.jsonl --beta 0.05
      upslope diagnose pass-rates tiny --data answers.jsonl --reward exact --out with_rates.jsonl
      upslope diagnose teacher-logps ./teacher --data answers.jsonl --policy ./student --out with_logps.jsonl
      upslope diagnose data log.hdf5 --reference runs/sac-Pendulum-v1 --policy runs/iql-log

    Args:
        what: ranking, pass-rates, teacher-logps or data.
        model: a run's folder (ranking takes its data, start and beta, too), or a model as for train; of data, a log as for train.
        data: pairs, as for train, the run's own where not given; prompts with what the reward reads; demonstrations.
        split: ranking: which pairs; where not given, those of --data all, of the run's own data the held-out ones.
        reference: ranking: the model that training started from, where it is not the run's. data: a log to compare with.
        beta: ranking: of the objective, where it is not the run's.
        pairs: ranking: at most so many, the first; 2000 where not given.
        bins: ranking: lines of the table; 6 where not given.
        device: ranking: as in a run's settings.
        reward: pass-rates: as for train.
        out: pass-rates, teacher-logps: the file to write, JSON lines.
        samples: pass-rates: answers to each prompt; 8 where not given.
        seed: pass-rates, data: of the sampling; 0 where not given.
        policy: data: a run to evaluate on the log. teacher-logps: the model that will learn, whose tokenizer and chat template
            write prompts and completions; the teacher's own where not given.
        as_json: print one JSON object.
        set: pass-rates, teacher-logps: path=value, as for train; data: random_return, best_return, bins, discount, fqe_steps.
    """
    given = {name: value for name, value in locals().items() if name not in ("what", "model", "as_json")}
    _diagnose(what, model, as_json, **{**given, "set": set or None})


def _diagnose(what: str, model: str, as_json: bool, **given: Any) -> None:
    """Checks that what is given is read, and examines."""
    if unread := [f"--{name}" for name, value in given.items() if value is not None and name not in READ[what]]:
        raise UsageError(f"diagnose {what} does not read {', '.join(unread)}. See `upslope diagnose --help`.")
    seed, overrides, data, reference = given["seed"] or 0, given["set"] or (), given["data"], given["reference"]
    if what == "data":
        tell(examine(model, reference, given["policy"], seed, overrides), as_json)
    elif what == "teacher-logps":
        found = teacher_logps.measure(model, data, given["policy"], given["out"], overrides, _progress(as_json, "rows"))
        _tell_logps(found, as_json)
    elif what == "pass-rates":
        samples = 8 if given["samples"] is None else given["samples"]
        _tell_rates(measure(model, data, given["reward"], given["out"], samples, seed, overrides), as_json)
    else:
        subject = _subject(model, data, given["split"], reference, given["beta"])
        pairs, bins = (most if given[name] is None else given[name] for name, most in (("pairs", 2000), ("bins", 6)))
        _ranking(subject, pairs, bins, given["device"] or "auto", as_json)


def _tell_rates(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    print(
        f"mean pass rate of {found['model']} {found['mean']:.3f} over {found['prompts']} prompts, {found['samples']} answers each"
    )
    print(f"never solved {found['never']}, always {found['always']}")
    if found["too_long"]:
        print(f"{found['too_long']} prompts are too long for the model: pass_rate is null")
    if found["failed"]:
        print(f"{found['failed']} rewards failed and count as not passed")
    print(f"{found['rows']} rows with pass_rate: {found['out']}")


def _tell_logps(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    for note in found["notes"]:
        print(note)
    print(
        f"mean log-prob of {found['teacher']} {found['mean']:.3f} per token, over {found['tokens']:,} tokens, end tokens included"
    )
    if found["too_long"]:
        print(f"{found['too_long']} rows left out: longer than the teacher's context (e.g. {found['too_long_first']})")
    print(f"{found['rows']:,} rows with {found['column']}: {found['out']}")


def _ranking(subject: "Subject", pairs: int, bins: int, device: str, as_json: bool) -> None:
    from upslope.diagnostics.ranking import by_difficulty, ranking_report, ranking_table

    if pairs < 1 or bins < 2 or not subject.beta > 0:
        raise UsageError(
            f"diagnose: --pairs {pairs} --bins {bins} --beta {subject.beta}: at least 1 pair, 2 lines of the table, and a beta "
            "above 0."
        )
    examples, notes = _examples(subject, pairs)
    found = _scored(subject, examples, device, quiet=as_json)
    whole, parts = ranking_report(found.scores, subject.beta), by_difficulty(found.scores, subject.beta, bins)
    left_out = {"ties": found.ties, "prompts_too_long": found.long, "completions_cut": found.cut}
    if as_json:
        facts = {"model": subject.model, "reference_model": subject.reference}
        facts |= {"data": subject.data, "split": subject.split}
        by_c = [part.to_dict() for part in parts]
        print(json.dumps({**facts, **whole.to_dict(), "by_difficulty": by_c, "left_out": left_out}))
        return
    print(f"{subject.model} against {subject.reference}, beta {subject.beta:g}{subject.beta_from}")
    for line in (*notes, *(f"{name.replace('_', ' ')}: {count}" for name, count in left_out.items() if count)):
        print(line)
    print()
    for line in (*ranking_table(whole, parts), "", *_reading(whole)):
        print(line)


@dataclass(frozen=True)
class Subject:
    """What is examined: two models by name, pairs, which of them, and the objective's beta with where it comes from."""

    model: str
    reference: str
    data: str
    split: str
    settings: dict[str, Any]
    beta: float
    beta_from: str
    options: dict[str, Any]
    max_tokens: int | None


def _subject(model: str, data: str | None, split: str | None, reference: str | None, beta: float | None) -> Subject:
    """A run's folder says what is not given; of a model, reference and data must be given."""
    folder = Path(model)
    if not (folder / "config.yaml").is_file():
        if reference is None or data is None:
            lacks = " and ".join(
                name for name, value in (("--reference", reference), ("--data", data)) if value is None
            )
            raise UsageError(
                f"diagnose: {model} is no run's folder (it has no config.yaml), so give {lacks}. Example: upslope diagnose "
                f"ranking {model} --reference tiny --data pairs.jsonl"
            )
        said = "" if beta is not None else " (the default; give --beta)"
        return Subject(
            model, reference, data, split or "all", {}, DEFAULT_BETA if beta is None else beta, said, {}, None
        )
    from upslope.config import config_from, read_config
    from upslope.runs.checkpoint import load_checkpoint

    config = config_from(read_config(folder / "config.yaml"), where=str(folder / "config.yaml"))
    if config.data is None and data is None:
        raise UsageError(f"diagnose: the run in {folder} has no data of its own. Give pairs: --data pairs.jsonl")
    own = data is None
    settings = dict(config.task_settings) if own and config.task is None else {}
    trained, said = _beta_of(config.method, dict(config.settings))
    if beta is not None:
        trained, said = beta, ""
    names = ("dtype", "trust_remote_code", "packing", "vocab_chunk")
    return Subject(
        str(load_checkpoint(folder).path),
        reference or config.model,
        data or str(config.data),
        split or ("eval" if own else "all"),
        settings,
        trained,
        said,
        {name: getattr(config, name) for name in names},
        config.max_tokens,
    )


def _beta_of(method: str, settings: dict[str, Any]) -> tuple[float, str]:
    """The beta of a method's preference loss, and a word on it."""
    from upslope.parts.preference import PreferenceLoss
    from upslope.registry import make

    for _, part in make(method, **settings).stages():
        if isinstance(part, PreferenceLoss):
            return part.beta, f" (the run's {method})"
    return DEFAULT_BETA, f" (the default: {method} has no beta of a preference loss; --beta gives another)"


def _examples(subject: Subject, most: int) -> "tuple[list[Example], list[str]]":
    """The pairs to rank, and notes on the file."""
    from upslope.tasks.completions import open_completions

    opened = open_completions(subject.data, "pairs", subject.settings)
    splits: tuple[Literal["train", "eval"], ...] = ("train", "eval")
    found = [example for name in splits if subject.split in (name, "all") for example in opened.splits[name]]
    which = {"all": "all pairs", "train": "the training pairs", "eval": "the held-out pairs"}[subject.split]
    shown = f"{which} of {subject.data}" + (f", the first {most} of {len(found)}" if len(found) > most else "")
    if subject.split == "eval" and len(found) < FEW:
        shown += f": only {len(found)}. All of them: --split all"
    return found[:most], [*opened.notes[:1], shown]


def _scored(subject: Subject, examples: "list[Example]", device: str, *, quiet: bool) -> "ScoredPairs":
    from upslope.diagnostics.pairs import score_pairs
    from upslope.policies.language import LanguagePolicy
    from upslope.threads import use_threads

    use_threads(None)
    policy, reference = (
        LanguagePolicy.load(name, device=device, **subject.options) for name in (subject.model, subject.reference)
    )
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise UsageError(
            f"diagnose: {subject.model} and {subject.reference} have different vocabularies, so their log-probs cannot be "
            "compared. Give the model that training started from: --reference MODEL"
        )
    return score_pairs(policy, reference, examples, max_tokens=subject.max_tokens, progress=_progress(quiet, "pairs"))


def _progress(quiet: bool, what: str) -> Callable[[int], None]:
    if quiet or not sys.stderr.isatty():
        return lambda done: None
    return lambda done: print(f"\r  {done} {what} scored", end="\n", file=sys.stderr, flush=True)


def _reading(whole: Any) -> list[str]:
    """What the numbers mean, and the ceiling and the floor."""
    return [
        f"idealized accuracy {whole.idealized:.1%}, so an alignment gap of {whole.alignment_gap:+.1%}: a policy that is best for "
        "the objective ranks that many right",
        f"no policy of the same mean loss ranks fewer than {whole.floor:.1%} right",
        "",
        "difficulty: by how many nats the reference holds the rejected completion for more likely (c)",
        "reference, ranked right, per token: the preferred completion is the likelier one, under the reference, under the model,",
        "  by the model's mean over tokens",
        "gained: the model has raised the preferred completion over the rejected one, relative to the reference (pairs/accuracy)",
        "loss, needs loss below: mean DPO loss, and -log sigmoid(beta c), below which a pair is ranked right",
    ]
