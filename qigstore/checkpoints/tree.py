"""A nested training state ↔ named arrays and a JSON skeleton; no pickle in either direction.

The skeleton is plain JSON. `null`, booleans, strings, integers up to 2⁵³, finite floats and lists
are themselves; everything else is an object with one key that says what it is::

    {"dict": [[key, node], ...]}     {"ordered": [[key, node], ...]}     {"tuple": [node, ...]}
    {"int": "-1f..."}  hexadecimal   {"float": "7ff8000000000000"}  bits of NaN and ±inf
    {"complex": [node, node]}        {"bytes": "base64"}      {"blob": name}  long bytes
    {"scalar": "base64", "dtype"}    {"array": name, "dtype"}      {"tensor": name, ...}
    {"jax": name, "dtype"}           with "key" for a typed key of JAX's random numbers
    {"same": n}                      the n-th container finished so far, again

An array or container that is referenced twice is stored once and restored as one object.
"""

from __future__ import annotations

import base64
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qigstore.checkpoints.arrays import (
    Leaf,
    jax_leaf,
    jax_restore,
    numpy_leaf,
    numpy_restore,
    parse_dtype,
    place,
    tensor_identity,
    torch_leaf,
    torch_restore,
)
from qigstore.errors import CheckpointError, CheckpointMismatch

__all__ = [
    "DEPTH_MAX",
    "NODES_MAX",
    "FlatState",
    "Part",
    "Reference",
    "TensorRule",
    "find",
    "flatten",
    "nearest",
    "outline",
    "rebuild",
    "references",
    "restore",
]

DEPTH_MAX = 100
"""Deepest nesting; JSON readers stop at about a thousand levels, and one of ours is up to three."""
NODES_MAX = 2_000_000
"""Most values outside arrays; more belong in an array."""

_INLINE_BYTES_MAX = 1024
_NAME_CHARS_MAX = 200
_EXACT_INT = 2**53
_LEAVES = ("array", "tensor", "blob", "jax")
Part = Sequence[str | int]
"""Keys and indices, from the outside in, that lead to a part of a state."""
_HINTS = {
    "numpy.random._generator.Generator": "save generator.bit_generator.state",
    "numpy.random.mtrand.RandomState": "save random_state.get_state()",
    "random.Random": "save random.getstate()",
    "builtins.set": "save sorted(...)",
    "collections.defaultdict": "save dict(...)",
}
_SUPPORTED = (
    "dict (keys str or int), OrderedDict, list, tuple, None, bool, int, float, complex, str, bytes,"
    " NumPy arrays and scalars, torch tensors, JAX arrays"
)


@dataclass(frozen=True, slots=True)
class FlatState:
    """The skeleton and, by name, the arrays that it refers to (the caller's memory, not copies)."""

    skeleton: Any
    leaves: Mapping[str, Any]
    """A `Leaf` each, or what the rule for tensors made of one."""


class TensorRule(Protocol):
    """How a tensor of torch is taken: which are one, and what stands for one among the leaves."""

    def identity(self, tensor: Any, /) -> object:
        """A key equal for two tensors exactly where they are the same numbers in one memory."""

    def leaf(self, tensor: Any, path: tuple[Any, ...], /) -> tuple[Any, dict[str, Any]]:
        """What stands for it, and what the skeleton must say of it."""


class _WholeTensors:
    """The rule of a state that is all in this process."""

    def identity(self, tensor: Any, /) -> object:
        return tensor_identity(tensor)

    def leaf(self, tensor: Any, path: tuple[Any, ...], /) -> tuple[Leaf, dict[str, Any]]:
        return torch_leaf(tensor, path)


def flatten(state: Any, tensors: TensorRule | None = None) -> FlatState:
    """Take a state apart without copying its arrays.

    `tensors`: another rule for those of torch, where a process has only a part of each.

    Raises:
        CheckpointError: a type that cannot be saved, a cycle, or too much nesting; it names the
            place, as in ``state['opt'][3]``.
    """
    walk = _Flattener(tensors or _WholeTensors())
    skeleton = walk.node(state, ())
    return FlatState(skeleton, walk.leaves)


@dataclass(frozen=True, slots=True)
class Reference:
    """An array of a state that was not read: its name in the file, and what the skeleton says."""

    name: str
    node: Mapping[str, Any]

    def restore(self, stored: npt.NDArray[Any]) -> Any:
        """The array, tensor or bytes, from what the file holds.

        Raises:
            CheckpointError: the file holds something else.
        """
        if "blob" in self.node:
            return stored.tobytes()
        if "tensor" in self.node:
            return torch_restore(stored, dict(self.node))
        if "jax" in self.node:
            return jax_restore(stored, dict(self.node))
        return numpy_restore(stored, self.node.get("dtype"))


def outline(skeleton: Any) -> Any:
    """The state with a `Reference` in place of every array; an array that is shared has one.

    Raises:
        CheckpointError: a skeleton that `flatten` did not make.
    """
    return rebuild(skeleton, lambda found: found)


def restore(skeleton: Any, arrays: Mapping[str, npt.NDArray[Any]], part: Part = ()) -> Any:
    """Put a state, or the part of it at these keys, together from its skeleton and its arrays.

    Only the arrays of the part need be there.

    Raises:
        CheckpointError: a skeleton that `flatten` did not make, or an array is not there.
        CheckpointMismatch: there is no such part.
    """

    def leaf(found: Reference) -> Any:
        if part and found.name not in arrays:
            return found
        return found.restore(arrays[found.name])

    state = find(rebuild(skeleton, leaf), part)
    missing = {found.name for found in references(state)} if part else ()
    if missing:
        raise CheckpointError(f"the skeleton names arrays that are not there: {missing!r:.200}")
    return state


def rebuild(skeleton: Any, leaf: Callable[[Reference], Any]) -> Any:
    """The state with what `leaf` makes of each array; an array that is shared is made once.

    Raises:
        CheckpointError: a skeleton that `flatten` did not make.
    """
    try:
        return _Restorer(leaf).node(skeleton)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise CheckpointError(f"the skeleton cannot be read: {error!r}"[:300]) from error


def find(state: Any, part: Part) -> Any:
    """What a state holds at these keys, one after the other.

    Raises:
        CheckpointMismatch: nothing; it names the keys that come nearest.
    """
    for depth, key in enumerate(part):
        keys = state if isinstance(state, dict) else _indices(state)
        if key not in keys:
            where = place(tuple(part[:depth]))
            line = f"{place(tuple(part[: depth + 1]))}: {where} has no {key!r:.60}"
            raise CheckpointMismatch(
                "the checkpoint has no such part", [f"{line}{nearest(key, keys)}"]
            )
        state = state[key]
    return state


def references(state: Any) -> Iterator[Reference]:
    """Every array of an outline, each as often as it occurs in different containers."""
    seen: set[int] = set()
    left = [state]
    while left:
        value = left.pop()
        if isinstance(value, Reference):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def _indices(state: Any) -> range:
    return range(len(state) if isinstance(state, list | tuple) else 0)


def nearest(key: Any, among: Iterable[Any]) -> str:
    """Names like this one, as the end of a sentence; empty where there is none."""
    close = get_close_matches(str(key), [str(name) for name in among], 3, 0.5)
    return f"; nearest: {', '.join(map(repr, close))}" if close else ""


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


class _Flattener:
    def __init__(self, tensors: TensorRule) -> None:
        self.leaves: dict[str, Any] = {}
        self._tensors = tensors
        self._nodes = 0
        self._open: set[int] = set()
        self._finished: dict[int, int] = {}
        self._alive: list[Any] = []  # objects whose id() is a key must not be freed meanwhile
        self._known: dict[Any, dict[str, Any]] = {}
        self._kinds: dict[type, Callable[[Any, tuple[Any, ...]], Any]] = {
            **dict.fromkeys((type(None), bool, str), lambda value, _: value),
            int: lambda value, _: _flat_int(value),
            float: lambda value, _: _flat_float(value),
            complex: lambda z, _: {"complex": [_flat_float(z.real), _flat_float(z.imag)]},
            **dict.fromkeys((dict, list, tuple, OrderedDict), self._container),
            **dict.fromkeys((np.ndarray, np.memmap), self._array),
            bytes: self._bytes,
        }

    def node(self, value: Any, path: tuple[Any, ...]) -> Any:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise CheckpointError(
                f"{place(path)}: more than {NODES_MAX} values outside arrays. Store long lists of "
                "numbers as NumPy arrays."
            )
        known = self._kinds.get(type(value))
        if known is not None:
            return known(value, path)
        if isinstance(value, np.generic):
            return self._scalar(value, path)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        jax = sys.modules.get("jax")
        if jax is not None and isinstance(value, jax.Array):
            return self._jax(value, path)
        name = _type_name(value)
        hint = _HINTS.get(name, f"a state may hold {_SUPPORTED}")
        raise CheckpointError(f"{place(path)}: {name} cannot be saved; {hint}.")

    def _container(self, value: Any, path: tuple[Any, ...]) -> Any:
        key = id(value)
        if key in self._finished:
            return {"same": self._finished[key]}
        if key in self._open:
            raise CheckpointError(
                f"{place(path)}: this {type(value).__name__} contains itself; a state is a tree"
            )
        if len(path) >= DEPTH_MAX:
            raise CheckpointError(f"{place(path)[:200]}…: nested deeper than {DEPTH_MAX}")
        self._open.add(key)
        if isinstance(value, dict):
            node = self._dict(value, path)
        else:
            items = [self.node(item, (*path, i)) for i, item in enumerate(value)]
            node = items if type(value) is list else {"tuple": items}
        self._open.discard(key)
        self._finished[key] = len(self._finished)
        self._alive.append(value)
        return node

    def _dict(self, value: dict[Any, Any], path: tuple[Any, ...]) -> Any:
        pairs = []
        for key, item in value.items():
            if type(key) is not str and type(key) is not int:
                raise CheckpointError(
                    f"{place(path)}: the key {key!r:.60} is a {_type_name(key)}; keys of a saved "
                    "dict are str or int"
                )
            flat_key = _flat_int(key) if isinstance(key, int) else key
            pairs.append([flat_key, self.node(item, (*path, key))])
        if type(value) is dict:
            return {"dict": pairs}
        # torch keeps the versions of a module's layout as an attribute of the state_dict.
        extra = getattr(value, "_metadata", None)
        node = {"ordered": pairs}
        return node | {"metadata": self.node(extra, (*path, "_metadata"))} if extra else node

    def _scalar(self, value: np.generic, path: tuple[Any, ...]) -> Any:
        if value.dtype.kind not in "biufcmMSU":
            raise CheckpointError(f"{place(path)}: {_type_name(value)} cannot be saved")
        # NumPy gives an empty string one NUL; the text itself says it exactly.
        if isinstance(value, np.str_):
            raw = str(value).encode("utf-32-le", "surrogatepass")
        else:
            raw = bytes(value) if isinstance(value, np.bytes_) else value.tobytes()
        return {"scalar": base64.b64encode(raw).decode("ascii"), "dtype": value.dtype.str}

    def _array(self, value: npt.NDArray[Any], path: tuple[Any, ...]) -> Any:
        # Two array objects over the same numbers are one array, as for tensors.
        address = value.__array_interface__["data"][0]
        key = (address, value.shape, value.strides, value.dtype) if value.size else id(value)
        if key not in self._known:
            leaf, dtype = numpy_leaf(value, path)
            node = {"array": self._add(leaf, path)}
            self._remember(key, value, node | {"dtype": dtype} if dtype else node)
        return self._known[key]

    def _bytes(self, value: bytes, path: tuple[Any, ...]) -> Any:
        if len(value) <= _INLINE_BYTES_MAX:
            return {"bytes": base64.b64encode(value).decode("ascii")}
        key = id(value)
        if key not in self._known:
            leaf, _ = numpy_leaf(np.frombuffer(value, np.uint8), path)
            self._remember(key, value, {"blob": self._add(leaf, path)})
        return self._known[key]

    def _tensor(self, value: Any, path: tuple[Any, ...]) -> Any:
        key = self._tensors.identity(value)
        if key not in self._known:
            leaf, node = self._tensors.leaf(value, path)
            self._remember(key, value, {"tensor": self._add(leaf, path), **node})
        return self._known[key]

    def _jax(self, value: Any, path: tuple[Any, ...]) -> Any:
        key = id(value)  # it cannot be changed, so that the object says all
        if key not in self._known:
            leaf, node = jax_leaf(value, path)
            self._remember(key, value, {"jax": self._add(leaf, path), **node})
        return self._known[key]

    def _remember(self, key: Any, value: Any, node: dict[str, Any]) -> None:
        self._known[key] = node
        self._alive.append(value)

    def _add(self, leaf: Any, path: tuple[Any, ...]) -> str:
        """Keep the array under a readable name of its own that any safetensors reader takes."""
        text = ".".join(map(str, path)) or "state"
        if not text.isascii():
            text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        text = text[:_NAME_CHARS_MAX]
        name, n = text, 1
        while name in self.leaves or name in {"", "__metadata__"}:
            n += 1
            name = f"{text}~{n}"
        self.leaves[name] = leaf
        return name


def _flat_int(value: int) -> Any:
    return value if -_EXACT_INT <= value <= _EXACT_INT else {"int": f"{value:x}"}


def _flat_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}


class _Restorer:
    def __init__(self, leaf: Callable[[Reference], Any]) -> None:
        self._leaf = leaf
        self._finished: list[Any] = []
        self._made: dict[tuple[str, str], Any] = {}  # one object for an array that is shared
        self._kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "dict": lambda node: self._keep(self._pairs(node["dict"])),
            "ordered": self._ordered,
            "tuple": lambda node: self._keep(tuple(self.node(item) for item in node["tuple"])),
            "int": lambda node: int(node["int"], 16),
            "float": lambda node: struct.unpack(">d", bytes.fromhex(node["float"]))[0],
            "complex": lambda node: complex(*(self.node(part) for part in node["complex"])),
            "bytes": lambda node: base64.b64decode(node["bytes"], validate=True),
            "same": lambda node: self._finished[node["same"]],
            "scalar": _scalar,
        }

    def node(self, node: Any) -> Any:
        if isinstance(node, list):
            return self._keep([self.node(item) for item in node])
        if not isinstance(node, dict):
            return node
        for kind in _LEAVES:
            if kind in node:
                return self._array(kind, node)
        for kind, make in self._kinds.items():
            if kind in node:
                return make(node)
        raise ValueError(f"unknown node {sorted(node)!r:.80}")

    def _keep(self, value: Any) -> Any:
        self._finished.append(value)
        return value

    def _pairs(self, pairs: list[Any]) -> dict[Any, Any]:
        return {self.node(key): self.node(item) for key, item in pairs}

    def _ordered(self, node: dict[str, Any]) -> Any:
        value: Any = OrderedDict(self._pairs(node["ordered"]))
        if "metadata" in node:
            value._metadata = self.node(node["metadata"])
        return self._keep(value)

    def _array(self, kind: str, node: dict[str, Any]) -> Any:
        key = (kind, node[kind])
        if key not in self._made:
            self._made[key] = self._leaf(Reference(node[kind], node))
        return self._made[key]


def _scalar(node: dict[str, Any]) -> Any:
    dtype = parse_dtype(node["dtype"])
    raw = base64.b64decode(node["scalar"], validate=True)
    # Strings are made from their text: an array element would lose its trailing NULs.
    if dtype.kind == "S":
        return dtype.type(raw)
    if dtype.kind == "U":
        return dtype.type(raw.decode("utf-32-le", "surrogatepass"))
    return np.frombuffer(raw, dtype)[0]
