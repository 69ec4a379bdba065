"""What a teacher says of a step's rows: divergences in chunks with the gradient of whole logits, another prompt, whose weights."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.collect import first_batch, seeded
from upslope.config import OptimizerConfig
from upslope.engines.local import LocalEngine
from upslope.gradient import GradientRecorder
from upslope.learner import Learner
from upslope.parts.distill import TeacherDivergence, generalized_jsd
from upslope.policies import logprobs
from upslope.policies.language import LanguagePolicy
from upslope.policies.scorer import AveragingScorer, FrozenScorer
from upslope.recipe import Part
from upslope.rollout import Example, Outcome, Sampling
from upslope.teaching import Teaching, informed, with_context
from upslope.update import Actors, Updater

SMALL = {"max_tokens": 6, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 3, "threads": 1, "steps": 3}


@dataclass(frozen=True)
class Hint(TeacherDivergence):
    """The teacher reads "ab" with rows of an even number of characters."""

    teacher: str = "ema"
    rate: float = 0.5
    stateful: ClassVar[bool] = True

    def init(self):
        return {"seen": 0}

    def context(self, rollouts, batch, state):
        return ["ab" * (len(text) % 2 == 0) for text in rollouts.text], {"seen": state["seen"] + len(rollouts)}


def divergent(surrogate=None):
    return make("opd").replace(surrogate=surrogate or TeacherDivergence(beta=0.3), advantage=None)


@pytest.fixture(scope="module")
def policies(toy):
    found = {packing: LanguagePolicy.load(toy, packing=packing) for packing in ("tree", "padded")}
    found["chunks"] = LanguagePolicy.load(toy, vocab_chunk=50)
    return found


def another(toy, words=0):
    """A teacher of the same tokens with other weights, and `words` more rows in its output layer."""
    teacher = LanguagePolicy.load(toy)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    if words:
        teacher.model.resize_token_embeddings(len(teacher.tokenizer) + words, mean_resizing=False)
    return FrozenScorer(teacher, copy=False)


def sampled(policy):
    prompts = [policy.encode(text) for text in ("ab", "abc", "d")]
    rollouts = LocalEngine(policy).generate(prompts, [3, 1, 2], Sampling(7), seeded("rows"))
    outcomes = [Outcome(float(row % 2)) for row in range(6)]
    examples = [Example(str(prompt), "") for prompt in rollouts.prompt.tolist()]
    return rollouts, first_batch(rollouts, outcomes, examples)


def gradient_of_whole_logits(policy, teacher, rollouts, beta):
    ours = policy.score(rollouts, frozenset({"log_distribution"}))["log_distribution"]
    theirs = teacher.score(rollouts, frozenset({"log_distribution"}))["log_distribution"]
    value = generalized_jsd(ours, theirs, beta)[rollouts.mask].mean()
    parameters = list(policy.parameters())
    return value, torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_whole_logits_in_any_passes(toy, policies, monkeypatch, beta):
    teacher = another(toy)
    rollouts, batch = sampled(policies["tree"])
    recipe = divergent(TeacherDivergence(beta=beta))
    value, expected = gradient_of_whole_logits(policies["padded"], teacher, rollouts, beta)
    for name, policy in policies.items():
        actors = Actors(policy, Learner(policy.parameters(), 0.0, OptimizerConfig(), 1), teacher=teacher)
        for size, entries in ((10_000, 1 << 22), (40, 700), (1, 1)):
            monkeypatch.setattr(logprobs, "ENTRIES", entries)
            recorder = GradientRecorder(recipe, actors, tokens_per_pass=size, lr=0.0)
            found = recorder.gradient(rollouts, batch, ("key",))
            assert (found - expected).norm() < 1e-4 * expected.norm(), (name, size)
    measured = Updater(recipe, actors, tokens_per_pass=40, recompute_old_logp=False)
    assert measured.measure(rollouts, batch, {}, ("key",))["loss"] == pytest.approx(value.item(), rel=1e-5)


def test_the_whole_distributions_are_never_held(toy, policies, monkeypatch):
    """No more than the allowed entries of logits reach a comparison, and backward makes them again."""
    seen = []
    monkeypatch.setattr(logprobs, "ENTRIES", 2 * 3 * 258)

    def watching(policy, teacher):
        seen.append(tuple(policy.shape))
        return generalized_jsd(policy, teacher, 1.0)

    policy, teacher = policies["chunks"], another(toy)
    rollouts, _ = sampled(policy)
    teaching = Teaching(divergent(), policy, teacher)
    teaching.compared = {"divergence": watching}
    column = teaching.compare(rollouts, rollouts, torch.arange(6), None, frozenset({"divergence"}))["divergence"]
    forward = list(seen)
    column.sum().backward()
    policy.model.zero_grad()
    assert max(shape[0] for shape in forward) == 3
    assert sum(shape[0] for shape in forward) == rollouts.mask.sum()
    assert len(seen) == 2 * len(forward)
    assert not column[~rollouts.mask].any()


def test_log_probs_that_come_with_a_comparison_are_those_of_a_pass_of_their_own(toy, policies, monkeypatch):
    """vopd reads teacher_logp beside its baseline, gkd logs the gap to the sampler: each model is run once for both."""
    monkeypatch.setattr(logprobs, "ENTRIES", 3 * 258)
    policy, teacher, runs = policies["tree"], another(toy), []
    rollouts, batch = sampled(policy)
    for name, scorer in (("policy", policy), ("teacher", teacher.policy)):
        forward = scorer.network.model.forward
        monkeypatch.setattr(
            scorer.network.model, "forward", lambda *a, f=forward, n=name, **k: runs.append(n) or f(*a, **k)
        )
    updater = Updater(
        make("vopd"), Actors(policy, None, teacher=teacher), tokens_per_pass=10_000, recompute_old_logp=False
    )
    made = updater._score(rollouts, rollouts, batch, ("key",))
    assert sorted(runs) == ["policy", "teacher"]
    torch.testing.assert_close(made.teacher_logp, teacher.score(rollouts)["logp"])
    learner = Learner(policy.parameters(), 0.0, OptimizerConfig(), 1)
    updater = Updater(
        divergent(), Actors(policy, learner, teacher=teacher), tokens_per_pass=10_000, recompute_old_logp=False
    )
    runs.clear()
    result, _ = updater.update(rollouts, batch, {}, ("key",))
    assert sorted(runs) == ["policy", "teacher"]
    assert result.metrics["sampler_gap/max"] < 1e-4


def test_a_vocabulary_padded_further(toy, policies):
    rollouts, _ = sampled(policies["tree"])
    columns = [
        Teaching(divergent(), policies["tree"], another(toy, words)).compare(
            rollouts, rollouts, torch.arange(6), None, frozenset({"divergence"})
        )["divergence"]
        for words in (0, 6)
    ]
    torch.testing.assert_close(*columns)


def test_a_row_of_its_own_prompt_is_as_before_and_others_are_told(policies):
    policy = policies["tree"]
    rollouts, _ = sampled(policy)
    texts = ["", "xy", "xy", "", "much too long" * 9, "xy"]
    told, cut = informed(rollouts, texts, policy.tokenizer, policy.context_length)
    assert cut == 1
    for row, text in enumerate(texts):
        ids = told.prompts[told.prompt[row]]
        own = rollouts.prompts[rollouts.prompt[row]]
        assert ids[-len(own) :] == own
        assert len(ids) <= policy.context_length - rollouts.length[row]
        assert row == 4 or ids == policy.encode(text) + own
    assert told.tokens is rollouts.tokens
    theirs, ours = policy.score(told)["logp"], policy.score(rollouts)["logp"]
    same = (theirs - ours).abs().amax(1) < 1e-5
    assert same.tolist() == [True, False, False, True, False, False]


def test_a_chat_prompt_is_told_where_its_message_ends(policies):
    tokenizer = policies["tree"].tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "q"}], add_generation_prompt=True, return_dict=False
        )
        assert tokenizer.decode(with_context(ids, tokenizer(" hint")["input_ids"], tokenizer)) == "<q hint>A:"
    finally:
        tokenizer.chat_template = None


def test_the_average_follows_and_is_resumed(toy):
    policy = LanguagePolicy.load(toy)
    teacher = AveragingScorer(policy, 0.25)
    first = teacher.state_dict()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    teacher.follow(policy)
    name = next(iter(first))
    kept = teacher.state_dict()
    torch.testing.assert_close(kept[name], first[name] + 0.25)
    teacher.follow(policy)
    torch.testing.assert_close(teacher.state_dict()[name], first[name] + 0.4375)
    torch.testing.assert_close(kept[name], first[name] + 0.25)
    teacher.load_state_dict(kept)
    torch.testing.assert_close(dict(teacher.policy.model.named_parameters())[name], first[name] + 0.25)


def trained(toy, questions, recipe, **settings):
    with Trainer(recipe, model=toy, data=str(questions), reward="exact", **{**SMALL, **settings}) as trainer:
        return trainer.train()


def test_a_run_with_hints_and_an_average_resumes_bit_for_bit(toy, questions, tmp_path):
    settings = {"optimizer": {"lr": 1e-2}}
    recipe = divergent(Hint())
    whole = trained(toy, questions, recipe, out=tmp_path / "whole", **settings)
    trained(toy, questions, recipe, out=tmp_path / "parts", **{**settings, "steps": 1})
    again = trained(toy, questions, recipe, out=tmp_path / "parts", resume=True, **settings)
    for one, other in zip(whole.parts.actors.policy.parameters(), again.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again._states["surrogate"] == {"seen": 36}
    ours, theirs = whole.parts.actors.policy.state_dict(), again._states["teacher"]
    assert any((ours[name] - theirs[name]).abs().max() > 0 for name in ours), "it lags behind"
    assert 0 < whole.rows[-1]["teacher/informed"] < 1


@pytest.mark.parametrize("teacher", ["frozen", "live", "ema"])
def test_the_policy_as_its_own_teacher(toy, questions, teacher):
    rows = trained(toy, questions, divergent(), teacher=teacher, optimizer={"lr": 1e-2}).rows
    assert rows[1]["teacher/divergence"] == pytest.approx(0, abs=1e-6)


def test_no_teacher(toy, questions):
    with pytest.raises(UsageError, match=r"give --teacher MODEL, .* frozen, live or ema"):
        trained(toy, questions, "opd")


def test_two_of_a_name():
    recipe = divergent().replace(regularizer=TeacherDivergence(beta=1.0))
    with pytest.raises(UsageError, match=r"two parts .* column 'divergence'"):
        Teaching(recipe, None, None)


@dataclass(frozen=True)
class Baseline(Part):
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_kl"})

    def compares(self):
        return {"teacher_kl": lambda policy, teacher: generalized_jsd(policy, teacher, 1.0)}

    def __call__(self, batch):
        return batch.teacher_kl


def test_before_the_update_there_is_no_gradient(toy, policies):
    policy, teacher = policies["tree"], another(toy)
    rollouts, batch = sampled(policy)
    recipe = make("opd").replace(advantage=Baseline())
    actors = Actors(policy, Learner(policy.parameters(), 0.0, OptimizerConfig(), 1), teacher=teacher)
    updater = Updater(recipe, actors, tokens_per_pass=40, recompute_old_logp=False)
    found = updater._score(rollouts, rollouts, batch, ("key",)).teacher_kl
    assert not found.requires_grad
    ours, theirs = (x.score(rollouts, frozenset({"log_distribution"}))["log_distribution"] for x in (policy, teacher))
    torch.testing.assert_close(found, generalized_jsd(ours, theirs, 1.0) * rollouts.mask, atol=1e-5, rtol=0)
