"""Card: preference_distill_hybrid.md, suboptimal-on-policy; the study is tested in tests/diagnostics/test_bandits.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.diagnostics.modes import (
    forward_kl_gradient,
    kl,
    mass_off_support,
    modes,
    modes_covered,
    reverse_kl_gradient,
)
from upslope.exact import ExactLab

S, T = (torch.tensor(row, dtype=torch.float64) for row in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]))


def test_card_numbers():
    np.testing.assert_allclose(reverse_kl_gradient(S, T), [0.175945, -0.098118, -0.077827], atol=5e-7)
    np.testing.assert_allclose(forward_kl_gradient(S, T), [0.2, -0.1, -0.1], atol=1e-12)
    assert (float(kl(S, T)), float(kl(T, S))) == (pytest.approx(0.085123, abs=5e-7), pytest.approx(0.092033, abs=5e-7))


@pytest.mark.parametrize("reverse", [True, False])
def test_they_are_the_gradients(reverse):
    target = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    s = logits.softmax(-1)
    (kl(s, target) if reverse else kl(target, s)).sum().backward()
    given = (reverse_kl_gradient if reverse else forward_kl_gradient)(s.detach(), target)
    torch.testing.assert_close(logits.grad, given)


@pytest.mark.parametrize(("name", "gradient"), [("opd", reverse_kl_gradient), ("seqkd", forward_kl_gradient)])
def test_what_recipes_follow(name, gradient):
    coin = ExactLab(vocabulary=3, horizon=1)
    s, t = S.log()[None], T.log()[None]
    old = t if name == "seqkd" else s
    found = coin.estimate(name, group_size=1, theta=s, old=old, columns={"teacher_logp": coin.logp(t)})
    torch.testing.assert_close(-found.mean[0], gradient(S, T))


def test_metrics():
    target = torch.tensor([0.0, 0.3, 0.1, 0.1, 0.3, 0.3, 0.0, 0.2]).double()
    assert modes(target).tolist() == [1, 4, 7]
    policy = torch.tensor([0.2, 0.5, 0.0, 0.0, 0.02, 0.08, 0.1, 0.1]).double()
    assert float(mass_off_support(policy, target)) == pytest.approx(0.3)
    assert modes_covered(policy, target) == 2
    assert modes_covered(policy, target, share=0.05) == 3


PLACES = torch.arange(60).double()


def bell(center, width):
    return (-0.5 * ((PLACES - center) / width) ** 2).log_softmax(0)


def fitted(name):
    """A single bell fitted to two bells by a recipe's exact mean gradient: all places as rows, by their probability."""
    target = (0.6 * bell(18.0, 3.0).exp() + 0.4 * bell(42.0, 3.0).exp()).log()
    center, log_width = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (21.0, 1.0))
    optimizer = torch.optim.Adam([center, log_width], lr=0.1)
    for _ in range(150):
        logp = bell(center, log_width.exp())
        chance = target.exp() if name == "seqkd" else logp.detach().exp()
        columns = {"old_logp": logp.detach()[:, None], "teacher_logp": target[:, None]}
        batch = Batch(logp=logp[:, None], weight=60 * chance[:, None], **columns)
        optimizer.zero_grad()
        make(name)(batch)[0].backward()
        optimizer.step()
    return bell(center.detach(), log_width.detach().exp()).exp(), target.exp()


def test_on_policy_distillation_seeks_a_mode_and_likelihood_covers_both():
    seeks, target = fitted("opd")
    covers, _ = fitted("seqkd")
    assert (modes_covered(seeks, target), modes_covered(covers, target)) == (1, 2)
    assert float(mass_off_support(seeks, target)) < 0.01 < 0.2 < float(mass_off_support(covers, target))
    assert int(seeks.argmax()) == 18
