"""A state comes back as it was: values, types, sharing; what cannot be saved is named."""

from __future__ import annotations

import json
import math
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qigstore.checkpoints import CheckpointStore, SaveInfo
from qigstore.checkpoints.arrays import CODES
from qigstore.checkpoints.json_text import canonical_json
from qigstore.checkpoints.tree import DEPTH_MAX, flatten, restore
from qigstore.errors import CheckpointError

DTYPES = [
    "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16",
    ">i2", ">u4", ">f4", ">f8", ">c16", "g", "G", "M8[ns]", "m8[us]", "S3", "U2",
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal in type and in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is float:
        return struct.pack(">d", a) == struct.pack(">d", b)
    if type(a) is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, np.ndarray):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and (a.tobytes() == b.tobytes() or np.array_equal(a, b, equal_nan=True))
        )
    if isinstance(a, np.bytes_ | np.str_):  # their dtype depends on where they came from
        return len(a) == len(b) and bool(a == b)
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return bool(a == b)


def through_disk(folder: Path, state: Any) -> Any:
    store = CheckpointStore(folder)
    info = SaveInfo(session_name="round trip", session_id=1, attempt=1, step=0)
    return store.load(store.save(state, info=info).path)


arrays = hnp.arrays(
    st.sampled_from(DTYPES).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**53 - 2, max_value=2**200)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=()))
    | st.binary(max_size=2000)
    | hnp.arrays(st.sampled_from(DTYPES).map(np.dtype), ()).map(lambda a: a[()])
)
states = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(state=states)
def test_any_state_comes_back_the_same_from_disk(
    state: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert same(through_disk(tmp_path_factory.mktemp("tree"), state), state)


@given(state=states)
def test_the_skeleton_is_strict_json(state: Any) -> None:
    assert canonical_json(flatten(state).skeleton).isascii()


@given(state=states)
def test_any_state_comes_back_the_same_from_its_parts(state: Any) -> None:
    flat = flatten(state)
    stored = {}
    for name, leaf in flat.leaves.items():
        raw = np.ascontiguousarray(leaf.data.astype(leaf.raw)).tobytes()
        stored[name] = np.frombuffer(raw, CODES[leaf.code]).reshape(leaf.shape)
    assert same(restore(json.loads(canonical_json(flat.skeleton)), stored), state)


@pytest.mark.parametrize(
    "view",
    [
        np.arange(24.0).reshape(4, 6)[::2, 1::3],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(3), (2, 5)),
        np.arange(5)[::-1],
        np.float64(2.5) * np.ones(()),
        np.zeros((3, 0, 2), np.complex64),
        np.zeros((0,), np.longdouble),
    ],
    ids=["strided", "fortran", "broadcast", "reversed", "0-d", "empty", "empty-wide"],
)
def test_views_of_any_stride_come_back(view: Any, tmp_path: Path) -> None:
    found = through_disk(tmp_path, {"a": view})["a"]
    assert found.shape == view.shape
    assert found.dtype == view.dtype
    assert np.array_equal(found, view)


def test_bits_of_nan_and_minus_zero_survive(tmp_path: Path) -> None:
    odd = struct.unpack(">d", bytes.fromhex("7ff80000deadbeef"))[0]
    array = np.array([odd, -0.0, math.inf, 5e-324])
    found = through_disk(tmp_path, [odd, -0.0, -math.inf, array])
    assert same(found, [odd, -0.0, -math.inf, array])


def test_random_generators_go_on_where_they_were(tmp_path: Path, seed: int) -> None:
    ours, theirs = random.Random(seed), np.random.RandomState(seed % 2**32)
    generators = [
        np.random.Generator(kind(seed))
        for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
    ]
    state = {
        "python": ours.getstate(),
        "legacy": theirs.get_state(),
        "numpy": [generator.bit_generator.state for generator in generators],
    }
    expected = [ours.random(), theirs.rand(), *(g.random() for g in generators)]
    found = through_disk(tmp_path, state)
    ours.setstate(found["python"])
    theirs.set_state(found["legacy"])
    for generator, kept in zip(generators, found["numpy"], strict=True):
        generator.bit_generator.state = kept
    assert [ours.random(), theirs.rand(), *(g.random() for g in generators)] == expected


def test_shared_arrays_and_containers_stay_shared_and_are_stored_once(tmp_path: Path) -> None:
    tied, inner = np.ones(1000), [np.zeros(3)]
    state = {"encoder": tied, "decoder": tied, "same memory": tied[:], "a": inner, "b": inner}
    assert len(flatten(state).leaves) == 2
    found = through_disk(tmp_path, state)
    assert found["encoder"] is found["decoder"] is found["same memory"]
    assert found["a"] is found["b"]
    assert found["a"][0] is found["b"][0]


def test_equal_arrays_that_are_not_shared_stay_apart(tmp_path: Path) -> None:
    found = through_disk(tmp_path, [np.ones(3), np.ones(3)])
    found[0][:] = 7
    assert found[1].tolist() == [1, 1, 1]


def test_names_that_collide_keep_their_arrays_apart(tmp_path: Path) -> None:
    state = {
        "a.b": np.array(1),
        "a": {"b": np.array(2)},
        "": np.array(3),
        "__metadata__": np.array(4),
        "x" * 1000: np.array(5),
        "x" * 999: np.array(6),
        "\ud800": np.array(7),
        1: np.array(8),
        "1": np.array(9),
    }
    assert same(through_disk(tmp_path, state), state)


class Own:
    pass


@pytest.mark.parametrize(
    ("state", "place", "kind"),
    [
        ({"opt": [1, 2, 3, Own()]}, "state['opt'][3]", "Own"),
        ({"a": {1: {2, 3}}}, "state['a'][1]", "builtins.set"),
        ([lambda: 0], "state[0]", "function"),
        ({"a": np.array([None])}, "state['a']", "dtype object"),
        ({"a": np.zeros(2, "i4,f8")}, "state['a']", "dtype"),
        ({"a": np.ma.masked_array([1])}, "state['a']", "MaskedArray"),
        ({"rng": np.random.default_rng(1)}, "state['rng']", "bit_generator.state"),
        ({"rng": random.Random(1)}, "state['rng']", "getstate"),
        ({(1, 2): 3}, "state", "keys of a saved dict are str or int"),
        ({True: 3}, "state", "bool"),
        ({"a": Path("x")}, "state['a']", "PosixPath"),
        ({"a": bytearray(b"x")}, "state['a']", "bytearray"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(state: Any, place: str, kind: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        flatten(state)
    assert str(refused.value).startswith(place + ":")
    assert kind in str(refused.value)


def test_cycles_are_refused() -> None:
    state: dict[str, Any] = {"a": []}
    state["a"].append(state)
    with pytest.raises(CheckpointError, match=r"state\['a'\]\[0\]: this dict contains itself"):
        flatten(state)


def test_nesting_is_bounded_and_shared_containers_do_not_multiply() -> None:
    deep: Any = 1
    for _ in range(DEPTH_MAX):
        deep = [deep]
    assert restore(flatten(deep).skeleton, {}) == deep
    with pytest.raises(CheckpointError, match="deeper than"):
        flatten([deep])
    wide: Any = ["x"]
    for _ in range(60):
        wide = [wide, wide]  # 2**60 leaves if it were written out
    found = restore(flatten(wide).skeleton, {})
    assert found[0] is found[1]


@pytest.mark.parametrize(
    "skeleton",
    [
        {"array": "absent"},
        {"what": 1},
        {"same": 5},
        {"same": "x"},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"int": "zz"},
        {"float": "00"},
        {"bytes": "?"},
        {"scalar": "AAAA", "dtype": "O"},
        {"scalar": "AAAA", "dtype": "<f8"},
        {"array": "a", "dtype": "|O"},
        {"array": "a", "dtype": "<c16"},
        {"array": "a", "dtype": "<f8, <f8"},
        {"tuple": 7},
    ],
)
def test_a_skeleton_that_nobody_wrote_is_an_error_of_ours(skeleton: Any) -> None:
    with pytest.raises(CheckpointError):
        restore(skeleton, {"a": np.zeros(3, "f4")})
