"""Any state as JSON and flat tensors, and back, bit for bit: optimizers, random generators, parts, curricula."""

import logging
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import UsageError

logger = logging.getLogger(__name__)

Generator = torch.Generator | np.random.Generator | random.Random


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split nested state into (JSON-able structure, flat tensors on the CPU); `unpack` is the inverse, bit for bit.

    The tree may hold mappings (with string, number or None keys), lists, tuples, tensors of any dtype, NumPy arrays and
    scalars, ints, floats (NaN and infinities too), strings, booleans and None.
    Raises UsageError for anything else, with its path: nothing is pickled.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(tree, "", tensors), tensors


def unpack(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` took apart. Tensors are on the CPU; a NumPy array is writable and its own."""
    if isinstance(structure, list):
        return [unpack(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    if "$" not in structure:
        return {name: unpack(item, tensors) for name, item in structure.items()}
    value: Any = structure.get("value")
    match structure["$"]:
        case "tensor":
            return tensors[value]
        case "complex":
            return torch.view_as_complex(tensors[value])
        case "array":
            return tensors[value].numpy().copy()
        case "scalar":
            return tensors[value].numpy()[()]
        case "float":
            return float(value)
        case "tuple":
            return tuple(unpack(item, tensors) for item in value)
        case "mapping":
            return {unpack(key, tensors): unpack(item, tensors) for key, item in value}
        case kind:
            raise UsageError(
                f"this state was written by a newer version of Upslope: it has a {kind!r}. Update Upslope."
            )


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "value": repr(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and "$" not in value:
            return {key: _pack(item, f"{path}/{key}", tensors) for key, item in value.items()}
        pairs = [
            [_pack(key, f"{path}/key", tensors), _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()
        ]
        return {"$": "mapping", "value": pairs}
    if type(value) is list:
        return [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if type(value) is tuple:
        return {"$": "tuple", "value": [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, Tensor):
        if value.dtype == torch.complex128:  # safetensors has no name for it
            return {"$": "complex", "value": _store(torch.view_as_real(value.detach().resolve_conj()), path, tensors)}
        return {"$": "tensor", "value": _store(value, path, tensors)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        native = np.array(value, dtype=value.dtype.newbyteorder("="))
        return {"$": kind, "value": _store(torch.from_numpy(native), path, tensors)}
    raise UsageError(
        f"a checkpoint cannot hold the {type(value).__name__} at {path or 'the top'!r} of the state. "
        "Keep tensors, NumPy arrays, numbers, strings, lists, tuples and mappings of them."
    )


def _store(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    name = base = path.lstrip("/") or "value"
    suffix = 0
    while name in tensors:  # "a/b" may be a key itself, or a path
        suffix += 1
        name = f"{base}~{suffix}"
    # Tensors that share memory cannot be stored as such, nor may later steps change what was packed.
    tensors[name] = tensor.detach().resolve_conj().resolve_neg().to("cpu", copy=True).contiguous()
    return name


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give `optimizer` the `state_dict()` of an earlier one, with the exact dtype of every moment.

    `Optimizer.load_state_dict` alone casts moments to their parameter's dtype: float32 moments of bfloat16 weights
    would lose bits. Raises UsageError if the state belongs to other parameters.
    """
    try:
        optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"the optimizer's state does not fit this model: {error}. Resume with the model and the trainable "
            "parameters that the run was started with."
        ) from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, saved in state["state"].get(index, {}).items():
            loaded = optimizer.state[parameter][name]
            if isinstance(saved, Tensor) and loaded.dtype != saved.dtype:
                optimizer.state[parameter][name] = saved.to(loaded.device, copy=True)


def rng_state(generators: Mapping[str, Generator] | None = None) -> dict[str, Any]:
    """The state of every global random generator (Python, NumPy, torch on CPU and each GPU) and of the named ones.

    The result can be packed; `set_rng_state` with the same names restores it.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": _python_state(random.getstate()),
        "numpy": {"kind": kind, "keys": keys, "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {name: _generator_state(generator) for name, generator in (generators or {}).items()},
    }


def set_rng_state(state: Mapping[str, Any], generators: Mapping[str, Generator] | None = None) -> None:
    """Restore what `rng_state` took; generators are matched by name.

    Raises UsageError if the names differ. Another number of GPUs is warned about: their numbers cannot be repeated.
    """
    generators = generators or {}
    if set(state["generators"]) != set(generators):
        raise UsageError(
            f"the saved random state is of the generators {sorted(state['generators'])}, but this run has "
            f"{sorted(generators)}. Resume with the settings that the run was started with."
        )
    random.setstate(_python_tuple(state["python"]))
    numpy = state["numpy"]
    np.random.set_state((numpy["kind"], numpy["keys"], numpy["position"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(state["cuda"]):
        logger.warning(
            "the checkpoint has the random state of %d GPUs and this machine has %d: numbers drawn on a GPU will differ.",
            len(state["cuda"]), devices,
        )  # fmt: skip
    for device, saved in zip(range(devices), state["cuda"], strict=False):
        torch.cuda.set_rng_state(saved, device)
    for name, generator in generators.items():
        _set_generator_state(generator, state["generators"][name])


def _generator_state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return _python_state(generator.getstate())


def _set_generator_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(_python_tuple(state))


def _python_state(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": np.array(words, dtype=np.uint32), "gauss": gauss}


def _python_tuple(state: Mapping[str, Any]) -> tuple[Any, ...]:
    return state["version"], tuple(state["words"].tolist()), state["gauss"]
