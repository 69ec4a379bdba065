"""Card: rlvr_core.md, spo-single-stream. Draw by weight: tests/test_collect_parts.py; resuming: tests/test_trainer.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.collect import Collector
from upslope.engines.local import LocalEngine
from upslope.methods.rlvr.spo_single_stream import PromptTracker, expected
from upslope.policies.language import LanguagePolicy
from upslope.prompts import PromptStream
from upslope.rollout import Example, Outcome, Rollouts, Sampling, Visit
from upslope.runs.state import pack, unpack
from upslope.testing import batch_of, finite_differences, value_and_gradient


def visit(keys, rewards, *, drift=0.0, places=None, valid=None, scored=None):
    """One-completion groups of two tokens, the later row's log-probs being -1, -2; the policy has moved by `drift`."""
    rows = len(keys)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    logp = torch.tensor([[-1.0, -2.0]]).expand(rows, 2)
    rollouts = Rollouts(
        [[5, 6]] * rows, torch.arange(rows), torch.arange(rows).unsqueeze(1).expand(rows, 2), mask, mask.sum(1), logp, logp,
        ["stop"] * rows, [""] * rows,
    )  # fmt: skip
    batch = batch_of([[reward] for reward in rewards], lengths=[2] * rows)
    batch = batch if valid is None else batch.replace(valid=torch.tensor(valid))

    def score(last):
        if scored is not None:
            scored.append(last)
        return last.logp + torch.tensor([[drift, -drift]])

    return Visit(rollouts, batch, keys, places or {}, score)


def tracker(state, key="a"):
    return state["trackers"][key]["alpha"], state["trackers"][key]["beta"]


def test_card_first_look():
    part = PromptTracker(first_look=8)
    state = part.init()
    assert part.scout(["a", "b"], state) == [8, 8]
    state = part.scouted(["a"], [[1, 1, 1, 0, 1, 1, 0, 1]], state)
    np.testing.assert_allclose(tracker(state), [5.7778, 2.2222], atol=5e-5)
    assert expected(state["trackers"]["a"]) == pytest.approx(0.7222, abs=5e-5)
    assert part.scout(["a", "b"], state) == [0, 8]
    assert PromptTracker().scout(["a"], part.init()) == [0]


def test_card_update():
    part = PromptTracker(first_look=8)
    state = part.scouted(["a"], [[1, 1, 1, 0, 1, 1, 0, 1]], part.init())
    state["trackers"]["a"] |= {"tokens": torch.tensor([7, 8]), "logp": torch.tensor([-0.5, -0.25])}
    scored = []
    columns, after = part.track(visit(["a"], [1.0], drift=0.012, scored=scored), state)
    assert columns["expected_reward"].tolist() == pytest.approx([0.7222], abs=5e-5)
    np.testing.assert_allclose(tracker(after), [6.05556, 1.94444], atol=1e-5)
    assert expected(after["trackers"]["a"]) == pytest.approx(0.75694, abs=1e-5)
    assert scored[0].tokens.tolist() == [[7, 8]]
    assert scored[0].prompts[scored[0].prompt[0]] == [5, 6]
    np.testing.assert_allclose(tracker(state), [5.7778, 2.2222], atol=5e-5)


@pytest.mark.parametrize(
    ("drift", "rho"), [(0.0, 0.96), (0.006, 2**-0.1), (0.009, 2**-0.15), (0.06, 0.875), (9, 0.875)]
)
def test_forgetting_by_drift(drift, rho):
    part = PromptTracker()
    _, state = part.track(visit(["a"], [1.0]), part.init())
    np.testing.assert_allclose(tracker(state), [0.96 * 0.5 + 1, 0.96 * 0.5])
    _, after = part.track(visit(["a"], [0.0], drift=drift), state)
    np.testing.assert_allclose(tracker(after), [rho * 1.48, rho * 0.48 + 1], rtol=1e-5)


def test_memory_settles_and_no_forgetting_counts():
    for part, rho in ((PromptTracker(rho_high=0.875), 0.875), (PromptTracker(rho_low=0.9), 0.96)):
        state = part.init()
        for step in range(400):
            _, state = part.track(visit(["a"], [float(step % 2)]), state)
        assert sum(tracker(state)) == pytest.approx(1 / (1 - rho), rel=1e-4)
    part = PromptTracker(rho_high=1.0)
    state = part.init()
    for reward in (1, 0, 1, 1):
        _, state = part.track(visit(["a"], [reward]), state)
    assert tracker(state) == (3.5, 1.5)


def test_a_failed_reward_and_several_rows_of_a_prompt():
    part = PromptTracker(rho_high=0.9)
    columns, state = part.track(visit(["a", "a", "b", "c"], [1, 0, 1, 1], valid=[True, True, False, True]), part.init())
    assert columns["expected_reward"].tolist() == [0.5] * 4
    np.testing.assert_allclose(tracker(state), [0.45 + 1, 0.45 + 1])
    assert "b" not in state["trackers"]
    assert state["trackers"]["c"]["tokens"].tolist() == [3, 3]


def test_prompts_are_drawn_by_their_uncertainty_also_after_a_restart():
    part = PromptTracker(rho_high=1.0)
    _, state = part.track(visit(["a", "b"], [1, 0], places={3: "a", 0: "b"}), part.init())
    for _ in range(2):
        _, state = part.track(visit(["a"], [1], places={4: "a"}), state)
    a, b = 3.5 / 4, 0.25
    weight = np.array([b, 0.5, 0.5, a, a])
    wanted = np.sqrt(weight * (1 - weight)) + 0.05
    np.testing.assert_allclose(part.weights(5, state), wanted)
    structure, tensors = pack(state)
    np.testing.assert_allclose(part.weights(5, unpack(structure, tensors)), wanted)


def numpy_advantage(batch):
    surprise = batch.reward.numpy() - batch.expected_reward.numpy()
    return (surprise - surprise.mean()) / (surprise.std(ddof=1) + 1e-8)


def numpy_loss(batch, logp):
    mask, losses = batch.mask.numpy(), []
    for i, a in enumerate(numpy_advantage(batch)):
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        loss = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.28))
        losses += list(np.minimum(loss, -10 * a) if a < 0 else loss)
    return np.mean(losses)


def test_value_and_gradient():
    batch = batch_of([[1], [0.1], [0.7], [0.3], [0.9]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("spo_single_stream")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected_gradient = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected_gradient * batch.mask.numpy(), atol=1e-8)


def test_no_group_is_without_signal_and_equal_expectations_are_the_batchs_baseline():
    batch = batch_of([[1], [1], [0], [1]], expected_reward=torch.full((4,), 0.3).double())
    advantage = make("spo_single_stream").prepare(batch).per_row("advantage")
    np.testing.assert_allclose(advantage, [0.5, 0.5, -1.5, 0.5], atol=1e-6)
    alone = make("spo_single_stream").prepare(batch_of([[1]]))
    assert not alone.advantage.any()


def test_defaults():
    recipe = make("spo_single_stream")
    part = recipe.curriculum
    assert (part.rho_low, part.rho_high, part.half_drift, part.explore) == (0.875, 0.96, 0.06, 0.05)
    assert (recipe.rollout.group_size, recipe.update.minibatches) == (1, 8)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.surrogate.dual) == (0.8, 1.28, 10)
    assert recipe.regularizer is None


def test_on_the_engine_with_a_first_look(toy):
    policy = LanguagePolicy.load(toy)

    def score(examples, completions, ids):
        return [Outcome(float(text[:1] > "M")) for text in completions]

    made = Collector(
        engine=LocalEngine(policy), judge=SimpleNamespace(score=score), encode=policy.encode,
        stream=PromptStream([Example(f"k{i}", f"p{i}") for i in range(5)], 0), limit=80,
        recipe=make("spo_single_stream", first_look=4),
    )  # fmt: skip
    state = {"cursor": 0}
    for step in range(1, 5):
        found, state = made.collect(state, prompts=4, sampling=Sampling(4), key=(0, step))
        assert len({example.key for example in found.examples}) == 4
    trackers = state["curriculum"]["trackers"]
    assert sorted(trackers) == [f"k{i}" for i in range(5)]
    assert state["curriculum"]["places"] == {i: f"k{i}" for i in range(5)}
    assert all(0 < expected(one) < 1 for one in trackers.values())
    memory = [8.0]  # from the first look; then 0.96 n + 1 with every visit, since the policy stays as it is
    for _ in range(4):
        memory.append(0.96 * memory[-1] + 1)
    for one in trackers.values():
        assert min(abs(one["alpha"] + one["beta"] - n) for n in memory[1:]) < 1e-6


@pytest.mark.parametrize("settings", [{"rho_low": 1.0}, {"rho_low": 0.97}, {"rho_high": 1.2}, {"half_drift": 0.0}])
def test_wrong_settings(settings):
    with pytest.raises(UsageError, match="PromptTracker"):
        make("spo_single_stream", **settings)


def test_rewards_outside_the_unit_interval_are_refused():
    part = PromptTracker()
    with pytest.raises(UsageError, match=r"PromptTracker needs rewards in \[0, 1\]"):
        part.track(visit(["a"], [-1.0]), part.init())
