"""Entries as rl-baselines3-zoo writes them, read as settings; presets against the defaults of Stable-Baselines3 itself."""

import inspect

import pytest

from upslope import UsageError, make
from upslope.hyperparameters import read_hyperparameters
from upslope.parts.normalize import ScaledReward
from upslope.parts.surrogate import EntropyLoss

PPO = """
shared: &shared
  n_envs: 8
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
CartPole-v1:
  <<: *shared
  n_steps: 32
  batch_size: 256
  gae_lambda: 0.8
  gamma: 0.98
  n_epochs: 20
  ent_coef: 0.0
  learning_rate: lin_0.001
  clip_range: lin_0.2
Pendulum-v1:
  <<: *shared
  n_envs: 4
  n_steps: 1024
  gamma: 0.9
  learning_rate: !!float 1e-3
  use_sde: True
  sde_sample_freq: 4
HalfCheetah-v4: &cheetah
  normalize: true
  n_envs: 1
  n_timesteps: 1000000
  batch_size: 64
  n_steps: 512
  gamma: 0.98
  learning_rate: 2.0633e-05
  ent_coef: 0.000401762
  clip_range: 0.1
  n_epochs: 20
  gae_lambda: 0.92
  max_grad_norm: 0.8
  vf_coef: 0.58096
  policy_kwargs: "dict(
                    log_std_init=-2,
                    ortho_init=False,
                    activation_fn=nn.ReLU,
                    net_arch=dict(pi=[256, 256], vf=[256, 256])
                  )"
Swimmer-v4:
  <<: *cheetah
  batch_size: 100
  normalize: "{'norm_obs': True, 'norm_reward': False, 'clip_obs': 5}"
  target_kl: 0.02
  env_wrapper:
    - gymnasium.wrappers.time_limit.TimeLimit:
        max_episode_steps: 300
"""
SAC = """
Pendulum-v1:
  n_timesteps: 20000
  policy: 'MlpPolicy'
  learning_rate: !!float 1e-3
MountainCarContinuous-v0:
  n_timesteps: 500
  learning_rate: !!float 3e-4
  buffer_size: 50000
  batch_size: 512
  ent_coef: 0.1
  train_freq: 32
  gradient_steps: 32
  gamma: 0.9999
  tau: 0.01
  learning_starts: 0
  use_sde: True
  policy_kwargs: "dict(log_std_init=-3.67, net_arch=[64, 64])"
Walker-v0:
  n_timesteps: !!float 3e5
  n_envs: 2
  ent_coef: 'auto_0.1'
  target_entropy: -3.0
  train_freq: [1, "episode"]
  gradient_steps: -1
  policy_kwargs: "dict(net_arch=dict(pi=[64], qf=[400, 300]), n_critics=5, activation_fn=th.nn.Tanh)"
"""
TD3 = """
Pendulum-v1:
  n_timesteps: 20000
  policy: 'MlpPolicy'
  gamma: 0.98
  buffer_size: 200000
  learning_starts: 10000
  noise_type: 'normal'
  noise_std: 0.1
  gradient_steps: 2
  train_freq: 1
  policy_delay: 3
  target_policy_noise: 0.3
  learning_rate: !!float 1e-3
  policy_kwargs: "dict(net_arch=[400, 300])"
"""
A2C = """
default:
  normalize: true
  n_envs: 8
  n_steps: 8
  n_timesteps: !!float 2e6
  ent_coef: 0.001
  use_rms_prop: False
  normalize_advantage: True
  learning_rate: lin_7e-4
  vf_coef: 0.4
"""


@pytest.fixture
def read(tmp_path):
    def reading(text, method, task, entry=""):
        (tmp_path / "file.yml").write_text(text)
        found = read_hyperparameters(f"{tmp_path / 'file.yml'}{entry}", method, task)
        return found, make(found.method, **found.settings)

    return reading


def test_cartpole(read):
    found, recipe = read(PPO, "ppo", "CartPole-v1")
    assert (found.method, found.entry, found.steps) == ("ppo@sb3", "CartPole-v1", 391)  # of 256 actions
    assert (recipe.rollout.environments, recipe.rollout.steps) == (8, 32)
    assert (recipe.update.minibatches, recipe.update.epochs, recipe.update.value_coefficient) == (1, 20, 1.0)
    assert (recipe.advantage.gamma, recipe.advantage.lam) == (0.98, 0.8)
    assert (recipe.optimizer.lr, recipe.optimizer.schedule) == (0.001, "linear")
    surrogate = recipe.surrogate
    assert (surrogate.ratio_low, surrogate.ratio_high, surrogate.schedule) == (0.8, 1.2, "linear")
    assert recipe.regularizer is None
    assert [note.split("=")[0] for note in found.notes] == ["n_timesteps"]  # 100,096 actions


def test_pendulum_names_what_is_done_otherwise(read):
    found, recipe = read(PPO, "ppo@sb3", "Pendulum-v1")
    assert (recipe.rollout.environments, recipe.update.minibatches, found.steps) == (4, 64, 25)
    assert {note.split("=")[0] for note in found.notes} == {"use_sde", "sde_sample_freq", "n_timesteps"}


def test_half_cheetah(read):
    found, recipe = read(PPO, "ppo", "HalfCheetah-v5", ":HalfCheetah-v4")
    policy = recipe.policy
    assert (policy.hidden, policy.activation, policy.weight_init) == ((256, 256), "relu", "torch")
    assert (policy.log_std_init, policy.normalize) == (-2.0, True)
    assert recipe.reward == ScaledReward(gamma=0.98)
    assert recipe.regularizer == EntropyLoss(0.000401762)
    assert recipe.update.value_coefficient == pytest.approx(2 * 0.58096)
    assert (recipe.optimizer.lr, recipe.optimizer.schedule, recipe.optimizer.grad_clip) == (2.0633e-05, "constant", 0.8)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.schedule) == (0.9, "constant")
    assert recipe.update.minibatches == 8
    assert found.steps == 1954


def test_wrappers_and_parts_of_the_normalisation(read):
    found, recipe = read(PPO, "ppo", "Swimmer-v4")
    assert found.task_settings == {"max_episode_steps": 300}
    assert (recipe.policy.normalize_clip, recipe.reward) == (5.0, None)
    assert (recipe.update.minibatches, recipe.update.target_kl) == (6, pytest.approx(0.03))
    assert {note.split("=")[0] for note in found.notes} == {"batch_size", "target_kl", "normalize", "n_timesteps"}


def test_a2c_by_the_default_entry(read):
    found, recipe = read(A2C, "a2c", "Anything-v7")
    assert (found.entry, found.steps) == ("default", 31250)
    assert (recipe.optimizer.kind, recipe.optimizer.schedule) == ("adam", "linear")
    assert recipe.control is not None
    assert recipe.update.value_coefficient == 0.8
    assert recipe.reward == ScaledReward()


def test_sac(read):
    found, recipe = read(SAC, "sac", "Pendulum-v1")
    assert (found.steps, recipe.rollout.warmup, recipe.temperature.lr) == (20, 100, 1e-3)
    assert (recipe.update.actor_lr, recipe.update.critic_lr) == (1e-3, 1e-3)
    assert not found.notes


def test_sac_with_a_given_temperature(read):
    found, recipe = read(SAC, "sac", "MountainCarContinuous-v0")
    assert recipe.temperature.alpha == 0.1
    assert (found.steps, recipe.rollout.steps, recipe.rollout.warmup) == (1, 500, 0)
    assert (recipe.data.capacity, recipe.data.batch_size, recipe.targets.rate) == (50000, 512, 0.01)
    assert (recipe.policy.hidden, recipe.critic.hidden, recipe.target.discount) == ((64, 64), (64, 64), 0.9999)
    assert recipe.update.per_step == 1
    assert {note.split("=")[0] for note in found.notes} == {"train_freq", "use_sde", "policy_kwargs.log_std_init"}


def test_what_the_run_says_is_noted_and_not_read(read):
    found, _ = read(
        "CartPole-v1:\n  policy: MlpPolicy\n  seed: 3\n  device: cuda\n  verbose: 1\n", "ppo", "CartPole-v1"
    )
    assert {note.split("=")[0] for note in found.notes} == {"seed", "device", "verbose"}
    assert not {"seed", "device", "verbose"} & found.settings.keys()


def test_sac_networks_of_different_sizes_and_copies(read):
    found, recipe = read(SAC, "sac", "Walker-v0")
    assert (recipe.policy.hidden, recipe.critic.hidden, recipe.critic.members) == ((64,), (400, 300), 5)
    assert (recipe.policy.activation, recipe.critic.activation) == ("tanh", "tanh")
    assert (recipe.temperature.initial, recipe.temperature.target) == (0.1, -3.0)
    assert (recipe.update.per_step, found.steps) == (2, 150)  # as many updates as actions


def test_td3(read):
    found, recipe = read(TD3, "td3", "Pendulum-v1")
    assert (recipe.exploration.std, recipe.rollout.warmup, recipe.data.capacity) == (0.1, 10000, 200000)
    assert (recipe.update.per_step, recipe.update.actor_every, recipe.targets.every) == (2, 3, 3)
    assert (recipe.target.noise, recipe.target.discount) == (0.3, 0.98)
    assert (recipe.policy.hidden, recipe.critic.hidden) == ((400, 300), (400, 300))
    assert not found.notes


TRPO = """
Pendulum-v1:
  n_envs: 2
  n_steps: 1024
  n_timesteps: !!float 1e5
  gamma: 0.9
  gae_lambda: 0.95
  learning_rate: !!float 2e-3
  batch_size: 100
  n_critic_updates: 15
  cg_max_steps: 25
  cg_damping: 0.2
  target_kl: 0.04
  sub_sampling_factor: 4
  line_search_max_iter: 7
  normalize: true
  policy_kwargs: "dict(log_std_init=-1)"
"""


def test_trpo(read):
    found, recipe = read(TRPO, "trpo", "Pendulum-v1")
    region, update = recipe.optimizer, recipe.update
    assert (region.max_kl, region.damping, region.iterations) == (0.04, 0.2, 25)
    assert (region.critic_lr, region.tries, region.backtrack) == (2e-3, 7, 0.8)
    assert (update.critic_epochs, update.critic_minibatches, update.value_coefficient) == (15, 21, None)
    assert (recipe.rollout.environments, recipe.rollout.steps, found.steps) == (2, 1024, 49)
    assert (recipe.advantage.gamma, recipe.policy.normalize, recipe.policy.log_std_init) == (0.9, True, -1.0)
    assert {note.split("=")[0] for note in found.notes} == {"sub_sampling_factor", "normalize", "n_timesteps"}
    _, plain = read("Some-v0: {}", "trpo", "Some-v0")
    assert (plain.rollout.steps, plain.advantage.lam, plain.optimizer.iterations) == (2048, 0.95, 15)
    assert (plain.update.critic_epochs, plain.update.critic_minibatches, plain.optimizer.critic_lr) == (10, 16, 1e-3)
    for line in ("max_grad_norm: 0.5", "vf_coef: 0.5", "learning_rate: lin_1e-3", "ent_coef: 0.1"):
        with pytest.raises(UsageError, match=line.split(":")[0]):
            read(f"Some-v0:\n  {line}\n", "trpo", "Some-v0")


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_rates_of_sac_and_td3_that_fall(read, method):
    _, recipe = read("Some-v0:\n  learning_rate: lin_7.3e-4\n", method, "Some-v0")
    assert (recipe.update.actor_lr, recipe.update.critic_lr) == (7.3e-4, 7.3e-4)
    assert (recipe.update.actor_schedule, recipe.update.critic_schedule) == ("linear", "linear")
    if method == "sac":
        assert recipe.temperature.lr == 7.3e-4
    _, plain = read("Some-v0:\n  learning_rate: 7.3e-4\n", method, "Some-v0")
    assert (plain.update.actor_schedule, plain.update.critic_schedule) == ("constant", "constant")


REFUSED = {
    "frame_stack: 4": "frame_stack=4",
    "policy: 'CnnPolicy'": "policy='CnnPolicy'",
    "env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper": "TimeFeatureWrapper",
    "callback: [rl_zoo3.callbacks.ParallelTrainCallback]": "ParallelTrainCallback",
    "vf_ceof: 0.5": "vf_ceof=0.5",
    "clip_range_vf: lin_0.2": "clip_range_vf",
    "clip_range: 1.0": "clip_range",
    'policy_kwargs: "dict(net_arch=dict(pi=[64], vf=[32]))"': "net_arch",
    'policy_kwargs: "dict(net_arch=[])"': "net_arch",
    'policy_kwargs: "dict(net_arch=[64, dict(pi=[32], vf=[32])])"': "net_arch",
    'policy_kwargs: "dict(activation_fn=nn.ELU)"': "activation_fn",
    'policy_kwargs: "dict(features_extractor_class=Mine)"': "features_extractor_class",
    "normalize: \"{'norm_obs_keys': ['a']}\"": "norm_obs_keys",
    'policy_kwargs: "dict(optimizer_kwargs=dict(amsgrad=True))"': "optimizer_kwargs",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(read, line):
    with pytest.raises(UsageError, match="has no counterpart here") as error:
        read(f"Some-v0:\n  gamma: 0.9\n  {line}\n", "ppo", "Some-v0")
    assert REFUSED[line] in str(error.value)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("noise_type: ornstein-uhlenbeck", "ornstein-uhlenbeck"),
        ("noise_std: 0.1", "noise_std"),
        ("noise_type: normal", "noise_std is missing"),
        ("train_freq: 64", "gradient_steps=1"),
        ('train_freq: [1, "episode"]', "train_freq"),
        ("gradient_steps: 0", "gradient_steps=0"),
        ("normalize: true", "normalize"),
        ("replay_buffer_class: HerReplayBuffer", "HerReplayBuffer"),
        ('replay_buffer_kwargs: "dict(n_sampled_goal=4)"', "n_sampled_goal"),
        ("n_steps: 3", "n_steps"),
    ],
)
def test_what_sac_has_no_counterpart_for(read, line, named):
    with pytest.raises(UsageError, match="has no counterpart here") as error:
        read(f"Some-v0:\n  gamma: 0.9\n  {line}\n", "sac", "Some-v0")
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Some-v0:\n  n_envs: 1.5\n", "n_envs is 1.5; it must be a whole number"),
        ("Some-v0:\n  gamma: high\n", "gamma is 'high'; it must be a number"),
        ("Some-v0:\n  gamma: true\n", "gamma is True"),
        ("Some-v0:\n  gamma: .nan\n", "gamma is nan"),
        ("Some-v0:\n  learning_rate: cos_0.1\n", "lin_NUMBER"),
        ("Some-v0:\n  learning_rate: lin_fast\n", "'fast'"),
        ("Some-v0:\n  normalize_advantage: 'no'\n", "true or false"),
        ("Some-v0:\n  policy_kwargs: [1]\n", "must be a mapping"),
        ("Some-v0:\n  policy_kwargs: \"__import__('os').system('x')\"\n", "nothing in a file is run"),
        ("Some-v0:\n  normalize: \"exec('x')\"\n", "nothing in a file is run"),
        ("Some-v0: !!python/object/apply:os.system ['x']\n", "is not YAML"),
        ("Some-v0: 3\n", "an entry has lines"),
        ("Some-v1:\n  gamma: 0.9\n", "To take that of Some-v1"),
        ("Some-v0: {gamma: 0.9\n", "is not YAML"),
        ("- a\n", "holds list"),
    ],
)
def test_a_damaged_file_is_told(read, text, says):
    with pytest.raises(UsageError) as error:
        read(text, "ppo", "Some-v0")
    assert says in str(error.value)


@pytest.mark.parametrize("method", ["grpo", "iql", "ppo@continuous", "nothing"])
def test_other_methods_are_refused(read, method):
    with pytest.raises(UsageError, match="ppo, a2c, trpo, sac, td3"):
        read(PPO, method, "CartPole-v1")


def defaults(name):
    sb3 = pytest.importorskip("stable_baselines3")
    signature = inspect.signature(getattr(sb3, name))
    return {key: parameter.default for key, parameter in signature.parameters.items()}


@pytest.mark.parametrize("method", ["ppo", "a2c"])
def test_on_policy_presets_are_their_defaults(method):
    given, recipe = defaults(method.upper()), make(f"{method}@sb3")
    assert recipe.optimizer.lr == given["learning_rate"]
    assert recipe.rollout.steps == given["n_steps"]
    assert (recipe.advantage.gamma, recipe.advantage.lam) == (given["gamma"], given["gae_lambda"])
    assert recipe.update.value_coefficient == 2 * given["vf_coef"]
    assert recipe.optimizer.grad_clip == given["max_grad_norm"]
    assert given["ent_coef"] == 0
    assert recipe.regularizer is None
    assert (recipe.control is not None) == given["normalize_advantage"]
    assert recipe.critic.clip is given.get("clip_range_vf")
    if method == "ppo":
        assert recipe.update.minibatches == given["n_steps"] // given["batch_size"]
        assert recipe.update.epochs == given["n_epochs"]
        assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high) == (1 - 0.2, 1 + given["clip_range"])
    else:
        assert (recipe.optimizer.kind, recipe.optimizer.eps) == ("rmsprop", given["rms_prop_eps"])


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_off_policy_presets_are_their_defaults(method):
    given, recipe = defaults(method.upper()), make(f"{method}@sb3")
    assert (recipe.update.actor_lr, recipe.update.critic_lr) == (given["learning_rate"], given["learning_rate"])
    assert (recipe.data.capacity, recipe.data.batch_size) == (given["buffer_size"], given["batch_size"])
    assert (recipe.targets.rate, recipe.target.discount) == (given["tau"], given["gamma"])
    assert recipe.rollout.warmup == given["learning_starts"]
    assert recipe.update.per_step == given["gradient_steps"] == given["train_freq"]
    assert (recipe.exploration, given["action_noise"]) == (None, None)
    if method == "td3":
        assert recipe.update.actor_every == recipe.targets.every == given["policy_delay"]
        assert (recipe.target.noise, recipe.target.clip) == (given["target_policy_noise"], given["target_noise_clip"])
