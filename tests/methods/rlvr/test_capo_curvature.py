"""Card: rlvr_core.md, capo-curvature."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.collect import first_batch, seeded
from upslope.config import OptimizerConfig
from upslope.engines.local import LocalEngine
from upslope.learner import AdamStep, Learner
from upslope.methods.rlvr.capo_curvature import CurvatureRejection, predicted_changes
from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import LoraSettings
from upslope.rollout import Example, Outcome, Sampling
from upslope.testing import batch_of, finite_differences, value_and_gradient
from upslope.update import Actors, Updater

M, K, H, LR, BETAS, EPS = 6, 5, 3, 0.05, (0.9, 0.99), 1e-8
rng = np.random.default_rng(0)
WEIGHT, STATES = rng.normal(size=(K, H)), rng.normal(size=(M, H))
CHOSEN, ADVANTAGE = rng.integers(0, K, M), np.array([1.0, -1.0, 0.5, -0.3, 2.0, -2.0])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def adam(taken, seed=1):
    """Moments of the loss's gradient, and the ascent direction that they and a token's own ascent gradient g give."""
    noise = np.random.default_rng(seed)
    m, s = (0.3 * noise.normal(size=(K, H)), 0.2 * noise.random((K, H))) if taken else (np.zeros((K, H)),) * 2

    def direction(g):
        mean = (BETAS[0] * -m + (1 - BETAS[0]) * g) / (1 - BETAS[0] ** (taken + 1))
        square = (BETAS[1] * s + (1 - BETAS[1]) * g**2) / (1 - BETAS[1] ** (taken + 1))
        return mean / (np.sqrt(square) + EPS)

    return AdamStep(torch.tensor(m), torch.tensor(s), taken, LR, BETAS, EPS), direction


def found(step, words=None):
    """(gain, shift) of the six tokens, over all words or the given ones [M, K]."""
    ids = np.tile(np.arange(K), (M, 1)) if words is None else words
    probability = np.take_along_axis(softmax(STATES @ WEIGHT.T), ids, 1)
    arrays = (STATES, probability, ids == CHOSEN[:, None], ADVANTAGE, ids)
    return [column.numpy() for column in predicted_changes(*(torch.tensor(a) for a in arrays), step)]


@pytest.mark.parametrize("taken", [0, 7])
def test_card_identity_by_finite_differences(taken):
    """The derivatives of J(W + t D) = A pi(a) / pi_old(a) at t = 0 are A v'u and A ((v'u)^2 - u'F u)."""
    step, direction = adam(taken)
    gain, shift = found(step)
    for i in range(M):
        pi = softmax(STATES[i] @ WEIGHT.T)
        g = ADVANTAGE[i] * np.outer(np.eye(K)[CHOSEN[i]] - pi, STATES[i])
        d = direction(g)

        def objective(t, i=i, d=d, pi=pi):
            return ADVANTAGE[i] * softmax((WEIGHT + t * d) @ STATES[i])[CHOSEN[i]] / pi[CHOSEN[i]]

        h = 1e-4
        first = (objective(h) - objective(-h)) / (2 * h)
        second = (objective(h) - 2 * objective(0) + objective(-h)) / h**2
        assert first == pytest.approx((g * d).sum(), rel=1e-6)
        assert gain[i] == pytest.approx(LR * first + LR**2 / 2 * second, rel=1e-5, abs=1e-8)
        assert shift[i] == pytest.approx((LR * first / ADVANTAGE[i]) ** 2 / 2, rel=1e-6)


def test_the_mean_shift_over_words_is_the_kl():
    """Of a small step u of the logits, to second order."""
    pi, u = softmax(rng.normal(size=K)), 1e-3 * rng.normal(size=K)
    kl = (pi * np.log(pi / softmax(np.log(pi) + u))).sum()
    assert (pi * ((np.eye(K) - pi) @ u) ** 2).sum() / 2 == pytest.approx(kl, rel=1e-2)


def measured(part, step, advantage=ADVANTAGE):
    """`measure` on a batch of two rows of three tokens, with the part's own number of top words."""
    log_probs = torch.tensor(np.log(softmax(STATES @ WEIGHT.T))).view(2, 3, K)
    top = log_probs.topk(min(part.words or K, K))
    tokens = torch.tensor(CHOSEN).view(2, 3)
    logp = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    batch = Batch(
        logp=logp, advantage=torch.tensor(advantage).view(2, 3), tokens=tokens, hidden=torch.tensor(STATES).view(2, 3, H),
        top_logp=top.values, top_ids=top.indices,
    )  # fmt: skip
    made = part.measure(batch, step)
    return [made[name].flatten().numpy() for name in ("predicted_gain", "predicted_shift")]


@pytest.mark.parametrize("words", [None, K])
def test_all_words_are_exact(monkeypatch, words):
    monkeypatch.setattr("upslope.methods.rlvr.capo_curvature.ENTRIES", {"cpu": 2 * K * H})  # two tokens at once
    step, _ = adam(3)
    np.testing.assert_allclose(measured(CurvatureRejection(words=words), step), found(step))


def test_top_words_and_the_chosen_one():
    step, _ = adam(3)
    words = np.argsort(-softmax(STATES @ WEIGHT.T), 1)[:, :2]
    outside = ~(words == CHOSEN[:, None]).any(1)
    assert 0 < outside.sum() < M
    words[outside, 1] = CHOSEN[outside]
    np.testing.assert_allclose(measured(CurvatureRejection(words=2), step), found(step, words))


def test_tokens_without_advantage_are_not_measured():
    gain, shift = measured(CurvatureRejection(), adam(3)[0], np.zeros(M))
    assert not gain.any()
    assert not shift.any()


@pytest.mark.parametrize("words", [50, None])
def test_on_a_policy_the_split_does_not_matter(toy, words):
    """Three updates on the same rollouts, in one pass and in one per prompt: what is rejected, the loss and the weights."""
    recipe = make("capo_curvature", words=words, max_gain=1.3e-2, max_shift=1.0)
    policy = LanguagePolicy.load(toy)
    prompts = [policy.encode("ab"), policy.encode("c")]
    rollouts = LocalEngine(policy).generate(prompts, [4, 4], Sampling(6), seeded("capo"))
    examples = [Example(str(prompt), "") for prompt in rollouts.prompt.tolist()]
    batch = first_batch(rollouts, [Outcome(float(row % 3 == 0), {}) for row in range(8)], examples)
    start, ends, metrics = [p.detach().clone() for p in policy.parameters()], [], []
    for size in (10_000, 1):
        with torch.no_grad():
            for p, old in zip(policy.parameters(), start, strict=True):
                p.copy_(old)
        learner = Learner(policy.parameters(), 1e-3, OptimizerConfig(), 10)
        updater = Updater(recipe, Actors(policy, learner), tokens_per_pass=size, recompute_old_logp=False)
        metrics.append([updater.update(rollouts, batch, recipe.init(), ("key",))[0].metrics for _ in range(3)])
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-5)
    for one, other in zip(*metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-5)
        assert 0 < one["curvature/rejected"] < 1


def test_adapters_are_refused(toy):
    policy = LanguagePolicy.load(toy, lora=LoraSettings(rank=2))
    learner = Learner(policy.parameters(), 1e-3, OptimizerConfig(), 10)
    with pytest.raises(UsageError, match="adapters leave the output layer alone"):
        learner.next_step(policy.model.get_output_embeddings().weight)


GAIN = [[0.005, 0.02, -0.02], [-0.005, 0.0, 0.009], [0.02, 0.02, 0.02]]
SHIFT = [[5e-5, 5e-5, 5e-5], [2e-4, 5e-5, 1e-4], [0, 0, 0]]


def batch_with(gain=GAIN, shift=SHIFT):
    numbers = {name: torch.tensor(column, dtype=torch.float64) for name, column in (("gain", gain), ("shift", shift))}
    return batch_of(
        [[1.0, 0.0, 0.4]], lengths=[3, 3, 3], predicted_gain=numbers["gain"], predicted_shift=numbers["shift"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [[1, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ({"max_shift": 1.0}, [[1, 0, 0], [1, 1, 1], [0, 0, 0]]),
        ({"max_gain": 1.0}, [[1, 1, 1], [0, 1, 0], [1, 1, 1]]),
        ({"max_shift": 1.0, "one_sided": True}, [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
    ],
)
def test_value_and_gradient_over_kept_tokens(settings, kept):
    recipe, kept = make("capo_curvature", **settings), np.array(kept)
    batch = batch_with()
    batch = batch.replace(old_logp=batch.logp + 0.05 * batch.entropy)
    reward, old = batch.reward.numpy(), batch.old_logp.numpy()

    def numpy_loss(logp):
        a, ratio = (reward - reward.mean())[:, None], np.exp(logp - old)
        losses = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))
        return ((losses * kept).sum(1) / np.maximum(kept.sum(1), 1)).mean()

    prepared = recipe.prepare(batch)
    loss, gradient = value_and_gradient(recipe, prepared)
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()), atol=1e-8)
    assert float(recipe.loss(prepared)[1]["curvature/rejected"]) == pytest.approx(1 - kept.mean())


def test_sums_are_not_rescaled():
    recipe = make("capo_curvature", aggregate="dr_grpo", mean_over_kept=False)
    weight = recipe.prepare(batch_with()).weight
    assert weight.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_without_bounds_it_is_grpo_and_with_the_narrowest_nothing():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    wide, base = (
        make("capo_curvature", max_gain=float("inf"), max_shift=float("inf")),
        make("grpo", scale=None, regularizer=None),
    )
    results = [value_and_gradient(recipe, recipe.prepare(batch)) for recipe in (wide, base)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    narrow = make("capo_curvature", max_gain=1e-12)
    assert not value_and_gradient(narrow, narrow.prepare(batch))[1].any()


@pytest.mark.parametrize("settings", [{"max_gain": 0.0}, {"max_shift": -1.0}, {"words": 0}])
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(UsageError, match=rf"CurvatureRejection.{next(iter(settings))} is "):
        make("capo_curvature", **settings)
