"""upslope eval MODEL --win-rate OTHER: opens both models and the judge, and tells what came of it."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.eval import require_prompts
from upslope.config import Config
from upslope.errors import UsageError
from upslope.rollout import Example, Sampling

if TYPE_CHECKING:
    from upslope.tasks.chat_judge import ChatJudge
    from upslope.winrate import PairJudge, WinRate

logger = logging.getLogger("upslope")


@dataclass(frozen=True)
class Deciding:
    """Who says which answer is better, where it is not the reward: a reward model, or a language model behind an API."""

    reward_model: str | None = None
    url: str | None = None
    model: str | None = None
    question: Path | None = None

    def options(self) -> dict[str, object]:
        """What was given, by the option's name; None where it was not."""
        names = ("--reward-model", "--judge", "--judge-model", "--judge-prompt")
        return dict(zip(names, (self.reward_model, self.url, self.model, self.question), strict=True))

    def open(self, config: Config) -> tuple["PairJudge", str]:
        """The judge, which replies, and its name. Raises UsageError where it cannot be opened."""
        if config.reward is not None:
            option = "--judge" if self.url is not None else "--reward-model"
            raise UsageError(
                f"eval: {option} decides which answer is better, so --reward would not be read. Leave it out."
            )
        if self.reward_model is not None:
            return open_scoring(config, self.reward_model), f"reward model {self.reward_model}"
        return open_chat(self.url or "", self.model or "", self.question), self.model or ""


def play(
    config: Config, names: tuple[str, str], who: Deciding, temperature: float, out: Path | None, as_json: bool
) -> None:
    """Both models answer, the judge compares, and the result is printed. `config` opens the task and the first model."""
    from upslope.engines.local import LocalEngine
    from upslope.setup import open_parts
    from upslope.tasks.files import open_prompts
    from upslope.threads import use_threads
    from upslope.winrate import ByScore, Contender, win_rate

    use_threads(config.threads)
    judge, task = None, None
    if who != Deciding():
        judge = who.open(config)
        if config.data is not None and config.task is None:
            task = open_prompts(config.data, dict(config.task_settings), None)
    parts = open_parts(config, recipe=None, task=task, policy=None, weights=None)
    try:
        compare, judged_by = judge or (ByScore(parts.task.judge.score), parts.task.judge.describe())
        ours, theirs = parts.actors.policy, open_other(config, names[1])
        found = win_rate(
            Contender(names[0], parts.engine, ours.encode),
            Contender(names[1], LocalEngine(theirs), theirs.encode),
            compare,
            examples=fitting_both(parts.eval_examples, theirs, parts.max_tokens, names[1]),
            samples=config.eval.samples,
            sampling=Sampling(parts.max_tokens, temperature, config.top_p, config.top_k, config.stop),
            seed=config.seed,
        )
        facts = {
            "model": names[0],
            "against": names[1],
            "task": parts.task.name,
            "judge": judged_by,
            "samples": config.eval.samples,
        }
    finally:
        parts.task.close()
    if out is not None:
        found.write(out)
    if as_json:
        print(json.dumps({**facts, **found.metrics}))
    else:
        print("\n".join(lines(found, facts, out)))


def open_scoring(config: Config, name: str) -> "PairJudge":
    """A reward model, or the newest checkpoint of a run that trained one, as judge."""
    from upslope.policies.reward_model import RewardModel
    from upslope.runs.checkpoint import model_folder
    from upslope.tasks.reward_model import RewardModelJudge
    from upslope.winrate import ByScore

    options: dict[str, Any] = {"device": config.device, "dtype": config.dtype}
    try:
        model = RewardModel.load(model_folder(name), trust_remote_code=config.trust_remote_code, **options)
    except UsageError as error:
        raise UsageError(f"--reward-model: {error}") from error
    return ByScore(RewardModelJudge(model, name, tokens_per_pass=config.tokens_per_pass).score)


def open_chat(url: str, model: str, question: Path | None) -> "ChatJudge":
    """A language model as judge, after one request that it answered."""
    from upslope.tasks.chat_judge import QUESTION, ChatJudge

    text = QUESTION
    if question is not None:
        try:
            text = question.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"eval: cannot read the judge's question {question}: {error}.") from None
    chat = ChatJudge(url, model, question=text)
    chat.check()
    return chat


def open_other(config: Config, name: str) -> Any:
    from upslope.policies.language import LanguagePolicy
    from upslope.runs.checkpoint import model_folder

    return LanguagePolicy.load(
        model_folder(name), device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )


def fitting_both(examples: Sequence[Example], other: Any, max_tokens: int, name: str) -> list[Example]:
    """The examples that fit the other model's context, too; those left out are counted in the log."""
    require_prompts(examples)
    limit = other.context_length - max_tokens
    try:
        kept = [example for example in examples if len(other.encode(example.prompt)) <= limit]
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    if not kept:
        raise UsageError(
            f"no held-out prompt fits into the {max(limit, 0)} tokens that the context of {name} leaves beside "
            f"max_tokens={max_tokens}. Lower max_tokens or shorten the prompts."
        )
    if len(kept) < len(examples):
        logger.warning(
            "%d of %d held-out prompts are too long for %s and are left out.",
            len(examples) - len(kept),
            len(examples),
            name,
        )
    return kept


def lines(found: "WinRate", facts: dict[str, Any], out: Path | None) -> list[str]:
    """The result in words."""
    m = found.metrics

    def rate(name: str) -> str:
        return "{:.3f}  [{:.3f}, {:.3f}]".format(*(m[f"{name}{end}"] for end in ("", "_low", "_high")))

    said = [
        f"win rate  {rate('eval/win_rate')}  of {facts['model']} against {facts['against']}, judged by {facts['judge']}",
        f"  {m['eval/wins']:.0f} won, {m['eval/ties']:.0f} tied, {m['eval/losses']:.0f} lost "
        f"({m['eval/prompts']:.0f} prompts, {facts['samples']} samples of each model)",
        f"  mean length {m['eval/characters']:.1f} characters against {m['eval/characters_against']:.1f}; reached max_tokens "
        f"{m['eval/truncated']:.0%} against {m['eval/truncated_against']:.0%}",
    ]
    count = m["eval/similar_length/count"]
    similar = f"{rate('eval/similar_length/win_rate')}  in {count:.0f}" if count else "none"
    said.append(f"  of similar length (the shorter has 4/5 of the longer): {similar}{' comparisons' if count else ''}")
    if "eval/judge/consistent" in m:
        said.append(
            f"  the judge's two orders agreed in {m['eval/judge/consistent']:.0%}; it preferred the first place in "
            f"{m['eval/judge/first_preferred']:.0%}"
        )
    if m["eval/failed"]:
        reason = found.failures()[0][0]
        said.append(f"  {m['eval/failed']:.0f} comparisons failed and are left out, e.g. {reason}")
    if out is not None:
        said.append(f"answers and comparisons: {out}")
    return said
