"""Card: preference_distill_hybrid.md, kto."""

import json

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer, UsageError, make
from upslope.methods.preference.kto import ReferencePoint
from upslope.policies.language import LanguagePolicy
from upslope.testing import batch_of, finite_differences, value_and_gradient


def row(r, label, z0):
    """A row whose log-ratio is r, and of which z0 is the mean over the mismatched completions."""
    columns = {"ref_logp": -2.0 - r, "mismatched_logp": -3.0, "mismatched_ref_logp": -3.0 - z0}
    tokens = {name: torch.tensor([[value]]).double() for name, value in {"logp": -2.0, **columns}.items()}
    return Batch(**tokens, label=[label])


def test_card_numbers():
    assert float(make("kto")(row(1.0, 1.0, 0.3))[0]) == pytest.approx(0.482507, abs=5e-7)
    assert float(make("kto")(row(-0.5, 0.0, 0.3))[0]) == pytest.approx(0.480011, abs=5e-7)


@pytest.mark.parametrize("beta", [0.01, 1.0, 7.0])
def test_at_the_reference_point_it_costs_a_half(beta):
    for label in (0.0, 1.0):
        assert float(make("kto", beta=beta)(row(0.3, label, 0.3))[0]) == pytest.approx(0.5)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_value_and_gradient_against_numpy(shift):
    batch = batch_of([[1], [0], [0], [1]], seed=4)
    batch = batch.replace(mismatched_ref_logp=batch.mismatched_logp + shift * 0.1 * batch.logp)
    mask, ref, label = batch.mask.numpy(), batch.ref_logp.numpy(), batch.label.numpy()
    z0 = max(0.0, ((batch.mismatched_logp - batch.mismatched_ref_logp).numpy() * mask).sum() / 4)
    assert (z0 > 0) == (shift > 0)

    def loss_at(logp):
        r = ((logp - ref) * mask).sum(1)
        good, bad = 1.3 * (1 - sigmoid(0.4 * (r - z0))), 0.9 * (1 - sigmoid(0.4 * (z0 - r)))
        return np.where(label == 1, good, bad).mean()

    recipe = make("kto", beta=0.4, desirable=1.3, undesirable=0.9)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-9)
    assert not recipe.prepare(batch).reference_point.requires_grad


def test_recovers_the_order_of_arms_from_thumbs():
    """A bandit with thumbs up at rates .2, .5, .9 and as many thumbs per arm: the better the arm, the more it gains."""
    rate, arms = [0.2, 0.5, 0.9], torch.arange(3).repeat_interleave(2)
    label = torch.tensor([value for up in rate for value in (1.0, 0.0)])
    weight = torch.tensor([value for up in rate for value in (up, 1 - up)]).double()
    theta, ref = torch.zeros(3).double().requires_grad_(), torch.full((6, 1), 1 / 3).double().log()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(200):
        logp = theta.log_softmax(0)[arms, None]
        moved = {"mismatched_logp": logp.detach(), "mismatched_ref_logp": ref}
        loss, _ = make("kto", beta=1.0)(Batch(logp=logp, ref_logp=ref, label=label, weight=weight[:, None], **moved))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert theta[0] < theta[1] < theta[2]


def test_the_weights_are_checked():
    with pytest.raises(UsageError, match="beta must be positive"):
        make("kto", beta=0.0)


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"p{i}", "completion": "ab" if i % 2 else "XYZ", "label": bool(i % 2)} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def trainer(toy, labels, **settings):
    small = {"max_tokens": 8, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 4, "threads": 1}
    return Trainer("kto", model=toy, data=str(labels), **{**small, **settings})


def test_trained_it_tells_good_from_bad(toy, labels):
    with trainer(toy, labels, steps=25, optimizer={"lr": 1e-3}) as training:
        rows = training.train().rows
    assert rows[0]["eval/loss"] == pytest.approx(0.5, abs=1e-3), "at the reference"
    assert rows[-1]["eval/loss"] < 0.48
    assert rows[-1]["eval/labels/accuracy"] == 1.0


def test_mismatched_columns_are_the_log_probs_after_the_next_prompt(toy, labels, monkeypatch):
    seen, point = [], ReferencePoint.__call__
    monkeypatch.setattr(ReferencePoint, "__call__", lambda part, batch: seen.append(batch) or point(part, batch))
    with trainer(toy, labels, steps=3, optimizer={"lr": 1e-2}) as training:
        training.train()
        updater, parts = training.updater, training.parts
        policy, first = parts.actors.policy, LanguagePolicy.load(toy)
        found, _ = training.collector.collect({"cursor": 0}, prompts=3, sampling=None, key=())
        updater.measure(found.rollouts, found.batch, {}, ())
    for row, after in ((0, 1), (1, 2), (2, 0)):
        length = int(found.rollouts.length[row])
        prompt, completion = found.rollouts.prompts[after], found.rollouts.tokens[row, :length].tolist()
        for column, model in (("mismatched_logp", policy.model), ("mismatched_ref_logp", first.model)):
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logits.gather(1, torch.tensor(completion)[:, None])[:, 0].detach()
            torch.testing.assert_close(getattr(seen[-1], column)[row, :length], expected, rtol=1e-4, atol=1e-5)


def test_one_prompt_per_step_is_refused(toy, labels):
    with (
        pytest.raises(UsageError, match="Set prompts_per_step"),
        trainer(toy, labels, steps=1, prompts_per_step=1) as one,
    ):
        one.train()


def test_online_a_completion_is_desirable_by_its_reward():
    batch = batch_of([[1, 0.5, 0.6], [0, 0, 2]], seed=3)
    online = make("kto@online")
    labelled = batch.replace(label=torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).double())
    for one, other in zip(
        value_and_gradient(online, online.prepare(batch.replace(label=None))),
        value_and_gradient(make("kto"), make("kto").prepare(labelled)),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert "label" not in online.needs
    assert make("kto@online", above=0.9).weight[0].above == 0.9


def test_its_objective_reads_as_what_it_is():
    lines = make("kto@online").objective()
    assert lines[0].startswith("loss = mean over sequences of [ 1.0 (1 - sigma(0.1 (s - z0)))"), "no weight, no ratio"
    assert lines[1:] == [
        "  label = 1 where reward > 0.5, else 0",
        "  z0 = max(0, mean over rows of the sum of mismatched_logp - mismatched_ref_logp)",
    ]
