"""Φ of a joint quantum state; part of `qigkernels.integration`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qigkernels._arrays import as_array, to_numpy
from qigkernels._density import check_density, check_spectrum
from qigkernels._errors import ValidationError
from qigkernels._phi import Phi, ordered
from qigkernels.validation import check_last_axes, sum_tolerance

__all__ = ["phi_quantum"]


def phi_quantum(rho: Any, dims: Sequence[int]) -> Phi:
    """Φ of a joint state: min over cuts A|B of S(A) + S(B) − S(AB), nats.

    Every cut is evaluated: the size of a joint state bounds the number of its parts. From separate
    reduced states Φ is undefined, and a list of them is refused.

    Args:
        rho: `(n, n)`, the joint state. dims: dimensions of its parts, product n, at least two.

    Returns:
        Φ, φ = Φ/(2 ln min(d_A, d_B)) in [0, 1], and the cut.

    Raises:
        ValidationError: not one state, or dims that do not go with it.

    Source: Hidaka & Oizumi 2018, doi:10.1371/journal.pone.0201126.

    >>> bell = np.zeros((4, 4)); bell[[0, 0, 3, 3], [0, 3, 0, 3]] = 0.5
    >>> round(phi_quantum(bell, [2, 2]).value, 6)   # 2 ln 2
    1.386294
    """
    rho = to_numpy(as_array("rho", rho, complex_too=True))
    sizes = tuple(int(d) for d in dims)
    n = math.prod(sizes)
    if rho.ndim != 2 or rho.shape != (n, n) or len(sizes) < 2 or min(sizes) < 2:
        raise ValidationError(
            f"rho of shape {rho.shape} is no joint state of parts {list(sizes)}: expected "
            f"({n}, {n}) and at least two parts of dimension 2 or more (reduced states of the "
            "parts do not determine Φ)",
            argument="rho",
            shape=rho.shape,
        )
    check_last_axes("rho", rho, 2)
    check_density("rho", rho, sum_tolerance(rho), spectrum=False)
    values = np.linalg.eigvalsh(rho)
    check_spectrum("rho", rho, values)
    whole = _entropy(values)
    m = len(sizes)
    pure = values[-1] > 1.0 - 1e-14
    best, side = math.inf, [1]
    for code in range(1, 2 ** (m - 1)):
        far = [k + 1 for k in range(m - 1) if code >> k & 1]
        near = [k for k in range(m) if k not in far]
        # Both sides of a pure state have the same entropy: the smaller one is cheaper.
        small, large = sorted((near, far), key=lambda kept: math.prod(sizes[k] for k in kept))
        one = _reduced_entropy(rho, sizes, small)
        information = 2.0 * one if pure else one + _reduced_entropy(rho, sizes, large) - whole
        if information < best:
            best, side = information, far
    value = max(0.0, best)
    far_dim = math.prod(sizes[k] for k in side)
    phi = value / (2.0 * math.log(min(far_dim, n // far_dim)))
    rest = [k for k in range(m) if k not in side]
    return Phi(value, min(1.0, phi), ordered(side, rest), value)


def _reduced_entropy(rho: Any, sizes: tuple[int, ...], kept: list[int]) -> float:
    m = len(sizes)
    gone = [k for k in range(m) if k not in kept]
    order = kept + gone
    tensor = rho.reshape(sizes + sizes).transpose(order + [m + k for k in order])
    d = math.prod(sizes[k] for k in kept)
    parts = tensor.reshape(d, len(rho) // d, d, len(rho) // d)
    return _entropy(np.linalg.eigvalsh(np.einsum("ikjk->ij", parts)))


def _entropy(values: Any) -> float:
    positive = values[values > 0.0]
    return -float(positive @ np.log(positive))
