"""What of this package is written in C as well, and which of the two is used.

It is compiled as the package is installed (`hatch_build.py`), where a compiler is found. Each
class and function does what its twin in Python does, to the bit. `QIGSTORE_PURE_PYTHON=1` takes the
twins; `qigstore version` says which are in use.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

__all__ = ["all_compiled", "compiled_or"]

T = TypeVar("T")

_PARTS = (
    "qigstore.recording._short_way",
    "qigstore.recording.spool._frames",
    "qigstore.safety._check",
    "qigstore.safety._statistic",
)


def compiled_or(twin: T, module: str, name: str) -> T:
    """What the module in C has by that name; its twin in Python where that was not compiled."""
    if _unwanted():
        return twin
    try:
        made = import_module(module)
    except ImportError:
        return twin
    found: T = getattr(made, name)
    return found


def all_compiled() -> bool:
    """Whether everything that is written in C is in use."""
    return not _unwanted() and all(find_spec(part) is not None for part in _PARTS)


def _unwanted() -> bool:
    return bool(os.environ.get("QIGSTORE_PURE_PYTHON"))
