"""Card: rlvr_core.md, kl-estimators: values and gradients of the estimators, on three logits and on a tree of two tokens."""

import numpy as np
import pytest
import torch

from upslope import Batch, Recipe, UsageError
from upslope.parts.aggregate import SequenceSum
from upslope.parts.gae import return_to_go
from upslope.parts.kl import KL, KLInReward, kl_estimate
from upslope.parts.surrogate import PolicyGradient
from upslope.recipe import Part

POLICY, REFERENCE = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
TREE = torch.tensor([[0.3, -0.2], [0.8, -0.5], [-0.4, 0.1]], dtype=torch.float64)  # root, after token 0, after token 1
TREE_REFERENCE = torch.tensor([[0.0, 0], [0, 0], [0.2, -0.2]], dtype=torch.float64)


def expected_gradient(estimator, ratio_weighted=False):
    """Of the loss on samples of the policy, with respect to its logits: sum over tokens of p(token) * gradient."""
    logits = torch.tensor(np.log(POLICY), requires_grad=True)
    logp = logits.log_softmax(0)
    loss = kl_estimate(logp, torch.tensor(np.log(REFERENCE)), estimator)
    if ratio_weighted:
        loss = (logp - logp.detach()).exp() * loss
    return torch.autograd.grad((torch.tensor(POLICY) * loss).sum(), logits)[0].numpy()


@pytest.mark.parametrize(("estimator", "mean"), [("k1", 0.025267), ("k2", 0.024862), ("k3", 0.025267)])
def test_values(estimator, mean):
    values = kl_estimate(torch.tensor(np.log(POLICY)), torch.tensor(np.log(REFERENCE)), estimator).numpy()
    assert POLICY @ values == pytest.approx(mean, abs=5e-7)
    if estimator == "k3":
        np.testing.assert_allclose(values, [0.023144, 0.045651, 0], atol=5e-7)


TRUE = [0.098938, -0.093885, -0.005053]


@pytest.mark.parametrize(
    ("estimator", "ratio_weighted", "gradient"),
    [
        ("k1", False, [0, 0, 0]),
        ("k2", False, TRUE),
        ("k3", False, POLICY - REFERENCE),
        ("k3_value_k2_gradient", False, TRUE),
        ("k1", True, TRUE),
        ("k3", True, TRUE),
    ],
)
def test_gradients_on_three_logits(estimator, ratio_weighted, gradient):
    np.testing.assert_allclose(expected_gradient(estimator, ratio_weighted), gradient, atol=1e-6)


def test_straight_through_has_the_value_of_k3():
    logp, ref_logp = torch.tensor(np.log(POLICY)), torch.tensor(np.log(REFERENCE))
    torch.testing.assert_close(kl_estimate(logp, ref_logp, "k3_value_k2_gradient"), kl_estimate(logp, ref_logp, "k3"))


def tree_batch(logits):
    """The four sequences of the tree: their log-probs by token [4, 2], and their probabilities."""
    first, second = logits[0].log_softmax(0), logits[1:].log_softmax(1)
    logp = torch.stack([torch.stack([first[a], second[a, b]]) for a in (0, 1) for b in (0, 1)])
    return logp, logp.detach().sum(1).exp()


def tree_gradient(recipe, **columns):
    """Of the recipe's expected loss with respect to the six logits: every sequence is a batch of its own."""
    logits = TREE.clone().requires_grad_()
    logp, probability = tree_batch(logits)
    reference = tree_batch(TREE_REFERENCE)[0]
    total = 0
    for row in range(4):
        one = slice(row, row + 1)
        batch = Batch(logp=logp[one], old_logp=logp[one].detach(), ref_logp=reference[one], reward=[0.0], **columns)
        total = total + probability[row] * recipe(batch)[0]
    return torch.autograd.grad(total, logits)[0].flatten().numpy()


SEQUENCE_KL_GRADIENT = [0.135027, -0.135027, 0.136187, -0.136187, -0.079851, 0.079851]


class Nothing(Part):
    def __call__(self, batch):
        return 0 * batch.logp


class Return(Part):
    def __call__(self, batch):
        return return_to_go(batch, 1.0)


def in_loss(estimator, ratio_weighted=False):
    return Recipe(Nothing(), SequenceSum(), regularizer=KL(1.0, estimator, ratio_weighted))


def test_tree_true_gradient():
    logits = TREE.clone().requires_grad_()
    logp, _ = tree_batch(logits)
    sequence = logp.sum(1)
    kl = (sequence.exp() * (sequence - tree_batch(TREE_REFERENCE)[0].sum(1))).sum()
    assert float(kl.detach()) == pytest.approx(0.175870, abs=5e-7)
    np.testing.assert_allclose(torch.autograd.grad(kl, logits)[0].flatten(), SEQUENCE_KL_GRADIENT, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_tree_k1_in_the_reward_is_the_gradient_of_the_sequence_kl(level):
    recipe = Recipe(PolicyGradient(), SequenceSum(), reward=KLInReward(1.0, level), advantage=Return())
    np.testing.assert_allclose(tree_gradient(recipe), SEQUENCE_KL_GRADIENT, atol=1e-6)


def test_tree_in_the_loss_is_not():
    k2, k3 = tree_gradient(in_loss("k2")), tree_gradient(in_loss("k3"))
    assert k2[0] == pytest.approx(0.117502, abs=1e-6)
    np.testing.assert_allclose(k3[::2], [0.122459, 0.177921, -0.083492], atol=1e-6)
    np.testing.assert_allclose(tree_gradient(in_loss("k1", ratio_weighted=True)), k2, atol=1e-12)


def test_k1_in_the_loss_is_refused_without_the_ratio():
    with pytest.raises(UsageError, match="no gradient in expectation"):
        KL(estimator="k1")


def test_kl_in_reward_by_token_stands_at_the_last_trained_token():
    batch = Batch(
        logp=torch.zeros(2, 3),
        mask=torch.tensor([[1, 1, 0], [1, 0, 1]]),
        old_logp=torch.tensor([[0.0, 1, 9], [2, 9, 0]]),
        ref_logp=torch.zeros(2, 3),
        reward=torch.tensor([5.0, 7]),
    )
    assert KLInReward(0.5, "token")(batch).tolist() == [[0.0, 4.5, 0.0], [-1.0, 0.0, 7.0]]
    assert KLInReward(0.5, "sequence")(batch).tolist() == [4.5, 6.0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_in_the_reward_each_estimator_is_taken_off(estimator):
    u = np.array([[0.7, -0.4], [0.1, 0.0]])
    zero, reward = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    batch = Batch(logp=zero, old_logp=torch.tensor(u), ref_logp=zero, reward=reward)
    k = {"k1": u, "k2": u**2 / 2, "k3": np.exp(-u) - 1 + u}[estimator]
    np.testing.assert_allclose(KLInReward(0.5, "sequence", estimator)(batch), [1.0, 2.0] - 0.5 * k.sum(1))
    np.testing.assert_allclose(KLInReward(0.5, "token", estimator)(batch), [[0.0, 1.0], [0.0, 2.0]] - 0.5 * k)
