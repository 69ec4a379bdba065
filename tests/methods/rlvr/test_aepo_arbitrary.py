"""Card: rlvr_core.md, aepo-arbitrary."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.batch import SOURCES
from upslope.collect import Collector
from upslope.engines.local import LocalEngine
from upslope.methods.rlvr.aepo_arbitrary import EntropyTarget
from upslope.policies.language import LanguagePolicy
from upslope.prompts import PromptStream
from upslope.rollout import Example, Outcome, Sampling
from upslope.testing import batch_of, finite_differences, value_and_gradient

TEMPERED = SOURCES.index("tempered")


def test_defaults():
    rollout = make("aepo_arbitrary").rollout
    assert (rollout.target, rollout.hot, rollout.cold, rollout.share, rollout.least) == (0.5, 1.2, 0.8, 0.25, 0.05)
    released = make("aepo_arbitrary@released").rollout
    assert (released.most, released.cold_share, released.overwrite) == (60, 0.5, True)


def test_the_temperature_follows_the_entropy_of_the_step_before():
    part = EntropyTarget(target=0.5)
    state = part.init()
    assert part.second(state) == (0.25, 1.2), "the first step counts as one without entropy"
    asked = []
    for level in (0.3, 0.7, 0.5, 0.9):
        batch = batch_of([[1, 0]], lengths=[1, 3])
        before = dict(state)
        following = part.observe(batch.replace(old_logp=torch.full_like(batch.logp, -level)), state)
        assert state == before
        state = following
        assert state["entropy"] == pytest.approx(level)
        asked.append(part.second(state))
    assert asked == [(0.25, 1.2), (0.25, 0.8), (0.25, 1.2), (0.25, 0.8)]


def test_rows_that_are_kept():
    first = batch_of([[1, 0, 1, 0]] * 2)
    second = batch_of([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0.5, 0.45, 0.44]])
    stays, comes = EntropyTarget().join(first, second, {"entropy": 0.1})
    assert stays.all()
    assert comes.nonzero()[:, 0].tolist() == [0, 3, 9, 10, 11]
    failed = second.replace(valid=torch.arange(12) != 3)
    assert not EntropyTarget().join(first, failed, {"entropy": 0.1})[1][3]


def test_the_released_code_overwrites_the_first_rows():
    first, second = batch_of([[1, 0, 1, 0]] * 2), batch_of([[1, 0, 0, 1], [1, 0, 1, 0]])
    part = EntropyTarget(most=3, cold_share=0.5, overwrite=True)
    stays, comes = part.join(first, second, {"entropy": 0.1})
    assert comes.nonzero()[:, 0].tolist() == [0, 3, 4]
    assert stays.tolist() == [False] * 3 + [True] * 5
    stays, comes = part.join(first, second, {"entropy": 0.9})
    assert (int(comes.sum()), int((~stays).sum())) == (1, 1)


def numpy_loss(batch, logp, second):
    reward, group, mask, source = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "source"))
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = second if source[i] == TEMPERED else (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        u = (logp[i] - batch.ref_logp[i].numpy())[mask[i]]
        clipped = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))
        losses.append((clipped + 0.04 * (np.exp(-u) - 1 + u)).mean())
    return np.mean(losses)


@pytest.mark.parametrize("second", [1.0, 0.4])
def test_value_and_gradient(second):
    batch = batch_of([[1, 0.1, 0.7, 0.4], [0.3, 0.9, 1], [1, 1]], seed=5)
    source = torch.tensor([0] * 7 + [TEMPERED] * 2)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8), source=source)
    recipe = make("aepo_arbitrary", second=second)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), second))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, second), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_without_a_second_draw_it_is_grpo():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    ours, theirs = make("aepo_arbitrary"), make("grpo")
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("temperature", "sign"), [(1.2, 1), (1.0, 0), (0.8, -1)])
def test_where_all_succeed_the_term_moves_the_policy_to_the_one_at_the_temperature(temperature, sign):
    logits = torch.tensor([1.2, 0.3, -0.5, -1.0], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    tempered = (logits.detach() / temperature).softmax(0)
    batch = Batch(
        logp=logp.unsqueeze(1), old_logp=logp.detach().unsqueeze(1), reward=torch.ones(4), group=[0] * 4,
        source=[TEMPERED] * 4, weight=4 * tempered.unsqueeze(1),
    )  # fmt: skip
    recipe = make("aepo_arbitrary", regularizer=None)
    loss, _ = recipe.loss(recipe.prepare(batch))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(-gradient, tempered - logp.detach().exp())
    moved = torch.distributions.Categorical(logits=logits.detach() - 1e-3 * gradient).entropy()
    change = float(moved - torch.distributions.Categorical(logits=logits.detach()).entropy())
    assert np.sign(round(change, 9)) == sign


def test_on_the_engine(toy):
    policy = LanguagePolicy.load(toy)

    def score(examples, completions, ids):
        return [Outcome(float(text[:1] > "M")) for text in completions]

    made = Collector(
        engine=LocalEngine(policy), judge=SimpleNamespace(score=score), encode=policy.encode,
        stream=PromptStream([Example(f"k{i}", f"p{i}") for i in range(9)], 0), limit=80,
        recipe=make("aepo_arbitrary", target=9.0, group_size=4),
    )  # fmt: skip
    state = {"cursor": 0}
    first, state = made.collect(state, prompts=4, sampling=Sampling(4), key=(0, 1))
    own = first.batch.mask & (first.batch.source == 0).unsqueeze(1)
    assert state["rollout"]["entropy"] == pytest.approx(-float(first.batch.logp[own].mean()), rel=1e-5)
    second, state = made.collect(state, prompts=4, sampling=Sampling(4), key=(0, 2))
    added = second.batch.source == TEMPERED
    assert second.metrics["second/temperature"] == 1.2
    assert 0 < int(added.sum()) == second.metrics["second/rows"] < 4
    assert second.batch.reward[added].tolist() == [1.0] * int(added.sum())
    prepared = made.recipe.prepare(second.batch.replace(ref_logp=second.batch.logp))
    assert (prepared.per_row("advantage")[added] == 1).all()
    third, _ = made.collect({**state, "rollout": {"entropy": 9.5}}, prompts=4, sampling=Sampling(4), key=(0, 3))
    assert third.metrics["second/temperature"] == 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hot": 0.5}, r"EntropyTarget\(hot=0.5, cold=0.8\): temperatures with 0 < cold <= hot"),
        ({"share": 0.0}, "EntropyTarget.share is 0"),
        ({"group_size": 0}, "group_size is 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        make("aepo_arbitrary", **settings)
