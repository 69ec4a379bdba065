"""Card: preference_distill_hybrid.md, gkd; line 8 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.parts.distill import TeacherDivergence, generalized_jsd, top_k_kl
from upslope.testing import batch_of, value_and_gradient

S, T = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])


def divergence(beta, logits=None, **settings):
    policy = torch.tensor(np.log(S)) if logits is None else logits.log_softmax(-1)
    compare = TeacherDivergence(beta=beta, **settings).compares()["divergence"]
    return compare(policy.unsqueeze(0), torch.tensor(np.log(T)).unsqueeze(0))[0]


@pytest.mark.parametrize(
    ("beta", "value"), [(0.1, 0.008185), (0.5, 0.021901), (0.9, 0.007695), (1, 0.085123), (0, 0.092033)]
)
def test_card_numbers(beta, value):
    assert float(divergence(beta)) == pytest.approx(value, abs=5e-7)


def test_a_small_beta_is_the_forward_kl_times_beta():
    assert float(divergence(1e-4)) / 1e-4 == pytest.approx(float(divergence(0)), rel=1e-3)


@pytest.mark.parametrize(("beta", "expected"), [(0, S - T), (1, [0.175945, -0.098118, -0.077827])])
def test_gradients_at_the_ends_are_those_of_word_level_distillation_and_of_opd_in_the_mean(beta, expected):
    logits = torch.tensor(np.log(S), requires_grad=True)
    divergence(beta, logits).backward()
    np.testing.assert_allclose(logits.grad, expected, atol=5e-7)


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_trl(beta, temperature):
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(3, 5, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 5, generator=generator) < 0.7
    labels, found = torch.where(mask, 1, -100), []
    for loss_of in (
        lambda x: trainer.generalized_jsd_loss(x, theirs, labels=labels, beta=beta, temperature=temperature),
        lambda x: _ours(x, theirs, mask, beta, temperature),
    ):
        logits = ours.clone().requires_grad_()
        loss = loss_of(logits)
        found.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    torch.testing.assert_close(*found)


def _ours(logits, teacher, mask, beta, temperature):
    """The loss of the recipe, from logits."""
    recipe = make("gkd", beta=beta, **{"surrogate.temperature": temperature})
    compare = recipe.surrogate.compares()["divergence"]
    column = compare(logits.log_softmax(-1).flatten(0, 1), teacher.log_softmax(-1).flatten(0, 1)).view(3, 5)
    batch = batch_of([[1.0, 1.0, 1.0]], lengths=[5, 5, 5])
    prepared = recipe.prepare(batch.only(frozenset({"divergence"})).replace(mask=mask, divergence=column.detach()))
    return recipe.loss(prepared.replace(divergence=column))[0]


def test_words_that_a_model_excludes():
    policy, teacher = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert generalized_jsd(policy, teacher, 1.0).item() == pytest.approx(0.5 * np.log(2))
    assert generalized_jsd(policy, teacher, 0.5).isfinite()
    assert generalized_jsd(policy, teacher, 0.0).isinf()


def test_on_the_most_likely_words_of_the_policy():
    policy, teacher = torch.tensor(np.log([S])), torch.tensor(np.log([T]))
    assert top_k_kl(policy, teacher, 2).item() == pytest.approx(0.053814, abs=5e-7)
    torch.testing.assert_close(top_k_kl(policy, teacher, 9), generalized_jsd(policy, teacher, 1.0))


def test_nothing_of_it_depends_on_the_sampled_token():
    batch = batch_of([[1, 0], [0, 0, 1]])
    recipe = make("gkd")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(batch.divergence[batch.mask].mean().item())
    assert not gradient.any()


def test_wrong_beta():
    with pytest.raises(UsageError, match=r"TeacherDivergence\(beta=1.5"):
        make("gkd", beta=1.5)


def test_it_approaches_its_teacher(toy, questions, tmp_path):
    from upslope.policies.language import LanguagePolicy

    teacher = LanguagePolicy.load(toy)
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight.mul_(8.0)
    teacher.save(tmp_path)
    small = {"max_tokens": 6, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 4, "threads": 1, "steps": 12}
    with Trainer(
        "gkd", model=toy, teacher=str(tmp_path), data=str(questions), reward="exact", optimizer={"lr": 3e-3}, **small
    ) as trainer:
        rows = trainer.train().rows
    assert rows[-1]["teacher/divergence"] < 0.9 * rows[1]["teacher/divergence"]
