"""Fill a state that exists, such as `model.state_dict()`, from one that was loaded.

Everything is compared first: where names, shapes or dtypes differ, nothing is changed and the
error names each difference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from qigstore.checkpoints.arrays import NO_NUMPY, place
from qigstore.checkpoints.tree import nearest
from qigstore.errors import CheckpointMismatch

__all__ = ["fill"]


def fill(target: Any, loaded: Any) -> Any:
    """Copy the arrays of `loaded` into those of `target`, in place; set what is no array.

    Returns:
        `target`; a new value where it cannot be changed in place (tuples, numbers, JAX arrays).

    Raises:
        CheckpointMismatch: they do not fit; `target` is as it was.
    """
    found = list(_differences(target, loaded, ()))
    if found:
        raise CheckpointMismatch(
            f"the checkpoint does not fit `into` in {len(found)} places; nothing was changed. Load "
            "without `into` and take what fits", found,
        )  # fmt: skip
    return _filled(target, loaded)


def _differences(target: Any, loaded: Any, path: tuple[Any, ...]) -> Iterator[str]:
    here = place(path)
    wanted, found = _kind(target), _kind(loaded)
    if wanted != found:
        yield f"{here}: expected {wanted} ({_name(target)}), found {found} ({_name(loaded)})"
    elif wanted == "a dict":
        yield from _dict_differences(target, loaded, path)
    elif wanted == "a list":
        if len(target) != len(loaded):
            yield f"{here}: expected {len(target)} items, found {len(loaded)}"
        for i, (one, other) in enumerate(zip(target, loaded, strict=False)):
            yield from _differences(one, other, (*path, i))
    elif wanted == "an array":
        for what, get in (("shape", _shape), ("dtype", _dtype)):
            if get(target) != get(loaded):
                yield f"{here}: {what}: expected {get(target)}, found {get(loaded)}"
        if isinstance(target, np.ndarray) and not target.flags.writeable:
            yield f"{here}: the array of `into` is read-only"


def _dict_differences(
    target: dict[Any, Any], loaded: dict[Any, Any], path: tuple[Any, ...]
) -> Iterator[str]:
    for key, value in target.items():
        if key in loaded:
            yield from _differences(value, loaded[key], (*path, key))
        else:
            yield f"{place((*path, key))}: not in the checkpoint{nearest(key, loaded)}"
    for key in loaded:
        if key not in target:
            yield f"{place((*path, key))}: in the checkpoint only{nearest(key, target)}"


def _filled(target: Any, loaded: Any) -> Any:
    kind = _kind(target)
    if kind == "an array":
        return _copied(target, loaded)
    if kind == "a dict":
        for key in target:
            target[key] = _filled(target[key], loaded[key])
        return target
    if kind == "a list":
        items = [_filled(one, other) for one, other in zip(target, loaded, strict=True)]
        if isinstance(target, list):
            target[:] = items
            return target
        return target._make(items) if hasattr(target, "_make") else tuple(items)
    return loaded


def _copied(target: Any, loaded: Any) -> Any:
    if isinstance(target, np.ndarray):
        np.copyto(target, np.asarray(loaded.detach() if _is("torch", "Tensor", loaded) else loaded))
        return target
    if _is("torch", "Tensor", target):
        torch = sys.modules["torch"]
        with torch.no_grad():
            if not _is("torch", "Tensor", loaded):
                loaded = torch.from_numpy(np.array(loaded))
            target.copy_(loaded)
        return target
    if _is("torch", "Tensor", loaded):
        loaded = loaded.detach().numpy()
    return sys.modules["jax"].device_put(loaded, target.sharding)


def _is(module: str, kind: str, value: Any) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, kind))


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a dict"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, np.ndarray) or _is("torch", "Tensor", value) or _is("jax", "Array", value):
        return "an array"
    return "a value"


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _dtype(value: Any) -> str:
    """The dtype's name; torch's that NumPy lacks keep its prefix: no other library reads them."""
    name = str(value.dtype)
    short = name.removeprefix("torch.")
    return name if short in NO_NUMPY else short
