"""What entries of all methods have: the policy's network, the environment, and names that change nothing here."""

from typing import Any

from upslope.hyperparameters.entry import Entry
from upslope.hyperparameters.literals import Name

ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "SiLU": "silu", "GELU": "gelu"}
POLICIES = ("MlpPolicy", "MultiInputPolicy")
TIME_LIMIT = "TimeLimit"
LEFT_TO_THE_RUN = ("device", "seed", "tensorboard_log", "verbose")
FIXED = {"use_expln": False, "squash_output": False, "full_std": True, "share_features_extractor": True}


def environment(entry: Entry) -> None:
    """The environment's wrappers, the kind of policy, and exploration that depends on the state."""
    policy = entry.take("policy", "MlpPolicy")
    if policy not in POLICIES:
        entry.refuse("policy", policy, "policies here are fully connected networks of flat observations")
    if (stacked := entry.take("frame_stack")) not in (None, 1):
        entry.refuse("frame_stack", stacked, "observations are not stacked; wrap the environment in a file of your own")
    wrappers = entry.take("env_wrapper")
    for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
        _wrapper(entry, wrapper)
    for name in ("vec_env_wrapper", "callback", "monitor_kwargs"):
        if (value := entry.take(name)) is not None:
            entry.refuse(name, value, "code that is named in a file is not run")
    for name, default in (("sde_sample_freq", -1), ("use_sde_at_warmup", False)):
        value = entry.take(name, default)
        if value != default:
            entry.note(name, value, "is read with use_sde alone, which has no counterpart")
    for name in LEFT_TO_THE_RUN:
        if (value := entry.take(name)) is not None:
            entry.note(name, value, "is the run's to say, and not read from a file")
    if entry.flag("use_sde"):
        entry.note("use_sde", True, "the noise is drawn anew for every action, instead of depending on the state")


def _wrapper(entry: Entry, wrapper: Any) -> None:
    if wrapper is None:
        return
    name, settings = next(iter(wrapper.items())) if isinstance(wrapper, dict) and len(wrapper) == 1 else (wrapper, {})
    settings = settings or {}
    if (
        str(name).rpartition(".")[2] == TIME_LIMIT
        and isinstance(settings, dict)
        and set(settings) == {"max_episode_steps"}
    ):
        limit = entry.as_number("env_wrapper: max_episode_steps", settings["max_episode_steps"], "count")
        entry.task_settings["max_episode_steps"] = limit
        return
    why = "code that is named in a file is not run; wrap the environment in a file of your own, --task file.py:function"
    entry.refuse("env_wrapper", wrapper, why)


def network(entry: Entry, critic: str | None) -> dict[str, Any]:
    """policy_kwargs: hidden layers, activation, initialisation; returns what only some methods read.

    critic   the stage whose `hidden` are the critic's own layers; None: the critic's layers are as the policy's
    """
    given = entry.mapping("policy_kwargs")
    _layers(entry, given.pop("net_arch", None), critic)
    if (activation := given.pop("activation_fn", None)) is not None:
        known = ACTIVATIONS.get(str(activation).rpartition(".")[2]) if isinstance(activation, Name) else None
        if known is None:
            entry.refuse("policy_kwargs.activation_fn", activation, f"there is {', '.join(sorted(ACTIVATIONS))}")
        else:
            entry.settings["policy.activation"] = known
            if critic is not None:
                entry.settings[f"{critic}.activation"] = known
    for name, default in FIXED.items():
        if (value := given.pop(name, default)) != default:
            entry.refuse(f"policy_kwargs.{name}", value, "policies here have no such choice")
    return given


def _layers(entry: Entry, layers: Any, critic: str | None) -> None:
    """net_arch: [64, 64], dict(pi=[64], vf=[64]) or, as before version 1.8, [dict(pi=[64], vf=[64])]."""
    if layers is None:
        return
    given = layers[0] if isinstance(layers, list) and len(layers) == 1 and isinstance(layers[0], dict) else layers
    other = "vf" if critic is None else "qf"
    if isinstance(given, dict) and set(given) == {"pi", other}:
        pi, own = given["pi"], given[other]
    else:
        pi = own = given
    if not all(_widths(one) for one in (pi, own)):
        entry.refuse(
            "policy_kwargs.net_arch", layers, "give the widths of the hidden layers, at least one, e.g. [64, 64]"
        )
        return
    if critic is None and pi != own:
        entry.refuse("policy_kwargs.net_arch", layers, "policy and critic have hidden layers of the same widths")
        return
    entry.settings["policy.hidden"] = list(pi)
    if critic is not None:
        entry.settings[f"{critic}.hidden"] = list(own)


def _widths(layers: Any) -> bool:
    whole = isinstance(layers, list | tuple) and len(layers) > 0
    return whole and all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in layers)


def leftovers(entry: Entry, given: dict[str, Any]) -> None:
    """Refuses what is left of policy_kwargs."""
    for name, value in given.items():
        entry.refuse(f"policy_kwargs.{name}", value, "policies here have no such choice")


def run_length(entry: Entry, per_step: int) -> int | None:
    """Steps of the run, each of so many actions, for at least n_timesteps of them."""
    total = entry.number("n_timesteps", "count")
    if total is None:
        return None
    steps = -(-total // per_step)
    if steps * per_step != total:
        entry.note("n_timesteps", total, f"{steps} steps of {per_step:,} actions are {steps * per_step:,}")
    return max(1, int(steps))
