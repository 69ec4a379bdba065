"""The settings of a run: one dataclass that round-trips through YAML, the command line and Python."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from upslope.errors import UsageError
from upslope.settings import converted

LEAST = {
    "steps": 0, "seed": 0, "prompts_per_step": 1, "max_tokens": 1, "top_k": 0, "tokens_per_pass": 1, "max_skipped": 1,
    "checkpoint_every": 0, "keep_checkpoints": 1, "reward_workers": 1, "vocab_chunk": 1, "threads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. `lr` None: 1e-4 for models under 20M parameters, 1e-5 for reward models and with LoRA, else 1e-6. `critic_lr` None:
    the same.

    `warmup` steps rise linearly; then constant, or down to 0 at the last step, or by sqrt(warmup / step). Gradients are clipped
    to norm `grad_clip`.
    """

    lr: float | None = None
    critic_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _check_least(self, "optimizer.", {"lr": 0, "critic_lr": 0, "weight_decay": 0, "warmup": 0})
        if not self.grad_clip > 0:
            raise UsageError(f"optimizer.grad_clip is {self.grad_clip}; it must be above 0, .inf for no clipping.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer.betas is {list(self.betas)}; both must be in [0, 1), e.g. [0.9, 0.999].")


@dataclass(frozen=True)
class EvalConfig:
    """Every `every` steps, `samples` completions of each of `prompts` held-out prompts; 0 steps: first and last only.

    A completion passes with a reward of at least the task's `solved_at`; pass@k for k = 1, 2, 4, ... up to `samples`. In an
    environment: the return of `episodes` episodes, the same ones every time; `deterministic` plays the policy's mode.
    """

    every: int = 10
    prompts: int = 128
    samples: int = 4
    temperature: float = 1.0
    solved_at: float = 1.0
    episodes: int = 20
    deterministic: bool = True

    def __post_init__(self) -> None:
        _check_least(self, "eval.", {"every": 0, "prompts": 0, "samples": 1, "temperature": 0, "episodes": 0})


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the linear layers; `rank` 0 trains every weight."""

    rank: int = 0
    alpha: float = 32.0

    def __post_init__(self) -> None:
        _check_least(self, "lora.", {"rank": 0})


@dataclass(frozen=True)
class Config:
    """What a run is made of.

    settings        overrides of the recipe: `ratio_high`, `rollout.group_size`, `advantage=rloo`
    task, data      what is trained on; of a method that learns from given completions, data is that, and task the evaluation
    task_settings   of a named task: its own; of data: input_key, label_key, eval_data
    reward_model    a reward model that the policy is trained on; the task's verifier then only measures
    critic_from     whose weights a critic starts from: the policy's, or the reward model's, with its score
    teacher         a model, for methods that distill
    max_tokens      of a completion; None: what the task recommends, else 64
    top_p, top_k    truncation of the sampling distribution; ratios are taken against the whole one
    old_logp        "sampler": the engine's log-probs; "recompute": one more pass of the model; "auto": the former in float32
    tokens_per_pass bound of a micro-batch, in packed tokens; results do not depend on it
    max_skipped     steps skipped in a row after which the run stops
    threads         of torch; None: every core this process may use
    sinks           of tensorboard, wandb, trackio
    """

    method: str = "grpo"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = "tiny"
    task: str | None = None
    task_settings: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    reward: str | None = None
    reward_model: str | None = None
    critic_from: Literal["policy", "reward_model"] = "policy"
    teacher: str | None = None
    steps: int = 60
    seed: int = 0
    prompts_per_step: int = 16
    max_tokens: int | None = None
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    tokens_per_pass: int = 16384
    old_logp: Literal["auto", "sampler", "recompute"] = "auto"
    max_skipped: int = 5
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    reward_timeout: float = 10.0
    reward_workers: int = 1
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    packing: Literal["auto", "tree", "padded"] = "auto"
    gradient_checkpointing: bool = False
    vocab_chunk: int | None = None
    trust_remote_code: bool = False
    threads: int | None = None
    self_checks: bool = True
    sinks: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        _check_least(self, "", LEAST)
        if self.seed >= 2**63:
            raise UsageError(f"seed is {self.seed}; it must be below 2 to the power of 63.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be in (0, 1], and 1 means no truncation.")
        if not self.reward_timeout > 0:
            raise UsageError(f"reward_timeout is {self.reward_timeout}; it must be above 0 (seconds).")

    def to_dict(self, read: Collection[str] | None = None) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as in config.yaml; with `read` only these settings, by dotted name."""
        values = _plain(dataclasses.asdict(self))
        if read is None:
            return values
        groups = {name.partition(".")[0] for name in read if "." in name}
        inner = {
            name: {key: one for key, one in values[name].items() if f"{name}.{key}" in read}
            for name in groups - set(read)
        }
        return {name: inner.get(name, value) for name, value in values.items() if name in {*read, *groups}}


def _check_least(owner: object, prefix: str, least: Mapping[str, float]) -> None:
    """Raises UsageError for a setting below its bound; a NaN is below every bound, None is not."""
    for name, low in least.items():
        value = getattr(owner, name)
        if value is not None and not low <= value < float("inf"):
            raise UsageError(f"{prefix}{name} is {value}; it must be a finite number of at least {low}.")


IN_ENVIRONMENTS = frozenset(
    {
        "method", "settings", "task", "task_settings", "steps", "seed", "eval.every", "eval.episodes", "eval.deterministic",
        "checkpoint_every", "keep_checkpoints", "threads", "self_checks", "sinks", "device", "max_skipped",
    }
)  # fmt: skip
"""Settings that the loops for environments read; any other is refused where it is set, and is not in their config.yaml."""


def refuse_unread(config: Config, read: Collection[str], what: str) -> None:
    """Raises UsageError naming a setting that is not in `read` and not at its default. `what` the method does, for the message."""
    default, given = Config().to_dict(), config.to_dict()
    for name, value in given.items():
        if name in read or value == default[name]:
            continue
        inner = (
            {f"{name}.{key}": one for key, one in value.items() if one != default[name][key]} if name in GROUPS else {}
        )
        unread = {key: one for key, one in (inner or {name: value}).items() if key not in read}
        if unread:
            listed = ", ".join(f"{key}={one!r}" for key, one in unread.items())
            hint = " Its learning rates are update.actor_lr and update.critic_lr." if name == "optimizer" else ""
            raise UsageError(f"'{config.method}' {what} and does not read {listed}. Leave it out.{hint}")
    if config.device not in ("auto", "cpu"):
        raise UsageError(f"'{config.method}' runs on the CPU; device is {config.device!r}. Set device=cpu.")


GROUPS = frozenset({"optimizer", "eval", "lora"})
FREE_ON_RESUME = frozenset(
    {
        "steps",
        "checkpoint_every",
        "keep_checkpoints",
        "threads",
        "sinks",
        "self_checks",
        "reward_workers",
        "max_skipped",
    }
)
"""Settings that may change when a run is resumed; any other change would make it another run."""


def config_from(values: Mapping[str, Any], *, where: str = "config") -> Config:
    """A Config of nested dicts, such as YAML gives. Raises UsageError for unknown keys and wrong kinds of value."""
    return _from_dict(Config, values, where)


def read_config(path: Path) -> dict[str, Any]:
    """The dict in a YAML file. Raises UsageError where it is missing, malformed or no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, not settings. Write lines such as `steps: 100`.")
    return values


def merge_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with `path=value` strings laid over: a field of Config (`optimizer.lr=1e-4`), else a setting of the recipe.

    Values are read as YAML. Raises UsageError where there is no `=`.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    names = {f.name for f in dataclasses.fields(Config)}
    nested = {name for name in names if dataclasses.is_dataclass(getattr(Config(), name))}
    nested -= {"optimizer"} if _has_own_optimizer(merged.get("method")) else set()
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UsageError(f"--set takes path=value, not '{override}'. Example: --set optimizer.lr=1e-4")
        value = parse_value(text)
        head, _, rest = path.partition(".")
        if path in names and not (path == "reward" and is_stage(merged.get("method"), path)):
            merged[path] = value
            continue
        group, name = (head, rest) if rest and head in {*nested, "settings", "task_settings"} else ("settings", path)
        inner = merged.setdefault(group, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"--set {path}: '{group}' is {inner!r} already, which has no settings. Leave one of the two out."
            )
        inner[name] = value
    return merged


def is_stage(method: Any, name: str) -> bool:
    """Whether `name` is a stage of the method's recipe that its runs have no setting of: an environment gives its own rewards,
    and `reward` is what is done to them."""
    from upslope.registry import make

    try:
        recipe = make(str(method))
    except UsageError:  # of no such method, which is told later
        return False
    reads = recipe.trainer().reads
    return name in recipe.STAGES and reads is not None and name not in reads


def _has_own_optimizer(method: Any) -> bool:
    """Whether the optimizer is a part of the method's recipe, so that `optimizer.lr` is a setting of that."""
    from upslope.registry import make

    try:
        return getattr(make(str(method)), "optimizer", None) is not None
    except UsageError:  # of no such method, which is told later
        return False


def parse_value(text: str) -> Any:
    """A scalar or list as YAML reads it; `1e-4` is a number too, which YAML 1.1 takes for a string."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None if value.lower() == "none" else value
    return value


def _from_dict(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    made: dict[str, Any] = {}
    example = kind()
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" There is: {', '.join(known)}."
            raise UsageError(f"{where} has no setting '{key}'.{hint}")
        current = getattr(example, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"{where}.{key} takes settings, not {value!r}. Example: {key}: {{{next(iter(vars(current)))}: ...}}"
                )
            made[key] = _from_dict(type(current), value, f"{where}.{key}")
        elif isinstance(current, Mapping):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}.{key} takes a mapping of settings, not {value!r}.")
            made[key] = dict(value)
        else:
            made[key] = converted(example, key, value)
    return kind(**made)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
