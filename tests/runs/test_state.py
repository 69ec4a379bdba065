import json
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load, save

from upslope.errors import UsageError
from upslope.runs.state import load_optimizer_state, pack, rng_state, set_rng_state, unpack

DTYPES = [np.float64, np.float32, np.float16, np.int64, np.uint32, np.uint8, np.bool_]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
TENSORS = st.one_of(
    ARRAYS.map(torch.from_numpy),
    ARRAYS.map(lambda array: torch.from_numpy(array).to(torch.bfloat16)),
    ARRAYS.map(lambda array: torch.from_numpy(array).to(torch.complex128).conj()),
    hnp.arrays(np.float32, (3, 4)).map(lambda array: torch.from_numpy(array).T),
)
NUMPY_SCALARS = ARRAYS.filter(lambda array: array.ndim == 0).map(lambda array: array[()])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**200), 2**200), st.floats(), st.text(), NUMPY_SCALARS)
KEYS = st.one_of(st.text(), st.sampled_from(["$", "a/b", "a", "b"]), st.integers(), st.none(), st.booleans())
TREES = st.recursive(
    st.one_of(SCALARS, ARRAYS, TENSORS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)


def through_disk(tree):
    structure, tensors = pack(tree)
    return unpack(json.loads(json.dumps(structure, allow_nan=False)), load(save(tensors)))


def same(a, b):
    """Equal in type, shape, dtype and every bit."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        views = [x.resolve_conj().contiguous().flatten().view(torch.uint8) for x in (a, b) if x.numel()]
        assert not views or torch.equal(*views)
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b or (a != a and b != b)


@example({"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "a/b~1": torch.ones(2)})
@given(TREES)
def test_round_trip_keeps_every_bit(tree):
    same(through_disk(tree), tree)


def test_packed_tensors_are_their_own():
    weights = torch.zeros(4)
    structure, tensors = pack({"a": weights, "b": weights[:2]})
    weights.add_(1)
    assert unpack(structure, tensors)["a"].sum() == 0
    assert unpack(structure, tensors)["b"].sum() == 0


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.array(["a"]), np.longdouble(1), lambda: None])
def test_what_cannot_be_held_is_named_with_its_path(value):
    with pytest.raises(UsageError, match=r"cannot hold the \w+ at '/tracker/values/1'"):
        pack({"tracker": {"values": [0, value]}})


def test_structure_of_a_newer_version_is_refused():
    with pytest.raises(UsageError, match="newer version"):
        unpack({"$": "quantum", "value": 1}, {})


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "groups": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "betas": (0.5, 0.9)}]),
    "tensor_lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_goes_on_bit_for_bit(make):
    def parameters():
        generator = torch.Generator().manual_seed(0)
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]

    def step(optimizer, weights, count):
        for _ in range(count):
            optimizer.zero_grad()

            def loss():
                optimizer.zero_grad()
                value = sum((w**2 + w.sin()).sum() for w in weights)
                value.backward()
                return value

            optimizer.step(loss)

    weights = parameters()
    optimizer = make(weights)
    step(optimizer, weights, 3)
    state = through_disk(optimizer.state_dict())
    resumed = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    other = make(resumed)
    load_optimizer_state(other, state)
    same(pack(other.state_dict()), pack(optimizer.state_dict()))
    step(optimizer, weights, 3)
    step(other, resumed, 3)
    same([w.detach() for w in resumed], [w.detach() for w in weights])


def test_float32_moments_of_bfloat16_weights_keep_their_bits():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([1 / 3, 2 / 3, 1 / 7])
    other = torch.optim.SGD([torch.nn.Parameter(weight.detach().clone())], lr=0.1, momentum=0.9)
    load_optimizer_state(other, through_disk(optimizer.state_dict()))
    same(other.state_dict()["state"], optimizer.state_dict()["state"])


def test_optimizer_of_other_parameters_is_refused():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    saved = through_disk(torch.optim.AdamW(weights).state_dict())
    with pytest.raises(UsageError, match="does not fit this model"):
        load_optimizer_state(torch.optim.AdamW(weights[:2]), saved)


def draw(generators):
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(),
        torch.randn(3).tolist(),
        torch.randn(2, generator=generators["torch"]).tolist(),
        generators["numpy"].normal(size=2).tolist(),
        generators["mersenne"].normal(),
        generators["python"].gauss(0, 1),
    ]


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_random_numbers_go_on(seed, before):
    generators = {
        "torch": torch.Generator().manual_seed(seed),
        "numpy": np.random.default_rng(seed),
        "mersenne": np.random.Generator(np.random.MT19937(seed)),
        "python": random.Random(seed),
    }
    for _ in range(before):
        draw(generators)
    saved = through_disk(rng_state(generators))
    expected = [draw(generators) for _ in range(2)]
    fresh = {
        "torch": torch.Generator(),
        "numpy": np.random.default_rng(),
        "mersenne": np.random.Generator(np.random.MT19937()),
        "python": random.Random(),
    }
    set_rng_state(saved, fresh)
    assert [draw(fresh) for _ in range(2)] == expected


def test_other_generators_are_refused_and_other_devices_named(caplog):
    saved = rng_state({"rollout": torch.Generator()})
    with pytest.raises(UsageError, match=r"of the generators \['rollout'\], but this run has \['data'\]"):
        set_rng_state(saved, {"data": torch.Generator()})
    set_rng_state({**rng_state(), "cuda": [torch.get_rng_state()] * 9})
    assert "random state of 9 GPUs" in caplog.text
