import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.exact import ExactLab

LABS = [ExactLab(2, 3), ExactLab(3, 2, eos=0), ExactLab(3, 3, eos=1, seed=4), ExactLab(3, 4)]


def chain_rule(lab, theta, word):
    """Log-prob of a sequence, one prefix at a time, in NumPy."""
    total = 0.0
    for t, token in enumerate(word):
        row = theta[lab.prefixes.index(word[:t])].numpy()
        total += row[token] - np.log(np.exp(row).sum())
    return total


@pytest.mark.parametrize("lab", LABS, ids=str)
def test_sequences_are_all_there_once_and_their_probabilities_are_the_chain_rule(lab):
    raw = itertools.product(range(lab.vocabulary), repeat=lab.horizon)
    cut = {word[: word.index(lab.eos) + 1] if lab.eos in word else word for word in raw}
    assert lab.words == sorted(cut)
    assert [tuple(row[keep].tolist()) for row, keep in zip(lab.sequences, lab.mask, strict=True)] == lab.words
    expected = [chain_rule(lab, lab.theta, word) for word in lab.words]
    np.testing.assert_allclose(lab.logp(lab.theta).sum(1).numpy(), expected, atol=1e-12)
    assert math.isclose(float(lab.probability(lab.theta).sum()), 1.0, rel_tol=1e-12)


def test_default_size_is_the_designs():
    assert len(ExactLab().words) == 81
    assert ExactLab().theta.shape == (1 + 3 + 9 + 27, 3)


@pytest.mark.parametrize("lab", LABS, ids=str)
@pytest.mark.parametrize("truth", ["expected_reward", "entropy"])
def test_gradient_equals_finite_differences(lab, truth):
    function, step = getattr(lab, truth), 1e-5
    gradient = lab.gradient(lab.theta, function)
    for place in [(0, 0), (1, 1), (len(lab.prefixes) - 1, lab.vocabulary - 1)]:
        nudge = torch.zeros_like(lab.theta)
        nudge[place] = step
        slope = (function(lab.theta + nudge) - function(lab.theta - nudge)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(float(slope), abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100))
def test_identities_of_entropy_kl_and_value(seed):
    lab = ExactLab(3, 3, eos=2, seed=seed)
    theta, ref = lab.theta, lab.theta.flip(1)
    probability = lab.probability(theta)
    uniform = torch.zeros_like(theta)
    assert float(lab.kl(theta, theta)) == pytest.approx(0, abs=1e-12)
    assert float(lab.kl(theta, ref)) > 0
    # With a uniform reference, KL is the expected length times log V, less the entropy.
    expected_length = probability @ lab.mask.sum(1).double()
    assert float(lab.kl(theta, uniform)) == pytest.approx(float(expected_length * math.log(3) - lab.entropy(theta)))
    value = lab.value(theta)
    assert value[:, 0].numpy() == pytest.approx(float(lab.expected_reward(theta)))
    # The value before the last token is the mean reward over what may follow that prefix.
    row = next(i for i, word in enumerate(lab.words) if len(word) == 3)
    siblings = [i for i, word in enumerate(lab.words) if word[:2] == lab.words[row][:2]]
    share = probability[siblings] / probability[siblings].sum()
    assert float(value[row, 2]) == pytest.approx(float(share @ lab.rewards[siblings]))


def test_a_reward_function_sees_the_tokens_and_a_tensor_is_taken_as_it_is():
    lab = ExactLab(2, 2, eos=0, reward=lambda tokens: len(tokens) + 10 * tokens[-1])
    assert lab.words == [(0,), (1, 0), (1, 1)]
    assert lab.rewards.tolist() == [1, 2, 12]
    assert ExactLab(2, 2, eos=0, reward=torch.tensor([1, 2, 12])).rewards.tolist() == [1, 2, 12]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExactLab(1, 3), r"vocabulary=1.* needs vocabulary >= 2"),
        (lambda: ExactLab(3, 3, eos=3), r"eos=3.* not a token of 0\.\.2"),
        (lambda: ExactLab(10, 6), r"more than 100000 sequences.* smaller vocabulary"),
        (lambda: ExactLab(2, 2, reward=torch.ones(3)).rewards, r"shape \[3\]; it must be \[4\]"),
        (lambda: ExactLab(2, 2, reward=lambda tokens: math.nan).rewards, r"one finite number per sequence"),
        (lambda: ExactLab(2, 2).logp(torch.zeros(2, 2)), r"theta has shape \[2, 2\]; it must be \[3, 2\]"),
    ],
)
def test_errors_name_the_remedy(build, message):
    with pytest.raises(UsageError, match=message):
        build()
