"""Hyper-parameters of SAC and TD3. Where an entry says nothing, sac@sb3 and td3@sb3 hold."""

from typing import Any

from upslope.hyperparameters.entry import Entry
from upslope.hyperparameters.shared import environment, leftovers, network, run_length

CHUNK = 1000  # actions of a copy in a step of the run
IGNORED = {"optimize_memory_usage": "transitions are stored once in any case"}


def sac(entry: Entry) -> int | None:
    """Steps of the run; settings of sac@sb3 in `entry.settings`."""
    rate = _rates(entry)
    temperature = entry.take("ent_coef", "auto")
    if isinstance(temperature, str) and temperature.partition("_")[0] == "auto":
        _, _, first = temperature.partition("_")
        if first:
            entry.settings["temperature.initial"] = entry.as_number("ent_coef", first)
        if rate is not None:
            entry.settings["temperature.lr"] = rate
        target = entry.take("target_entropy", "auto")
        if target != "auto":
            entry.settings["temperature.target"] = entry.as_number("target_entropy", target)
    else:
        alpha = entry.as_number("ent_coef", temperature)
        entry.settings |= {"temperature": "sac@constant", "temperature.alpha": alpha}
        if (target := entry.take("target_entropy", "auto")) != "auto":
            entry.note("target_entropy", target, "is read with ent_coef: auto alone")
    if every := entry.number("target_update_interval", "count"):
        entry.settings["targets.every"] = every
    return _shared(entry, "sac")


def td3(entry: Entry) -> int | None:
    """Steps of the run; settings of td3@sb3 in `entry.settings`."""
    _rates(entry)
    if delay := entry.number("policy_delay", "count"):
        entry.settings |= {"update.actor_every": delay, "targets.every": delay}
    entry.put("target.noise", "target_policy_noise")
    entry.put("target.clip", "target_noise_clip")
    return _shared(entry, "td3")


def _rates(entry: Entry) -> float | None:
    """The learning rate of both networks; its schedule is the temperature's, too."""
    rate = entry.schedule("learning_rate")
    if rate is None:
        return None
    entry.settings |= {"update.actor_lr": rate[0], "update.critic_lr": rate[0]}
    if rate[1] != "constant":
        entry.settings |= {"update.actor_schedule": rate[1], "update.critic_schedule": rate[1]}
    return rate[0]


def _shared(entry: Entry, method: str) -> int | None:
    environment(entry)
    count = entry.put("rollout.environments", "n_envs", "count") or 1
    entry.put("rollout.warmup", "learning_starts", "whole")
    entry.put("data.capacity", "buffer_size", "count")
    entry.put("data.batch_size", "batch_size", "count")
    entry.put("target.discount", "gamma")
    entry.put("targets.rate", "tau")
    _updates(entry, count)
    _noise(entry)
    for name, what in IGNORED.items():
        if entry.flag(name):
            entry.note(name, True, what)
    if entry.take("normalize"):
        entry.refuse(
            "normalize", True, "these methods standardize observations by a log's moments only, and no rewards"
        )
    if (lookahead := entry.number("n_steps", "whole", default=1)) != 1:
        entry.refuse("n_steps", lookahead, "targets are of one step")
    for name in ("replay_buffer_class", "replay_buffer_kwargs"):
        _buffer(entry, name)
    given = network(entry, "critic")
    if (critics := given.pop("n_critics", None)) is not None:
        entry.settings["critic.members"] = entry.as_number("policy_kwargs.n_critics", critics, "count")
    if (init := given.pop("log_std_init", None)) is not None:
        entry.note(
            "policy_kwargs.log_std_init", init, "is read with use_sde alone; the log-std is an output of the network"
        )
    leftovers(entry, given)
    total = entry.left.get("n_timesteps")
    if total is not None and (short := -(-entry.as_number("n_timesteps", total, "count") // count)) < CHUNK:
        entry.settings["rollout.steps"] = max(1, short)
    return run_length(entry, count * entry.settings.get("rollout.steps", CHUNK))


def _updates(entry: Entry, count: int) -> None:
    """train_freq steps of every copy, then gradient_steps updates: here as many updates, spread over the steps."""
    freq, updates = entry.take("train_freq", 1), entry.number("gradient_steps", "whole", default=1)
    episodes = isinstance(freq, list | tuple) and len(freq) == 2 and freq[1] == "episode"
    steps = freq[0] if isinstance(freq, list | tuple) and len(freq) == 2 and freq[1] == "step" else freq
    if episodes and updates >= 0:
        entry.refuse(
            "train_freq", freq, f"with gradient_steps={updates}; updates are counted per step, not per episode"
        )
        return
    if episodes or updates < 0:
        entry.settings["update.per_step"] = count
        what = (
            "as many updates as actions, one after each"
            if count == 1
            else f"{count} updates after each step of {count} copies"
        )
        entry.note("gradient_steps", updates, what)
        return
    period = entry.as_number("train_freq", steps, "whole")
    if period < 1 or updates < 1 or updates % period:
        why = f"with gradient_steps={updates}; the updates per step must be a whole number of at least 1"
        entry.refuse("train_freq", freq, why)
        return
    if updates // period != 1:
        entry.settings["update.per_step"] = updates // period
    if period > 1:
        entry.note(
            "train_freq", freq, f"{updates // period} updates after every step, instead of {updates} after {period}"
        )


def _noise(entry: Entry) -> None:
    kind, std = entry.take("noise_type"), entry.number("noise_std")
    if (final := entry.take("noise_std_final")) is not None:
        entry.refuse("noise_std_final", final, "the noise has one standard deviation")
    if kind is None:
        if std is not None:
            entry.refuse("noise_std", std, "there is no noise_type: add noise_type: normal")
        return
    if str(kind).strip() != "normal":
        entry.refuse("noise_type", kind, "the noise is drawn anew for every action: normal")
    elif std is None:
        entry.refuse("noise_type", kind, "noise_std is missing")
    else:
        entry.settings |= {"exploration": "td3", "exploration.std": std}


def _buffer(entry: Entry, name: str) -> None:
    value: Any = entry.take(name)
    if value is None or value == "":
        return
    given = value
    if name == "replay_buffer_kwargs":
        entry.left[name] = value
        given = entry.mapping(name)
        if given in ({}, {"handle_timeout_termination": True}):
            return  # a time limit is no end here in any case
    entry.refuse(name, given, "transitions are drawn uniformly")
