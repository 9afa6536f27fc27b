"""One array of a state and the form in which a safetensors file holds it.

A file of that kind knows booleans, integers and floats, little-endian. What it does not know is
stored as something that it does (complex as pairs of floats, times as integers, strings and
extended precision as bytes) and named by its NumPy dtype in the skeleton, so that it comes back
as what it was. Objects are refused: they would need pickle.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qigstore.errors import CheckpointError, CheckpointUnsupported

__all__ = [
    "CODES",
    "ITEM_BYTES",
    "NOT_FINITE_MASKS",
    "NO_NUMPY",
    "Leaf",
    "jax_leaf",
    "jax_restore",
    "numpy_leaf",
    "numpy_restore",
    "parse_dtype",
    "place",
    "tensor_identity",
    "torch_leaf",
    "torch_restore",
]

Array = npt.NDArray[Any]

CODES: dict[str, str] = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    # NumPy has no such types: their bits are handled as integers of the same width.
    "BF16": "<u2",
    "F8_E4M3": "|u1",
    "F8_E5M2": "|u1",
}
"""safetensors dtype → the NumPy dtype that holds its bytes."""

ITEM_BYTES: dict[str, int] = {code: np.dtype(name).itemsize for code, name in CODES.items()}
"""safetensors dtype → bytes of one value."""

NOT_FINITE_MASKS: dict[str, int] = {
    "F64": 0x7FF0_0000_0000_0000,
    "F32": 0x7F80_0000,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
}
"""A value of these is NaN or ±inf exactly where its bits without the sign are ≥ the mask."""

_BITS: dict[str, tuple[str, str]] = {
    "bfloat16": ("BF16", "int16"),
    "float8_e4m3fn": ("F8_E4M3", "uint8"),
    "float8_e5m2": ("F8_E5M2", "uint8"),
}
"""dtypes of torch and JAX that NumPy lacks → (safetensors dtype, torch dtype of the same bits)."""

NO_NUMPY = frozenset(_BITS)
"""Names of the dtypes that NumPy itself lacks."""

_BIT_CODES = {code for code, _ in _BITS.values()}
_CODE_OF = {np.dtype(d): code for code, d in CODES.items() if code not in _BIT_CODES}
_KINDS = "biufcmMSU"
_DTYPE = re.compile(r"[<>|=][biufcmMSU][0-9]{1,9}(\[[0-9A-Za-z/]{1,16}\])?")


class Leaf(NamedTuple):
    """One array as it goes to the file; `data` is still the caller's memory.

    `raw` is the little-endian NumPy dtype to copy `data` as; `code` and `shape` are what the
    file's header says of the same bytes. `fetch` puts the numbers of an array that is on a device
    where they shall go, without another copy on the way; `data` is then only of its form.
    """

    data: Array
    raw: np.dtype[Any]
    code: str
    shape: tuple[int, ...]
    fetch: Callable[[Array], object] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.data.size * self.raw.itemsize


def place(path: tuple[Any, ...]) -> str:
    """A place in a state, as in ``state['opt'][3]``."""
    return "state" + "".join(f"[{key!r:.60}]" for key in path)


def parse_dtype(text: str) -> np.dtype[Any]:
    """The dtype of that name if it is one that we write.

    Raises:
        CheckpointError: anything else, objects and records included.
    """
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise CheckpointError(f"{text!r} is not a dtype that a checkpoint holds")
    try:
        return np.dtype(text)
    except TypeError:
        raise CheckpointError(f"{text!r} is not a dtype that a checkpoint holds") from None


class _Form(NamedTuple):
    """How arrays of a dtype are stored: copied as `raw`, told as `code`, with `tail` dimensions."""

    raw: np.dtype[Any]
    code: str
    tail: tuple[int, ...]
    name: str | None
    """The dtype's own name, where the form alone does not tell it."""
    bits: bool
    """Whether NumPy does not know the dtype, so that its bits are copied."""


@lru_cache(maxsize=64)  # a state has many arrays of few dtypes
def _form_of(dtype: np.dtype[Any]) -> _Form | None:
    """How arrays of this dtype are stored; None where they are not."""
    foreign = dtype.isbuiltin == 2  # of ml_dtypes, which JAX brings along
    if foreign and dtype.name in _BITS:
        code = _BITS[dtype.name][0]
        return _Form(np.dtype(CODES[code]), code, (), dtype.name, bits=True)
    if foreign or dtype.kind not in _KINDS or dtype.itemsize == 0:
        return None
    raw = dtype.newbyteorder("<")
    code, tail = _stored_as(raw)
    plain = raw in _CODE_OF and dtype == raw
    return _Form(raw, code, tail, None if plain else dtype.str, bits=False)


def numpy_leaf(array: Array, path: tuple[Any, ...]) -> tuple[Leaf, str | None]:
    """The array's stored form, and its dtype's name where the form alone does not tell it.

    Raises:
        CheckpointError: a dtype of objects, records, or no size.
    """
    form = _form_of(array.dtype)
    if form is None:
        raise CheckpointError(
            f"{place(path)}: an array of dtype {array.dtype} cannot be saved (numbers, booleans, "
            "times and strings can). Convert it, or leave it out of the state."
        )
    data = array.view(form.raw) if form.bits else array
    return Leaf(data, form.raw, form.code, (*array.shape, *form.tail)), form.name


def numpy_restore(stored: Array, dtype_name: str | None) -> Array:
    """The array as it was, from what the file holds; the inverse of `numpy_leaf`.

    Raises:
        CheckpointError: the file holds something else than an array of that dtype.
    """
    if dtype_name is None:
        return stored
    if dtype_name in _BITS:
        if stored.dtype != np.dtype(CODES[_BITS[dtype_name][0]]):
            raise CheckpointError(f"an array stored as {stored.dtype} is no {dtype_name}")
        found: Array = stored.view(getattr(_needed("ml_dtypes", "jax"), dtype_name))
        return found
    dtype = parse_dtype(dtype_name)
    raw = dtype.newbyteorder("<")
    code, tail = _stored_as(raw)
    cut = stored.ndim - len(tail)
    if stored.dtype != np.dtype(CODES[code]) or cut < 0 or stored.shape[cut:] != tail:
        raise CheckpointError(f"an array stored as {stored.dtype} {stored.shape} is no {dtype}")
    array = stored.reshape(-1).view(raw).reshape(stored.shape[:cut])
    # Bytes of an extended precision number may lie anywhere in the file.
    return array if dtype == raw and array.flags.aligned else array.astype(dtype)


def _stored_as(raw: np.dtype[Any]) -> tuple[str, tuple[int, ...]]:
    """safetensors dtype that holds this one, and the dimension that it adds, if any."""
    if raw in _CODE_OF:
        return _CODE_OF[raw], ()
    if raw.kind == "c" and raw.itemsize in {8, 16}:
        return ("F32" if raw.itemsize == 8 else "F64"), (2,)
    if raw.kind in "mM":
        return "I64", ()
    return "U8", (raw.itemsize,)


def tensor_identity(tensor: Any) -> object:
    """A key equal for two tensors exactly where they are the same numbers in the same memory.

    `state_dict()` makes new tensor objects over the same storage, so that tied weights are seen
    by their address, not by the identity of the object: `to_local()` of a DTensor makes one that
    is gone at once, and its `id` is the next one's.
    """
    if tensor.layout != sys.modules["torch"].strided:
        return id(tensor)
    # Without elements there is no address; as a part of a tensor it must still be told apart.
    memory = tensor.data_ptr() or (tensor.untyped_storage()._cdata, tensor.storage_offset())
    return (
        memory,
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        type(tensor),
    )


def torch_leaf(tensor: Any, path: tuple[Any, ...]) -> tuple[Leaf, dict[str, Any]]:
    """A torch tensor's stored form, and what the skeleton must say of it.

    Raises:
        CheckpointError: a sparse, quantised or meta tensor, a subclass, or an unknown dtype.
    """
    torch = sys.modules["torch"]
    parameter = type(tensor) is torch.nn.Parameter
    dtype = _torch_name(tensor.dtype)
    if type(tensor) is not torch.Tensor and not parameter:
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise CheckpointError(
            f"{place(path)}: {kind} is a subclass of torch.Tensor that is not known"
        )
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(
            f"{place(path)}: only dense torch tensors with values can be saved, got "
            f"{tensor.layout} on {tensor.device}. Use .to_dense() or .dequantize()."
        )
    node = {"dtype": dtype, "grad": bool(tensor.requires_grad), "parameter": parameter}
    plain, fetch = tensor.detach().resolve_conj().resolve_neg(), None
    if not tensor.is_cpu:
        fetch = partial(_fetch, torch, plain)
        plain = torch.empty(plain.shape, dtype=plain.dtype)  # its pages are never touched
    if dtype in _BITS:
        code, bits = _BITS[dtype]
        data = plain.view(getattr(torch, bits)).numpy()
        return Leaf(data, np.dtype(CODES[code]), code, data.shape, fetch), node
    try:
        leaf, name = numpy_leaf(plain.numpy(), path)
        leaf = leaf._replace(fetch=fetch)
    except TypeError as error:
        raise CheckpointError(
            f"{place(path)}: torch dtype {dtype} cannot be saved: {error}"
        ) from None
    return leaf, {**node, "numpy": name} if name else node


def _fetch(torch: Any, tensor: Any, target: Array) -> None:
    """Copy a tensor from its device into an array of the same bits."""
    torch.from_numpy(target).view(tensor.dtype).copy_(tensor)


@lru_cache(maxsize=64)
def _torch_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def jax_leaf(array: Any, path: tuple[Any, ...]) -> tuple[Leaf, dict[str, Any]]:
    """A JAX array's stored form, and what the skeleton must say of it; typed keys included.

    Raises:
        CheckpointError: parts of it are in other processes, or an unknown dtype.
    """
    jax = sys.modules["jax"]
    if not array.is_fully_addressable:
        raise CheckpointError(
            f"{place(path)}: parts of this JAX array are in other processes; gather it first "
            "(`jax.experimental.multihost_utils.process_allgather`)"
        )
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        leaf, _ = numpy_leaf(np.asarray(jax.random.key_data(array)), path)
        return leaf, {"dtype": None, "key": str(jax.random.key_impl(array))}
    leaf, name = numpy_leaf(np.asarray(array), path)
    return leaf, {"dtype": name}


def jax_restore(stored: Array, node: dict[str, Any]) -> Any:
    """The array on the default device; the inverse of `jax_leaf`.

    Raises:
        CheckpointUnsupported: JAX is not installed here, or would cut the dtype to 32 bits.
    """
    jax = _needed("jax", "jax")
    plain = numpy_restore(stored, node["dtype"])
    # JAX cuts 64 bits to 32 unless it is told not to, and says so by a warning at most.
    if jax.dtypes.canonicalize_dtype(plain.dtype) != plain.dtype:
        raise CheckpointUnsupported(
            f"this checkpoint holds JAX arrays of {plain.dtype} and 64 bits are off here. Set "
            "`jax.config.update('jax_enable_x64', True)` first."
        )
    array = jax.numpy.array(plain)
    return jax.random.wrap_key_data(array, impl=node["key"]) if "key" in node else array


def _needed(module: str, install: str) -> Any:
    """A module that this checkpoint cannot be loaded without."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CheckpointUnsupported(
            f"this checkpoint holds arrays of {module.replace('ml_dtypes', 'JAX')} and {module} is "
            f"not installed. Install it (`pip install '{install}'`)."
        ) from error


def torch_restore(stored: Array, node: dict[str, Any]) -> Any:
    """The tensor on the CPU, a leaf of no graph; the inverse of `torch_leaf`.

    Raises:
        CheckpointUnsupported: torch is not installed here.
    """
    torch = _needed("torch", "qigstore[torch]")
    tensor = torch.from_numpy(numpy_restore(stored, node.get("numpy")))
    if node["dtype"] in _BITS:
        tensor = tensor.view(getattr(torch, node["dtype"]))
    if node["parameter"]:
        return torch.nn.Parameter(tensor, requires_grad=node["grad"])
    return tensor.requires_grad_(node["grad"])
