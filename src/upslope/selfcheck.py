"""Checks of the actual model and data before the first step; each stands for a bug that others have shipped."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from upslope.collect import Collected, first_batch, observed_at_sampling, seeded
from upslope.config import Config
from upslope.engines.gap import sampler_gap
from upslope.gradient import GradientRecorder
from upslope.loop import open_given
from upslope.parts.data import FromData
from upslope.parts.expert import is_expert
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.samples import has_samples
from upslope.setup import Parts, fitting
from upslope.tasks.scorers import VERDICT_COLUMNS

GAP_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
SAVE_LIMIT = 300_000_000  # parameters; beyond, saving a copy to see whether it loads takes minutes


@dataclass(frozen=True)
class Check:
    """A check's name, whether it passed, the measured value with its limit, and a sentence for the log."""

    name: str
    ok: bool
    value: float
    limit: float
    message: str


def self_checks(parts: Parts, config: Config) -> list[Check]:
    """Round trip of tokens, sampler against trainer, mask, micro-batches, one step saved and resumed. Weights stay as they are.

    A reward model samples nothing, so its rows are the data's and there is no sampler to compare.
    """
    rollouts = _sample(parts, config) if parts.engine is not None else _given(parts, config).rollouts
    checks: list[Callable[[], Check]] = [
        lambda: _tokens_round_trip(parts),
        lambda: _mask_coverage(rollouts),
        lambda: _micro_batches(parts, rollouts, config),
    ]
    if parts.engine is not None:
        checks.insert(1, lambda: _sampler_gap(parts, rollouts, config))
    if sum(p.numel() for p in parts.actors.policy.model.parameters()) <= SAVE_LIMIT:
        checks.append(lambda: _save_and_resume(parts, rollouts, config))
    return [check() for check in checks]


def _sample(parts: Parts, config: Config) -> Rollouts:
    """Two completions of each of a few training prompts, short."""
    policy = parts.actors.policy
    examples, _ = fitting(parts.train_examples, policy.encode, parts.prompt_limit, 4, "training")
    ids = [policy.encode(example.prompt) for example in examples]
    sampling = Sampling(min(parts.max_tokens, 16))
    generator = seeded(config.seed, "self-check")
    return parts.engine.generate(ids, [2] * len(ids), sampling, generator, observed_at_sampling(parts.recipe))


def _given(parts: Parts, config: Config) -> Collected:
    """The given completions of a few training prompts, and short samples beside them, with made-up rewards that differ."""
    collector = open_given(config, parts)
    collector.judge = None
    examples, _ = fitting(parts.train_examples, parts.actors.policy.encode, parts.prompt_limit, 4, "training")
    sampling = Sampling(min(parts.max_tokens, 16)) if has_samples(parts.recipe) else None
    found = collector.rows(examples, sampling=sampling, key=(config.seed, "self-check"))
    if found.batch is not None and has_samples(parts.recipe):
        made_up = torch.arange(len(found.batch)) % 2.0
        reward = torch.where(is_expert(found.batch), found.batch.reward, made_up)
        found.batch = found.batch.replace(reward=reward, valid=None)
    return found


def _tokens_round_trip(parts: Parts) -> Check:
    """Text that is decoded and encoded anew gives the same text: no bytes are lost in the tokenizer."""
    policy, lost = parts.actors.policy, []
    for index in range(min(8, len(parts.train_examples))):
        prompt = parts.train_examples[index].prompt
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        for text in texts:
            again = policy.decode(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
            if again.strip() != text.strip():
                lost.append((text, again))
    message = "prompts survive the tokenizer"
    if lost:
        message = f"the tokenizer changes prompts: {lost[0][0][:60]!r} becomes {lost[0][1][:60]!r}"
    return Check("tokens round-trip", not lost, float(len(lost)), 0.0, message)


def _sampler_gap(parts: Parts, rollouts: Rollouts, config: Config) -> Check:
    policy = parts.actors.policy
    with torch.no_grad():
        gap = sampler_gap(rollouts, policy.score(rollouts, frozenset({"logp"})))["sampler_gap/max"]
    limit = GAP_LIMIT.get(policy.dtype, 1e-3)
    message = f"log-probs of sampler and trainer differ by at most {gap:.1e} (limit {limit:g})"
    return Check("sampler and trainer agree", gap <= limit, gap, limit, message)


def _mask_coverage(rollouts: Rollouts) -> Check:
    positions = torch.arange(rollouts.mask.shape[1])
    outside = int((rollouts.mask & (positions >= rollouts.length.unsqueeze(1))).sum())
    empty = int((~rollouts.mask.any(1)).sum())
    share = float(rollouts.mask.sum()) / float(rollouts.length.sum().clamp(min=1))
    message = (
        f"{share:.0%} of the completions' tokens are trained on; {empty} rows have none, {outside} padded positions are "
        "masked in"
    )
    return Check("mask coverage", not outside and not empty, float(outside + empty), 0.0, message)


def _micro_batches(parts: Parts, rollouts: Rollouts, config: Config) -> Check:
    """The gradient of one step in one micro-batch and in several, relative to its norm."""
    whole = _gradient(parts, rollouts, config, config.tokens_per_pass)
    split = _gradient(parts, rollouts, config, 1)
    # Floored: where a policy is its own teacher the gradient is nothing but rounding, which differs between the two.
    gap = float((whole - split).norm() / whole.norm().clamp(min=0.1))
    limit = 1e-4 if parts.actors.policy.dtype == torch.float32 else 5e-2
    return Check("micro-batches add up", gap <= limit, gap, limit, f"gradients differ by {gap:.1e} (limit {limit:g})")


def _gradient(parts: Parts, rollouts: Rollouts, config: Config, tokens_per_pass: int) -> torch.Tensor:
    """The policy's gradient, without taking the step: on made-up rewards that differ within each group, or on given rows."""
    if isinstance(parts.recipe.rollout, FromData):
        collected = _given(parts, config)
        rollouts, batch = collected.rollouts, collected.batch
    else:
        rewards = [float(row % 2) for row in range(len(rollouts))]
        outcomes = [Outcome(reward, columns=dict.fromkeys(VERDICT_COLUMNS, reward)) for reward in rewards]
        examples = [Example(str(prompt), "") for prompt in rollouts.prompt.tolist()]
        batch = first_batch(rollouts, outcomes, examples, parts.recipe.needs)
    assert batch is not None
    recorder = GradientRecorder(parts.recipe, parts.actors, tokens_per_pass=tokens_per_pass, lr=parts.actors.learner.lr)
    return recorder.gradient(rollouts, batch, ("self-check",))


def _save_and_resume(parts: Parts, rollouts: Rollouts, config: Config) -> Check:
    """The model, written and loaded, has the same weights bit for bit, and gives the same numbers."""
    policy = parts.actors.policy
    column, what = ("logp", "log-probs differ") if parts.engine is not None else ("value", "scores differ")
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        again = type(policy).load(folder, device=str(policy.device), dtype=config.dtype, packing="padded")
        with torch.no_grad():
            one = policy.score(rollouts, frozenset({column}))[column]
            two = again.score(rollouts, frozenset({column}))[column]
        weights = dict(policy.model.named_parameters())
        changed = [n for n, p in again.model.named_parameters() if n in weights and not torch.equal(p, weights[n])]
    gap = float((one - two).abs().max())
    limit = 1e-4 if policy.dtype == torch.float32 else 0.2
    message = f"saved and loaded, {len(changed)} weights changed; {what} by {gap:.1e}"
    if changed:
        return Check("save and load", False, float(len(changed)), 0.0, message)
    return Check("save and load", gap <= limit, gap, limit, message)
