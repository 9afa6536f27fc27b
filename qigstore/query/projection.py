"""A path of basins in two or three dimensions, as true to its lengths as those allow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qigkernels import simplex

__all__ = ["project_path"]

Floats = NDArray[np.float64]


def project_path(roots: Floats, dimensions: int) -> tuple[Floats, Floats]:
    """Principal components of the path in the plane tangent to the sphere at its centre.

    vᵢ = 2θᵢ·(xᵢ − cos θᵢ·u)/sin θᵢ with u = √(Fréchet mean) and θᵢ the angle of xᵢ = √pᵢ and u:
    |vᵢ| is the Fisher-Rao distance of pᵢ from the centre.

    Args:
        roots: (m, n), √p. dimensions: d.

    Returns:
        The coordinates (m, d), in radians, and the share of the variance along each axis (d,). The
        sign of an axis is that which makes its greatest coordinate positive.
    """
    path, explained = np.zeros((len(roots), dimensions)), np.zeros(dimensions)
    if not len(roots):
        return path, explained
    unit = roots / np.linalg.norm(roots, axis=1, keepdims=True)
    centre = np.sqrt(simplex.frechet_mean(unit**2, check=False))
    apart, together = (np.linalg.norm(v, axis=1) for v in (unit - centre, unit + centre))
    angle = 2.0 * np.arctan2(apart, together)
    across = unit - (unit @ centre)[:, None] * centre
    length = np.linalg.norm(across, axis=1)
    scale = np.divide(2.0 * angle, length, out=np.zeros_like(length), where=length > 0.0)
    tangent = across * scale[:, None]
    _, sizes, axes = np.linalg.svd(tangent - tangent.mean(axis=0), full_matrices=False)
    used = min(dimensions, len(sizes))
    path[:, :used] = tangent @ axes[:used].T
    most = path[np.abs(path).argmax(axis=0), np.arange(dimensions)]
    path *= np.where(most < 0.0, -1.0, 1.0)
    total = float((sizes**2).sum())
    if total > 0.0:
        explained[:used] = sizes[:used] ** 2 / total
    return path, explained
