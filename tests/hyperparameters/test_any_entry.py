"""Whatever stands in an entry: settings that make a recipe, or an error that names the file."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import UsageError, make
from upslope.hyperparameters import read_hyperparameters

NAMES = """
    n_envs n_steps n_timesteps batch_size n_epochs gamma gae_lambda learning_rate clip_range clip_range_vf ent_coef vf_coef
    max_grad_norm target_kl normalize normalize_advantage use_rms_prop rms_prop_eps policy policy_kwargs env_wrapper frame_stack
    use_sde sde_sample_freq train_freq gradient_steps tau buffer_size learning_starts noise_type noise_std policy_delay
    target_update_interval target_entropy target_policy_noise target_noise_clip replay_buffer_class replay_buffer_kwargs callback
""".split()  # noqa: SIM905
USUAL = st.sampled_from(
    [
        0, 1, 2, 8, 64, 1000, -1, 0.0, 0.1, 0.5, 0.99, 1e6, True, False, None, "auto", "auto_0.1", "lin_0.001", "lin_", "1e-3",
        "MlpPolicy", "normal", "", [1, "episode"], [4, "step"], [], {}, "dict(net_arch=[8])", "dict(net_arch=dict(pi=[8], qf=[8]))",
        "dict(activation_fn=nn.ReLU)", "dict(log_std_init='x')", "dict(optimizer_kwargs=dict(eps='x'))", "dict(n_critics=0)",
        {"norm_obs": False}, {"norm_obs": "x"}, {"clip_obs": "x"}, [{"a.TimeLimit": {"max_episode_steps": 5}}], [[]], [{}],
    ]
)  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.dictionaries(st.sampled_from(NAMES), USUAL | ANY, max_size=5)


@pytest.mark.parametrize("method", ["ppo", "a2c", "trpo", "sac", "td3"])
@settings(max_examples=150, deadline=None)
@given(entry=ENTRY)
def test_settings_or_a_clear_error(method, entry):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file.yml")
        file.write_text(yaml.safe_dump({"Some-v0": entry}))
        try:
            found = read_hyperparameters(str(file), method, "Some-v0")
            recipe = make(found.method, **found.settings)
        except UsageError:
            return
    assert recipe.name == found.method
    assert found.steps is None or found.steps >= 1
    yaml.safe_dump(found.settings)  # config.yaml holds them
