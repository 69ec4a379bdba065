"""Hyper-parameters of PPO, A2C and TRPO. Where an entry says nothing, ppo@sb3 and a2c@sb3 hold, and CONTRIB over trpo."""

from typing import Any

from upslope.hyperparameters.entry import Entry
from upslope.hyperparameters.shared import environment, leftovers, network, run_length

CONTRIB = {
    "rollout.environments": 1,
    "rollout.steps": 2048,
    "advantage.lam": 0.95,
    "update.critic_epochs": 10,
    "optimizer.iterations": 15,
}
"""What sb3-contrib's TRPO has otherwise than the method here."""
NORMALIZE = {"norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma"}


def ppo(entry: Entry) -> int | None:
    """Steps of the run; settings of ppo@sb3 in `entry.settings`."""
    size = _played(entry, 2048)
    batch = entry.number("batch_size", "count", default=64)
    minibatches = max(1, -(-size // max(1, batch)))
    entry.settings["update.minibatches"] = minibatches
    if size > batch and size % batch:
        what = (
            f"{size} transitions are cut into {minibatches} mini-batches of nearly equal size, without a small last one"
        )
        entry.note("batch_size", batch, what)
    entry.put("update.epochs", "n_epochs", "count")
    if (clip := entry.schedule("clip_range")) is not None:
        entry.settings |= {"surrogate.ratio_low": 1 - clip[0], "surrogate.ratio_high": 1 + clip[0]}
        entry.settings["surrogate.schedule"] = clip[1]
        if clip[0] >= 1:
            entry.refuse("clip_range", clip[0], "it must be below 1")
    if (clip_value := entry.schedule("clip_range_vf")) is not None and clip_value[0] > 0:
        if clip_value[1] == "linear":
            entry.refuse("clip_range_vf", f"lin_{clip_value[0]:g}", "the clip of the value has no schedule")
        entry.settings["critic.clip"] = clip_value[0]
    if (target := entry.number("target_kl")) is not None:
        entry.settings["update.target_kl"] = 1.5 * target
        what = "epochs end after one whose mean KL is above 1.5 times it, instead of at the first such mini-batch"
        entry.note("target_kl", target, what)
    if not entry.flag("normalize_advantage", True):
        entry.settings["control"] = None
    _gradient(entry)
    return _shared(entry, size)


def a2c(entry: Entry) -> int | None:
    """Steps of the run; settings of a2c@sb3 in `entry.settings`."""
    size = _played(entry, 5)
    if not entry.flag("use_rms_prop", True):
        entry.settings["optimizer.kind"] = "adam"
    entry.put("optimizer.eps", "rms_prop_eps")
    if entry.flag("normalize_advantage"):
        entry.settings["control"] = "ppo@sb3"
    _gradient(entry)
    return _shared(entry, size)


def trpo(entry: Entry) -> int | None:
    """Steps of the run; settings of trpo in `entry.settings`."""
    entry.settings |= CONTRIB
    size = _played(entry, 2048)
    batch = entry.number("batch_size", "count", default=128)
    entry.settings["update.critic_minibatches"] = max(1, -(-size // batch))
    entry.put("update.critic_epochs", "n_critic_updates", "count")
    entry.put("optimizer.max_kl", "target_kl")
    entry.put("optimizer.damping", "cg_damping")
    entry.put("optimizer.iterations", "cg_max_steps", "count")
    entry.put("optimizer.backtrack", "line_search_shrinking_factor")
    entry.put("optimizer.tries", "line_search_max_iter", "count")
    if (rate := entry.schedule("learning_rate")) is not None:
        if rate[1] == "linear":
            entry.refuse("learning_rate", f"lin_{rate[0]:g}", "the critic's rate is constant here")
        entry.settings["optimizer.critic_lr"] = rate[0]
    if (factor := entry.number("sub_sampling_factor", "count", default=1)) > 1:
        entry.note("sub_sampling_factor", factor, "the Fisher matrix is of all the states played")
    if not entry.flag("normalize_advantage", True):
        entry.settings["control"] = None
    return _shared(entry, size)


def _played(entry: Entry, steps: int) -> int:
    """Transitions between two updates."""
    count = entry.put("rollout.environments", "n_envs", "count") or 1
    return int(count * (entry.put("rollout.steps", "n_steps", "count") or steps))


def _shared(entry: Entry, size: int) -> int | None:
    environment(entry)
    gamma = entry.put("advantage.gamma", "gamma")
    entry.put("advantage.lam", "gae_lambda")
    _network(entry)
    _normalize(entry, gamma)
    return run_length(entry, size)


def _gradient(entry: Entry) -> None:
    """The one loss of policy and critic, and its optimizer."""
    entry.put("optimizer.grad_clip", "max_grad_norm")
    if (rate := entry.schedule("learning_rate")) is not None:
        entry.settings |= {"optimizer.lr": rate[0], "optimizer.schedule": rate[1]}
    if entropy := entry.number("ent_coef"):
        entry.settings |= {"regularizer": "a2c", "regularizer.coefficient": entropy}
    if (value := entry.number("vf_coef")) is not None:
        entry.settings["update.value_coefficient"] = 2 * value  # of half the squared error here, of the whole there


def _network(entry: Entry) -> None:
    given = network(entry, None)
    if (init := given.pop("log_std_init", None)) is not None:
        entry.settings["policy.log_std_init"] = entry.as_number("policy_kwargs.log_std_init", init)
    orthogonal = given.pop("ortho_init", True)
    if orthogonal not in (True, False):
        entry.refuse("policy_kwargs.ortho_init", orthogonal, "it must be True or False")
    elif not orthogonal:
        entry.settings["policy.weight_init"] = "torch"
    of_optimizer = given.pop("optimizer_kwargs", {})
    kept = {"eps", "weight_decay", "betas"}
    if isinstance(of_optimizer, dict) and set(of_optimizer) <= kept:
        entry.settings |= {
            f"optimizer.{name}": list(value) if name == "betas" else value for name, value in of_optimizer.items()
        }
    else:
        entry.refuse("policy_kwargs.optimizer_kwargs", of_optimizer, f"of these {', '.join(sorted(kept))} are read")
    leftovers(entry, given)


def _normalize(entry: Entry, gamma: float | None) -> None:
    """normalize: true, or which of observations and rewards, in a mapping or as text."""
    value = entry.left.get("normalize")
    if value is None or isinstance(value, bool):
        on, given = bool(entry.take("normalize")), dict[str, Any]()
    else:
        on, given = True, entry.mapping("normalize")
    for name in sorted(set(given) - NORMALIZE):
        entry.refuse(f"normalize.{name}", given[name], f"of the normalisation {', '.join(sorted(NORMALIZE))} are read")
    for name in ("norm_obs", "norm_reward"):
        if not isinstance(given.get(name, True), bool):
            entry.refuse(f"normalize.{name}", given[name], "it must be True or False")
    if not on:
        return
    if given.get("norm_obs", True):
        entry.settings["policy.normalize"] = True
        if "clip_obs" in given:
            entry.settings["policy.normalize_clip"] = entry.as_number("normalize.clip_obs", given["clip_obs"])
    if given.get("norm_reward", True):
        discount = gamma if gamma is not None else entry.as_number("normalize.gamma", given.get("gamma", 0.99))
        entry.settings |= {"reward": "ppo@continuous", "reward.gamma": discount}
        if "clip_reward" in given:
            entry.settings["reward.clip"] = entry.as_number("normalize.clip_reward", given["clip_reward"])
    entry.note("normalize", value, "the moments change between updates, instead of with every step")
