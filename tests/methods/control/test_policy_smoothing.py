"""Policy smoothing is PPO on noisy observations. Its certificates: tests/diagnostics/test_smoothing.py."""

from upslope import make
from upslope.parts.steps import Steps


def test_the_noise_is_all_that_differs_from_ppo():
    recipe, ppo = make("policy_smoothing"), make("ppo")
    assert recipe.rollout == Steps(environments=4, steps=128, observation_noise=0.2)
    assert make("policy_smoothing", observation_noise=0.0).replace(name="ppo") == ppo
    assert [name for name, part in recipe.parts().items() if part != ppo.parts()[name]] == ["rollout"]
