"""JAX states: every dtype, typed keys, sharing, filling in place. Run where JAX is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from qigstore.checkpoints import CheckpointStore, SaveInfo
from qigstore.checkpoints.format import PAYLOAD
from qigstore.errors import CheckpointError, CheckpointMismatch, CheckpointUnsupported

jax = pytest.importorskip("jax", reason="JAX is not installed")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="comes with JAX")

DTYPES = [
    "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "int8", "int16",
    "int32", "uint8", "uint16", "uint32", "bool",
]  # fmt: skip


def info() -> SaveInfo:
    return SaveInfo(session_name="jax", session_id=1, attempt=1, step=0)


def through_disk(folder: Path, state: Any, **options: Any) -> Any:
    store = CheckpointStore(folder)
    return store.load(store.save(state, info=info()).path, **options)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 5)], ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, name: str, shape: Any) -> None:
    given = jax.numpy.arange(max(1, np.prod(shape, dtype=int)))[: np.prod(shape, dtype=int)]
    given = (given % 7).reshape(shape).astype(name)
    found = through_disk(tmp_path, {"t": given})["t"]
    assert isinstance(found, jax.Array)
    assert (found.dtype, found.shape) == (given.dtype, given.shape)
    assert np.asarray(found).tobytes() == np.asarray(given).tobytes()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_numpy_arrays_of_its_dtypes_come_back_and_others_read_them(
    tmp_path: Path, name: str
) -> None:
    given = np.arange(6).astype(getattr(ml_dtypes, name)).reshape(2, 3).T
    store = CheckpointStore(tmp_path)
    path = store.save({"t": given}, info=info()).path
    found = store.load(path)["t"]
    assert type(found) is np.ndarray
    assert found.dtype == given.dtype
    assert (found == given).all()
    if name == "bfloat16":
        theirs = safetensors.numpy.load_file(path / PAYLOAD)["t"]
        assert np.array_equal(theirs, given)


@pytest.mark.parametrize("name", ["int4", "float8_e4m3b11fnuz"])
def test_dtypes_that_the_format_lacks_are_refused_when_saved(tmp_path: Path, name: str) -> None:
    given = np.zeros(2, getattr(ml_dtypes, name))
    for array in (given, jax.numpy.asarray(given)):
        with pytest.raises(CheckpointError, match=rf"state\['t'\]: an array of dtype {name}"):
            CheckpointStore(tmp_path).stage({"t": array})


def test_keys_and_sharing_are_kept(tmp_path: Path, seed: int) -> None:
    key, old = jax.random.key(seed % 1000), jax.random.PRNGKey(seed % 1000)
    tied = jax.numpy.ones((3, 2))
    state = {"key": jax.random.split(key, 3), "old": old, "in": tied, "out": tied}
    found = through_disk(tmp_path, state)
    assert found["in"] is found["out"]
    assert jax.random.uniform(found["key"][1]) == jax.random.uniform(state["key"][1])
    assert jax.random.uniform(found["old"]) == jax.random.uniform(old)


def test_values_that_are_not_finite_are_found(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    good = jax.numpy.ones(5, "bfloat16")
    assert store.save({"t": good}, info=info()).weights_finite
    for value in (np.nan, np.inf, -np.inf):
        assert not store.save({"t": good.at[3].set(value)}, info=info()).weights_finite


def test_into_gives_arrays_of_its_own_kind(tmp_path: Path) -> None:
    given = {"w": jax.numpy.arange(3.0), "n": 4}
    into = {"w": jax.numpy.zeros(3), "n": 0}
    found = through_disk(tmp_path, given, into=into)
    assert found is into
    assert isinstance(into["w"], jax.Array)
    assert into["w"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointMismatch, match="dtype: expected bfloat16, found float32"):
        through_disk(tmp_path, given, into={"w": jax.numpy.zeros(3, "bfloat16"), "n": 0})


def test_64_bits_are_not_cut_in_silence(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with jax.enable_x64(True):
        given = jax.numpy.array([1e300, 2.0], "float64")
        path = store.save({"w": given}, info=info()).path
        assert store.load(path)["w"].dtype == "float64"
    with pytest.raises(CheckpointUnsupported, match="jax_enable_x64"):
        store.load(path)
    assert store.verify(path)


def test_without_jax_the_file_is_not_condemned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save({"w": jax.numpy.ones(2)}, info=info()).path
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(CheckpointUnsupported, match="jax is not installed"):
        store.load(path)
    assert store.verify(path)
