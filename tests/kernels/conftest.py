"""Shared fixtures of the geometry tests: one seeded generator a test, its seed always shown."""

from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
from kernels_judge import make_state


@pytest.fixture
def rng(request):
    """A generator of its own for every test; QIGKERNELS_SEED=<n> tries other cases."""
    base = int(os.environ.get("QIGKERNELS_SEED", "0"))
    seed = zlib.crc32(request.node.nodeid.encode()) + base
    print(f"seed {seed} (QIGKERNELS_SEED={base})")
    return np.random.default_rng(seed)


@pytest.fixture
def random_state(rng):
    """`random_state(n, spectrum=None, real=False)` from the test's own generator."""
    return lambda n, **options: make_state(rng, n, **options)
