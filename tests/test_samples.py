"""Samples beside given completions: which rows there are, who judges them, resume, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from upslope import Trainer, UsageError
from upslope.batch import SOURCES
from upslope.engines.local import LocalEngine
from upslope.given import GivenCollector
from upslope.gradient import GradientRecorder
from upslope.methods.preference.hypo_online_kl import SampledKL
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean, SequenceMean, TokenMean
from upslope.parts.data import FromData
from upslope.parts.expert import ExpertRows, PolicyRows
from upslope.parts.surrogate import ClippedRatio, PolicyGradient
from upslope.policies.language import LanguagePolicy
from upslope.policies.scorer import FrozenScorer
from upslope.prompts import PromptStream
from upslope.recipe import Term
from upslope.registry import make
from upslope.rollout import Example, Outcome, Sampling
from upslope.runs.metrics import read_metrics
from upslope.samples import check_samples, reads_samples
from upslope.setup import check_columns
from upslope.tasks.completions import Completion
from upslope.update import Actors
from upslope.writers import Writers

SMALL = {"max_tokens": 6, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 4, "threads": 1}
EXPERT, POLICY, EARLIER = (SOURCES.index(name) for name in ("expert", "policy", "earlier"))
EXAMPLES = [
    Example("a", "ab", {"completions": (Completion("xyz", 1.0), Completion("q", 0.0, score=0.25)), "answer": "b"}),
    Example("c", "cde", {"completions": (Completion("v", 0.0), Completion("uvw", 1.0)), "answer": "d"}),
]
SAMPLING = Sampling(max_tokens=5)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "abc"[: 1 + i % 3], "rejected": "XYZ"[: 1 + i % 2]} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def demos(tmp_path):
    path = tmp_path / "demos.jsonl"
    rows = [{"prompt": f"p{i}", "completion": "abab", "target": "a"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def reward(tmp_path):
    """Half a point for each a; fails where there is an e."""
    path = tmp_path / "reward.py"
    path.write_text(
        "def score(completions, **columns):\n    return [None if 'e' in c else c.count('a') / 2 for c in completions]\n"
    )
    return f"{path}:score"


def collector_of(toy, recipe, **options):
    policy = LanguagePolicy.load(toy)
    actors = Actors(policy, None, reference=FrozenScorer(policy))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02
    writers = Writers(actors, LocalEngine(policy), tokens_per_pass=512)
    return GivenCollector(
        policy=policy,
        stream=PromptStream(EXAMPLES, 0),
        recipe=recipe,
        limit=16,
        max_tokens=None,
        writers=writers,
        **options,
    )


def collected(collector, state=None, key=(0, 1)):
    return collector.collect(state or {"cursor": 0}, prompts=2, sampling=SAMPLING, key=key)


def test_given_and_sampled_rows_of_a_step(toy):
    found, state = collected(collector_of(toy, make("hypo_online_kl")))
    batch, rollouts = found.batch, found.rollouts
    assert state == {"cursor": 2}
    assert found.sampled
    assert batch.source.tolist() == [EXPERT, EXPERT, POLICY, POLICY] * 2
    assert torch.equal(found.source, batch.source)
    assert batch.prompt.tolist() == [0] * 4 + [1] * 4, "one tree per prompt, given and sampled"
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3], "given and sampled rows are never compared"
    assert [example.key for example in found.examples] == [found.examples[0].key] * 4 + [found.examples[4].key] * 4
    given = [row for row, source in enumerate(batch.source.tolist()) if source == EXPERT]
    texts = {example.key: [one.text for one in example.data["completions"]] for example in EXAMPLES}
    assert [rollouts.text[row] for row in given] == [t for key in ("a", "c") for t in texts[key]] or (
        [rollouts.text[row] for row in given] == [t for key in ("c", "a") for t in texts[key]]
    )
    own = batch.source == POLICY
    assert not batch.label[own].any()
    assert not batch.reward[own].any()
    assert batch.valid.all()
    assert [outcome.value for outcome, mine in zip(found.outcomes, own.tolist(), strict=True) if mine] == [None] * 4
    assert "old_logp" not in batch, "hypo_online_kl does not read it"
    assert "behavior_logp" not in batch
    assert found.metrics["samples/length/mean"] == pytest.approx(float(rollouts.mask[own].sum(1).float().mean()))
    assert found.metrics["length/mean"] == pytest.approx(float(rollouts.mask[~own].sum(1).float().mean()))
    assert found.metrics["tokens"] == float(rollouts.mask.sum())


def test_samples_depend_on_the_key_alone(toy):
    collector = collector_of(toy, make("hypo_online_kl"))
    one, other, third = (collected(collector, key=(0, step))[0].rollouts for step in (1, 1, 2))
    assert torch.equal(one.tokens, other.tokens)
    assert one.tokens.shape != third.tokens.shape or not torch.equal(one.tokens, third.tokens)


@pytest.mark.parametrize("rescore", [False, True])
@pytest.mark.parametrize("sampler", ["policy", "reference", "pool"])
def test_old_logp_is_that_of_who_writes_the_samples(toy, sampler, rescore):
    rollout = FromData(kind="pairs", samples=2, sampler=sampler, temperature=0.7)
    recipe = make("hypo_online_kl").replace(rollout=rollout, rows=ExpertRows(), terms=(clipped(),))
    collector = collector_of(toy, recipe, rescore=rescore)
    initial = collector.writers.actors.reference
    state = None
    if sampler == "pool":
        _, state = collected(collector)
        initial = FrozenScorer(collector.policy)  # as the policy was when the checkpoint was kept
        with torch.no_grad():
            for parameter in collector.policy.parameters():
                parameter -= 0.05
    found, _ = collector.collect(
        state or {"cursor": 0}, prompts=2, sampling=replace(SAMPLING, temperature=0.7), key=(3,)
    )
    writer = collector.policy if sampler == "policy" else initial
    with torch.no_grad():
        expected = writer.score(found.rollouts)["logp"]
    torch.testing.assert_close(found.batch.old_logp, expected, atol=1e-5, rtol=1e-5)
    assert set(found.batch.source.tolist()) == {EXPERT, POLICY if sampler == "policy" else EARLIER}
    assert found.sampled == (sampler == "policy"), "else there is no gap between sampler and trainer to tell of"


def clipped():
    return Term(ClippedRatio(), TokenMean(), rows=PolicyRows())


class Letters:
    """A judge that gives half a point per letter b and fails on what has an a."""

    def score(self, examples, texts, ids=None):
        assert len(examples) == len(texts) == len(ids)
        return [Outcome(None, failure="an a") if "a" in text else Outcome(text.count("b") / 2) for text in texts]


def rl_beside_demonstrations():
    """Policy gradient on samples, likelihood on what is given."""
    return make("sft").replace(
        rollout=FromData(kind="demonstrations", samples=4),
        rows=ExpertRows(),
        advantage=GroupBaseline(scale=None),
        terms=(Term(PolicyGradient(), SequenceMean(), rows=PolicyRows()),),
    )


@pytest.mark.parametrize("reads", [True, False])
def test_samples_are_judged(toy, reads):
    recipe = rl_beside_demonstrations() if reads else make("hypo_online_kl", samples=4)
    assert reads_samples(recipe) == reads
    found, _ = collected(collector_of(toy, recipe, judge=Letters()))
    own = found.batch.source == POLICY
    for text, reward, valid, mine in zip(
        found.rollouts.text, found.batch.reward.tolist(), found.batch.valid.tolist(), own.tolist(), strict=True
    ):
        if mine:
            assert valid == ("a" not in text or not reads), "whoever reads no reward loses no row to one that failed"
            assert reward == (0 if "a" in text else text.count("b") / 2)
        else:
            assert valid
    assert {"reward", "rewards/failed"} <= found.metrics.keys()


def test_who_reads_the_rewards_of_samples():
    assert not reads_samples(make("copg@offline"))
    given = make("copg@offline").replace(
        rollout=FromData(samples=2), rows=ExpertRows(), terms=(Term(SampledKL(), RowMean(), rows=PolicyRows()),)
    )
    assert not reads_samples(given), "copg reads the scores of the given pairs"
    assert reads_samples(given.replace(rows=PolicyRows()))


def run(name, folder, steps, settings, *, resume=False):
    with Trainer(name, out=folder, steps=steps, resume=resume, **settings) as trainer:
        return trainer.train()


@pytest.mark.parametrize(("name", "data"), [("hypo_online_kl", "pairs"), ("seppo", "demos")])
def test_resumed_bit_for_bit(toy, request, tmp_path, name, data):
    """The pool of checkpoints is in the run's: the resumed run draws from those of before."""
    own = {"pool_every": 2, "pool_size": 3} if name == "seppo" else {"coefficient": 0.1}
    settings = {"model": toy, "data": str(request.getfixturevalue(data)), "optimizer": {"lr": 1e-2}, **SMALL, **own}
    whole = run(name, tmp_path / "whole", 8, settings)
    run(name, tmp_path / "parts", 5, settings)
    again = run(name, tmp_path / "parts", 8, settings, resume=True)
    for one, other in zip(whole.parts.actors.policy.parameters(), again.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    mine = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert [row["loss"] for row in mine[1:]] == [row["loss"] for row in whole.rows[1:]]
    gaps = [row.get("sampler_gap/max") for row in whole.rows[1:]]
    if name == "seppo":
        assert [one["step"] for one in whole._cursor["pool"]] == [2, 4, 6]
        margins = [abs(row["pairs/margin"]) for row in whole.rows[1:]]
        assert min(margins) < 1e-4 < max(margins), "sometimes the checkpoint of now is drawn, sometimes one of before"
        assert gaps == [None] * 8, "a checkpoint is not the trainer's policy"
    else:
        assert max(gaps) < 1e-3, "of the sampled rows: nobody has sampled the given ones"


@pytest.mark.parametrize("name", ["hypo_online_kl", "seppo"])
def test_the_gradient_does_not_depend_on_passes(toy, name):
    settings = {"coefficient": 3.0} if name == "hypo_online_kl" else {"samples": 2, "sampler": "reference", "beta": 1.0}
    collector = collector_of(toy, make(name, **settings))
    found, _ = collected(collector)
    gradients = []
    for tokens in (1, 4096):
        recorder = GradientRecorder(collector.recipe, collector.writers.actors, tokens_per_pass=tokens, lr=1e-3)
        gradients.append(recorder.gradient(found.rollouts, found.batch, ("passes",)))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    assert gradients[0].norm() > 0.1


def test_minibatches_keep_samples_beside_what_is_given(toy, demos):
    with Trainer("seppo", model=toy, data=str(demos), steps=1, minibatches=4, **SMALL) as trainer:
        row = trainer.train().rows[-1]
    assert row["loss"] == pytest.approx(0.6931, abs=0.05), "a given completion without its sample would cost 0"


def test_a_run_whose_samples_a_reward_judges(toy, demos, reward):
    settings = {"reward_timeout": 100.0, "steps": 2, **SMALL}  # how soon a worker starts is not what this is about
    with Trainer(rl_beside_demonstrations(), model=toy, data=str(demos), reward=reward, **settings) as trainer:
        rows = trainer.train().rows
        judge = trainer.parts.judge
        assert trainer.parts.task.judge is judge, "it judges answers to held-out prompts, too"
    assert all("reward" in row and "rewards/failed" in row for row in rows[1:])
    assert "eval/pass@1" in rows[-1]
    assert judge.pool.closed


def test_a_reward_with_reference_answers(toy, demos, tmp_path):
    with Trainer(rl_beside_demonstrations(), model=toy, data=str(demos), reward="exact", steps=1, **SMALL) as trainer:
        assert trainer.parts.judge.reference(trainer.parts.train_examples[0]) == "a"
    path = tmp_path / "without.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": "ab"}) + "\n" for i in range(20)))
    with Trainer(rl_beside_demonstrations(), model=toy, data=str(path), reward="exact", steps=1, **SMALL) as trainer:
        assert trainer.parts.judge.reference(trainer.parts.train_examples[0]) == "ab", "the demonstration itself"


def test_the_reference_writes_and_is_made_anew(toy, pairs):
    recipe = make("hypo_online_kl", sampler="reference", fresh_reference=2)
    with Trainer(recipe, model=toy, data=str(pairs), steps=4, optimizer={"lr": 1e-2}, **SMALL) as trainer:
        rows = trainer.train().rows
    assert [row["pairs/margin"] == pytest.approx(0, abs=1e-5) for row in rows[1:]] == [True, False, True, False]


@pytest.mark.parametrize("old_logp", ["sampler", "recompute"])
def test_the_writers_log_probs_stay_those_of_the_writer(toy, demos, old_logp):
    recipe = make("seppo", sampler="reference")
    settings = {"old_logp": old_logp, "steps": 3, "optimizer": {"lr": 1e-2}, **SMALL}
    with Trainer(recipe, model=toy, data=str(demos), **settings) as trainer:
        rows = trainer.train().rows
    assert [abs(row["pairs/margin"]) < 1e-4 for row in rows[1:]] == [True, False, False]


def refused_columns(recipe):
    with pytest.raises(UsageError) as error:
        check_columns(recipe)
    return str(error.value)


def test_refused(toy, pairs, demos):
    with pytest.raises(UsageError, match=r"the main term, PreferenceLoss, is not told which rows"):
        check_samples(make("dpo", samples=2))
    check_samples(make("dpo", samples=2, rows="hypo_online_kl"))
    hypo = make("hypo_online_kl")
    without = hypo.replace(terms=(replace(hypo.terms[0], rows=None),))
    with pytest.raises(UsageError, match=r"terms\[0\], SampledKL, is not told"):
        check_samples(without)
    assert "'old_logp'" in refused_columns(make("dpo").replace(terms=(clipped(),), rows=ExpertRows()))
    clip = hypo.replace(terms=(clipped(),), advantage=GroupBaseline())
    check_columns(clip)
    assert "'answer'" in refused_columns(clip.replace(advantage=make("copo").advantage))
    with pytest.raises(
        UsageError, match=r"reads the rewards of what it samples beside given completions: give --reward"
    ):
        Trainer(rl_beside_demonstrations(), model=toy, data=str(demos), **SMALL)
    with pytest.raises(
        UsageError, match=r"exact compares with a reference answer.*its columns: prompt, chosen, rejected"
    ):
        Trainer("dpo", model=toy, data=str(pairs), reward="exact", **SMALL)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": -1}, "samples must be"),
        ({"temperature": 0.5}, r"temperature=0.5\) is read with samples=1"),
        ({"samples": 1, "pool_size": 3}, r"pool_size=3\) is read with sampler='pool'"),
        ({"samples": 1, "sampler": "pool", "pool_every": 0}, "at least 1"),
        ({"samples": 1, "temperature": float("inf")}, "at least 0"),
        ({"samples": 1, "sampler": "teacher"}, "takes 'policy' or 'reference' or 'pool'"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        make("dpo", **settings)
