"""NPG, card npg-trpo: its loss, and a whole update against the explicit Fisher matrix. The step: tests/control/test_natural.py."""

import numpy as np
import torch

from upslope import Batch, Trainer, make
from upslope.testing import value_and_gradient


def test_loss_in_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    logp, advantage = (torch.randn(6, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    recipe = make("npg")
    loss, gradient = value_and_gradient(
        recipe, recipe.denominators(Batch(logp=logp, old_logp=logp, advantage=advantage))
    )
    np.testing.assert_allclose(float(loss), -float((advantage * logp).mean()))
    np.testing.assert_allclose(gradient, -advantage / 6)


def test_an_update_is_the_explicit_fisher_matrixs():
    """theta + sqrt(2 max_kl / x^T F x) x with F x = g, F the mean over states of sum_a pi(a|s) score score^T, and the damping."""
    settings = {"hidden": [3], "damping": 0.1, "iterations": 200, "tolerance": 0.0, "max_kl": 0.01, "policy_gain": 1.0}
    with Trainer("npg", task="CartPole-v1", steps=1, threads=1, eval={"episodes": 0}, **settings,
                 **{"rollout.environments": 2, "rollout.steps": 16}) as trainer:  # fmt: skip
        parts = trainer.parts
        found = parts.updater.play(parts.player, (0, 1))
        advantage = parts.recipe.credit(found.batch, parts.states)[0].advantage.reshape(-1)
        advantage = (advantage - advantage.mean()) / advantage.std()
        seen, done = found.played.observation.reshape(-1, 4), found.played.action.reshape(-1)
        parameters = list(parts.policy.parameters())

        def flat(value):
            pieces = torch.autograd.grad(value, parameters, retain_graph=True)
            return torch.cat([piece.reshape(-1) for piece in pieces]).double()

        logp = parts.policy.distribution(seen).logits.log_softmax(-1)
        gradient = flat((advantage * logp[torch.arange(len(seen)), done]).mean())
        fisher = 0.1 * torch.eye(len(gradient), dtype=torch.float64)
        for row, chances in zip(logp, logp.exp().detach(), strict=True):
            for one, chance in zip(row, chances, strict=True):
                score = flat(one)
                fisher += chance.double() / len(seen) * torch.outer(score, score)
        x = torch.linalg.solve(fisher, gradient)
        before = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        expected = before + (0.02 / (x @ gradient)).sqrt() * x
        parts.updater.update(found.played, found.batch, parts.states, (0, 1))
        after = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    torch.testing.assert_close(after - before, (expected - before).float(), rtol=1e-3, atol=1e-5)
