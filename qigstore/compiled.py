"""The classes of this package that are written in C as well, and which of the two is used.

They are compiled as the package is installed (`hatch_build.py`), where a compiler is found. Each
does what its twin in Python does, to the bit. `QIGSTORE_PURE_PYTHON=1` takes the twins;
`qigstore version` says which are in use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TypeVar

__all__ = ["compiled_or"]

T = TypeVar("T")


def compiled_or(twin: type[T], module: str) -> type[T]:
    """The class of the module in C; its twin in Python where that was not compiled."""
    if os.environ.get("QIGSTORE_PURE_PYTHON"):
        return twin
    try:
        made = import_module(module)
    except ImportError:
        return twin
    found: type[T] = getattr(made, twin.__name__.removeprefix("PurePython"))
    return found
