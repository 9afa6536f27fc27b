"""Array plumbing: one namespace per call, dtypes checked, NumPy kept cheap.

Everything above this file is written once, on the Python array API; here is the only place that
knows which library an array belongs to.
"""

from __future__ import annotations

import operator
import sys
from functools import cache, partial
from typing import Any

import numpy as np

from qigkernels._errors import ValidationError

__all__ = [
    "FLOAT64",
    "as_array",
    "epsilon",
    "is_numpy",
    "namespace",
    "product",
    "rank_floor",
    "same_namespace",
    "take_columns",
    "take_rows",
    "tiny",
    "to_numpy",
]

FLOAT64 = np.dtype(np.float64)
_REAL = frozenset((np.dtype(np.float32), FLOAT64))
_COMPLEX = frozenset((np.dtype(np.complex64), np.dtype(np.complex128)))
_REAL_NAMES = ("float32", "float64")
_COMPLEX_NAMES = ("complex64", "complex128")
_EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "complex64": 2.0**-23, "complex128": 2.0**-52}
_TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}


def is_numpy(array: Any) -> bool:
    """Whether the array is NumPy's."""
    return isinstance(array, np.ndarray)


def _dtype_name(array: Any) -> str:
    return _name_of(array.dtype)


@cache
def _name_of(dtype: Any) -> str:
    return str(dtype).rsplit(".", 1)[-1]


def epsilon(array: Any) -> float:
    """Distance from 1 to the next number of the array's precision."""
    return _EPSILON[_dtype_name(array)]


def rank_floor(values: Any) -> float:
    """Share of the largest eigenvalue at or below which an eigenvalue is the rounding of 0.

    max(n, 8)·ε: n·ε alone is what an eigensolver itself may leave of a 0 where n is small.
    """
    return max(8.0, float(values.shape[-1])) * epsilon(values)


def tiny(array: Any) -> float:
    """Smallest normal number of the array's real precision.

    Added to a sum of roots it changes no non-zero one (√ of the smallest subnormal is 1e15 times
    larger and more), and turns 0/0 into 0: exact, unlike the usual ε.
    """
    return _TINY[_dtype_name(array)]


def namespace(array: Any) -> Any:
    """The array API namespace of one array."""
    if isinstance(array, np.ndarray):
        return _numpy()
    from array_api_compat import array_namespace

    return array_namespace(array)


def _numpy() -> Any:
    # NumPy 2 is its own array API namespace; NumPy 1.26 needs the wrapper.
    if hasattr(np, "matrix_transpose"):
        return np
    from array_api_compat import numpy as wrapped

    return wrapped


def as_array(name: str, x: Any, *, complex_too: bool = False) -> Any:
    """`x` as an array of its own library; sequences of floats become NumPy arrays.

    Raises:
        ValidationError: not an array, or not of a floating dtype (integers are not widened in
            silence: a count is no probability).
    """
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "dtype") or isinstance(x, np.generic):
            x = _from_sequence(name, x)
        else:
            return _foreign(name, x, complex_too)
    if x.dtype in _REAL or (complex_too and x.dtype in _COMPLEX):
        return x
    raise _dtype_error(name, x, complex_too)


def _from_sequence(name: str, x: Any) -> Any:
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValidationError(
            f"{name} is no array: {error}", argument=name, value=type(x).__name__
        ) from None


def _foreign(name: str, x: Any, complex_too: bool) -> Any:
    from array_api_compat import is_array_api_obj

    if not is_array_api_obj(x):
        raise ValidationError(
            f"{name} is a {type(x).__module__}.{type(x).__qualname__}; expected an array of NumPy, "
            "torch, JAX or CuPy",
            argument=name,
            value=type(x).__name__,
        )
    found = _dtype_name(x)
    if found in _REAL_NAMES or (complex_too and found in _COMPLEX_NAMES):
        return x
    raise _dtype_error(name, x, complex_too)


def _dtype_error(name: str, x: Any, complex_too: bool) -> ValidationError:
    wanted = _REAL_NAMES + (_COMPLEX_NAMES if complex_too else ())
    return ValidationError(
        f"{name} of shape {tuple(x.shape)} has dtype {_dtype_name(x)}; "
        f"expected {' or '.join(wanted)}",
        argument=name,
        shape=tuple(x.shape),
        value=_dtype_name(x),
    )


def same_namespace(**arrays: Any) -> Any:
    """The one namespace of all the arrays.

    Raises:
        ValidationError: they come from different libraries or devices.
    """
    named = list(arrays.items())
    if all(isinstance(array, np.ndarray) for _, array in named):
        return _numpy()
    from array_api_compat import array_namespace, device

    try:
        xp = array_namespace(*(array for _, array in named))
    except TypeError:
        kinds = ", ".join(f"{name}: {type(a).__module__.split('.')[0]}" for name, a in named)
        raise ValidationError(
            f"arguments mix array libraries ({kinds}); convert them to one first",
            argument=named[0][0],
        ) from None
    places = {name: str(device(array)) for name, array in named}
    if len(set(places.values())) > 1:
        raise ValidationError(
            f"arguments lie on different devices ({places}); move them to one first",
            argument=named[0][0],
        )
    return xp


def product(*matrices: Any) -> Any:
    """The matrix product, from left to right, to the precision of its dtype.

    JAX's own `@` on a GPU rounds float32 to the 10 bits of TF32 first; torch does so only where
    `torch.set_float32_matmul_precision` was told to.
    """
    first, *rest = matrices
    multiply = operator.matmul
    if not isinstance(first, np.ndarray):
        from array_api_compat import is_jax_array

        if is_jax_array(first):
            multiply = partial(sys.modules["jax"].numpy.matmul, precision="highest")
    for matrix in rest:
        first = multiply(first, matrix)
    return first


def take_rows(xp: Any, source: Any, index: Any) -> Any:
    """The rows (first axis) of `source` that `index` (NumPy integers) names."""
    if isinstance(source, np.ndarray):
        return source.take(index, axis=0)
    return xp.take(source, xp.asarray(index, device=source.device), axis=0)


def take_columns(xp: Any, source: Any, index: Any) -> Any:
    """The columns (last axis) of `source` that `index` (NumPy integers) names."""
    if isinstance(source, np.ndarray):
        return source.take(index, axis=-1)
    return xp.take(source, xp.asarray(index, device=source.device), axis=-1)


def to_numpy(array: Any) -> Any:
    """A NumPy copy or view of the array, for messages and for code that is NumPy's alone."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    elif hasattr(array, "get"):
        array = array.get()
    return np.asarray(array)
