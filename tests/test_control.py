"""Control parts, observations and altered prompts, on the real policy and engine: what the parts see, and when."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from upslope import make
from upslope.collect import entropy_of, first_batch, observed_at_sampling, seeded
from upslope.config import OptimizerConfig
from upslope.engines.local import LocalEngine
from upslope.learner import Learner
from upslope.parts.sampling import Update
from upslope.policies.language import LanguagePolicy
from upslope.recipe import Part
from upslope.rollout import Example, Outcome, Sampling
from upslope.testing import batch_of, value_and_gradient, with_observed
from upslope.update import Actors, Updater

SEEN: list = []


@dataclass(frozen=True)
class KeepUnlikely(Part):
    """A control: keeps tokens whose log-prob is below the mini-batch's mean; counts mini-batches."""

    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"likeliest"})
    makes: ClassVar[frozenset[str]] = frozenset({"weight"})

    def init(self):
        return {"count": 0}

    def observes(self):
        return {"likeliest": lambda log_probs, tokens: log_probs.amax(-1)}

    def __call__(self, batch, state):
        order = batch.trajectory.argsort()
        SEEN.append({name: getattr(batch, name)[order] for name in ("logp", "likeliest", "trajectory")})
        keep = batch.logp < batch.masked_mean(batch.logp)
        return {"weight": batch.weight * keep}, {"count": state["count"] + 1}


@dataclass(frozen=True)
class EntropyWeight(Part):
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "masked_logp"})

    def __call__(self, batch):
        SEEN.append({name: getattr(batch, name) for name in ("entropy", "masked_logp")})
        return torch.ones_like(batch.entropy)

    def alter_prompt(self, ids, blank, generator):
        return [blank] * len(ids)


@pytest.fixture
def policy(toy):
    return LanguagePolicy.load(toy)


def sampled(policy, recipe):
    prompts = [policy.encode("ab"), policy.encode("c")]
    observe = observed_at_sampling(recipe)
    rollouts = LocalEngine(policy).generate(prompts, [3, 3], Sampling(6), seeded("control"), observe)
    outcomes = [Outcome(float(row % 2), {}) for row in range(6)]
    return rollouts, first_batch(rollouts, outcomes, [Example(str(p), "") for p in rollouts.prompt.tolist()])


def updated(policy, recipe, tokens_per_pass, updates=1):
    """Weights after `updates` on the same rollouts from the same start, the parts' last state, and what the parts saw."""
    SEEN.clear()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    rollouts, batch = sampled(policy, recipe)
    learner = Learner(policy.parameters(), 1e-3, OptimizerConfig(), 10)
    updater = Updater(recipe, Actors(policy, learner), tokens_per_pass=tokens_per_pass, recompute_old_logp=False)
    for _ in range(updates):
        _, states = updater.update(rollouts, batch, recipe.init(), ("key",))
    after = torch.cat([p.detach().flatten() for p in policy.parameters()])
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            p.copy_(before[name])
    return after, states, list(SEEN), rollouts


def test_a_control_sees_its_whole_mini_batch_however_it_is_split(policy):
    recipe = make("dr_grpo").replace(control=KeepUnlikely(), update=Update(minibatches=2, epochs=2))
    one, states, seen, rollouts = updated(policy, recipe, 10_000)
    other, other_states, other_seen, _ = updated(policy, recipe, 1)
    assert states == other_states == {"control": {"count": 4}}
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert [len(part["trajectory"]) for part in seen] == [3, 3, 3, 3]
    for mine, theirs in zip(seen, other_seen, strict=True):
        for name, column in mine.items():
            torch.testing.assert_close(column, theirs[name], rtol=1e-3, atol=1e-4)
    first = seen[0]
    assert not first["logp"].requires_grad
    torch.testing.assert_close(
        first["logp"], rollouts.logp[first["trajectory"], : first["logp"].shape[1]], atol=1e-5, rtol=0
    )
    again = next(part for part in seen[2:] if torch.equal(part["trajectory"], first["trajectory"]))
    assert (again["logp"] - first["logp"]).abs().max() > 1e-4, "the second epoch sees the moved policy"


def test_what_the_control_keeps_out_has_no_gradient():
    recipe = make("dr_grpo").replace(control=KeepUnlikely())
    batch = recipe.prepare(with_observed(recipe, batch_of([[1, 0, 0, 1]], lengths=[3, 3, 2, 1])))
    gradient = value_and_gradient(recipe, batch)[1]
    unlikely = batch.logp < batch.masked_mean(batch.logp)
    assert ((gradient != 0) == (unlikely & batch.mask)).all()


def test_the_engine_observes_what_the_policy_would(policy):
    recipe = make("grpo").replace(weight=EntropyWeight())
    rollouts, _ = sampled(policy, recipe)
    with torch.no_grad():
        columns = policy.score(rollouts, frozenset({"entropy"}), observe={"again": entropy_of})
    torch.testing.assert_close(rollouts.observed["entropy"], columns["entropy"], atol=1e-5, rtol=0)
    torch.testing.assert_close(columns["again"], columns["entropy"], atol=1e-5, rtol=0)


def test_columns_of_an_altered_prompt(policy):
    recipe = make("dr_grpo").replace(weight=EntropyWeight())
    _, _, (seen,), rollouts = updated(policy, recipe, 10_000)
    blank = policy.tokenizer.unk_token_id or policy.tokenizer.pad_token_id or 0
    hidden = replace(rollouts, prompts=[[blank] * len(ids) for ids in rollouts.prompts])
    with torch.no_grad():
        expected = policy.score(hidden)["logp"]
    torch.testing.assert_close(seen["masked_logp"], expected, atol=1e-5, rtol=0)
    assert (expected - rollouts.logp).abs().max() > 1e-3


def test_a_weight_does_not_make_the_loss_compute_its_columns(policy):
    recipe = make("dr_grpo").replace(weight=EntropyWeight())
    updater = Updater(recipe, Actors(policy, None), tokens_per_pass=1, recompute_old_logp=False)
    assert updater.columns == {"logp"}
    assert recipe.needs_before == {"reward", "group", "entropy", "masked_logp"}


@pytest.mark.parametrize("heat", [0.5, 2.0])
def test_temperature_by_entropy(policy, heat):
    prompts = [policy.encode("ab")]
    engine = LocalEngine(policy)
    fixed = engine.generate(prompts, [4], Sampling(6, temperature=heat), seeded("heat"))
    adapted = engine.generate(
        prompts, [4], Sampling(6, adapt=lambda entropy: torch.full_like(entropy, heat)), seeded("heat")
    )
    assert torch.equal(fixed.tokens, adapted.tokens)
    torch.testing.assert_close(fixed.behavior_logp, adapted.behavior_logp)


@dataclass(frozen=True)
class Measured(Part):
    """A control that measures: what Adam's direction for a token's own row of the output layer adds to the token's logit."""

    needs: ClassVar[frozenset[str]] = frozenset({"added"})
    makes: ClassVar[frozenset[str]] = frozenset({"weight"})
    measured_from: ClassVar[frozenset[str]] = frozenset({"hidden", "top_logp", "top_ids"})
    words: int | None = 5

    def measure(self, batch, step):
        SEEN.append(
            {name: getattr(batch, name) for name in (*self.measured_from, "advantage", "trajectory")} | {"step": step}
        )
        direction = step.direction(batch.advantage.unsqueeze(-1) * batch.hidden, batch.tokens)
        return {"added": (direction * batch.hidden).sum(-1).abs()}

    def __call__(self, batch):
        assert "hidden" not in batch
        keep = batch.added < batch.masked_mean(batch.added)
        return {"weight": batch.weight * keep}


def test_what_is_measured_does_not_depend_on_the_split(policy):
    recipe = make("dr_grpo").replace(control=Measured(), update=Update(minibatches=2))
    one, _, seen, rollouts = updated(policy, recipe, 10_000, updates=2)
    other, _, other_seen, _ = updated(policy, recipe, 1, updates=2)
    plain = updated(policy, make("dr_grpo").replace(update=Update(minibatches=2)), 10_000, updates=2)[0]
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert (one - plain).abs().max() > 1e-4, "the control keeps tokens out"
    assert [part["step"].taken for part in seen] == [0, 1, 2, 3]
    assert len(other_seen) > len(seen)
    head = policy.model.get_output_embeddings().weight
    assert seen[0]["hidden"].shape[2:] == head.shape[1:] == seen[0]["step"].mean.shape[1:]
    assert seen[0]["top_ids"].shape[2] == 5
    assert not seen[0]["hidden"].requires_grad
    assert not seen[0]["step"].mean.any()
    assert seen[3]["step"].mean.any()
    width = seen[0]["top_logp"].shape[1]
    own = rollouts.logp[seen[0]["trajectory"], :width]
    assert (seen[0]["top_logp"][..., 0] >= own - 1e-5).all()


def test_a_whole_vocabulary_may_be_measured_from(policy):
    recipe = make("dr_grpo").replace(control=Measured(words=None))
    seen = updated(policy, recipe, 10_000)[2]
    torch.testing.assert_close(seen[0]["top_logp"].exp().sum(-1)[:, 0], torch.ones(6))
    assert policy.top_k == 32, "the policy of the run stays as it is"


@pytest.mark.parametrize("changes", [{}, {"control": KeepUnlikely()}], ids=["plain", "control"])
def test_halves_by_group_do_not_depend_on_the_split(policy, changes):
    recipe = make("oblr_po", ema=0.5).replace(**changes)
    found = []
    for size in (10_000, 1):
        start = [p.detach().clone() for p in policy.parameters()]
        rollouts, batch = sampled(policy, recipe)
        learner = Learner(policy.parameters(), 1e-3, OptimizerConfig(), 10)
        updater = Updater(recipe, Actors(policy, learner), tokens_per_pass=size, recompute_old_logp=False)
        results = [updater.update(rollouts, batch, recipe.init(), ("key",))[0].metrics for _ in range(2)]
        found.append((learner.signal, learner.noise, results[1]["lr"], results[1]["loss"]))
        assert results[1]["lr"] == learner.rate() < 1e-3
        assert learner.noise > 0
        with torch.no_grad():
            for p, old in zip(policy.parameters(), start, strict=True):
                p.copy_(old)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_halves_are_the_two_prompts(policy):
    """Signal and noise of the first step against two updates with one prompt each."""
    recipe = make("oblr_po", ema=0.0, norm="length")
    rollouts, batch = sampled(policy, recipe)
    gradients = []
    for prompt in (0, 1):
        part = recipe.prepare(batch.select(batch.group == prompt))
        some = rollouts.select((rollouts.prompt == prompt).nonzero().squeeze(1))
        loss, _ = recipe.loss(part.narrow(some.tokens.shape[1]).replace(**policy.score(some)))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))]))
    a, b = gradients
    learner = Learner(policy.parameters(), 0.0, OptimizerConfig(), 10)
    updater = Updater(recipe, Actors(policy, learner), tokens_per_pass=10_000, recompute_old_logp=False)
    updater.update(rollouts, batch, recipe.init(), ("key",))
    assert learner.signal == pytest.approx(float(a @ b), rel=1e-3)
    assert learner.noise == pytest.approx(float((a - b).square().sum()) / 4, rel=1e-3)


def test_gradient_norms_of_every_completion(policy):
    recipe = make("oblr_po", norm="exact")
    rollouts, batch = sampled(policy, recipe)
    batch = batch.replace(valid=torch.arange(6) != 4)
    updater = Updater(recipe, Actors(policy, None), tokens_per_pass=1, recompute_old_logp=False)
    found = updater._score(rollouts, rollouts, batch, ("key",)).grad_norm_squared
    logp = policy.score(rollouts)["logp"].sum(1)
    for row in range(6):
        gradients = torch.autograd.grad(logp[row], list(policy.parameters()), retain_graph=True)
        expected = 0.0 if row == 4 else sum(float(g.square().sum()) for g in gradients)
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None for p in policy.parameters())
