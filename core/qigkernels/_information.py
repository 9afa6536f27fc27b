"""Quantum Fisher information (symmetric logarithmic derivative).

Sources: S. L. Braunstein, C. M. Caves, Phys. Rev. Lett. 72 (1994) 3439,
doi:10.1103/PhysRevLett.72.3439; M. G. A. Paris, Int. J. Quantum Inf. 7 (2009) 125,
doi:10.1142/S0219749909004839.
"""

from __future__ import annotations

from typing import Any

from qigkernels._arrays import as_array, epsilon, product, rank_floor, same_namespace
from qigkernels._density import check_density, check_hermitian, check_spectrum
from qigkernels._errors import ValidationError
from qigkernels._extended import residual_product
from qigkernels._factors import adjoint, real_diagonal
from qigkernels.validation import check_last_axes, sum_tolerance

__all__ = ["qfi_matrix", "qfi_pure", "sld"]


def qfi_matrix(rho: Any, drho: Any, *, check: bool = True) -> Any:
    """SLD quantum Fisher information F_ij = Re Tr(∂ᵢρ L_j), ρL + Lρ = 2∂ρ.

    In ρ's eigenbasis F_ij = Σ_kl 2 Re⟨k|∂ᵢρ|l⟩⟨l|∂ⱼρ|k⟩/(λ_k + λ_l), pairs with λ_k + λ_l at
    rounding level dropped. In float64 the eigenvalues and the equation are corrected by residuals
    in extended precision, so that an eigenvalue of 1e-12 keeps its digits. F = 4·(Bures metric).

    Args:
        rho: `(..., n, n)`. drho: `(..., p, n, n)`, Hermitian, traceless: ∂ρ/∂θ₁ … ∂ρ/∂θ_p.

    Returns:
        `(..., p, p)`, real, symmetric, positive semidefinite.

    Raises:
        ValidationError: rho is no state, or drho no Hermitian traceless derivative of its shape.

    Source: Braunstein & Caves 1994; Paris 2009.
    """
    rho, drho, xp = _checked(rho, drho, check)
    found = _logarithmic(xp, rho, drho)
    return _gram(xp, *found)


def sld(rho: Any, drho: Any, *, check: bool = True) -> Any:
    """Symmetric logarithmic derivatives: ½(ρL_i + L_iρ) = ∂ᵢρ, `(..., p, n, n)`.

    Where ρ has no support on either side the derivative is 0.

    Source: Paris 2009.
    """
    rho, drho, xp = _checked(rho, drho, check)
    _, inner, vectors = _solve(xp, rho, drho)
    vectors = vectors[..., None, :, :]
    return product(vectors, inner, adjoint(xp, vectors))


def qfi_pure(psi: Any, dpsi: Any) -> Any:
    """QFI of kets: F_ij = 4 Re(⟨∂ᵢψ|∂ⱼψ⟩ − ⟨∂ᵢψ|ψ⟩⟨ψ|∂ⱼψ⟩).

    Computed from the parts of ∂ψ orthogonal to ψ, which loses nothing where they nearly coincide.

    Args:
        psi: `(..., n)`, ‖ψ‖ = 1. dpsi: `(..., p, n)`.

    Returns:
        `(..., p, p)`, real, positive semidefinite.

    Raises:
        ValidationError: ψ is not normalized, or shapes that do not go together.

    Source: Paris 2009, eq. 12.
    """
    psi = as_array("psi", psi, complex_too=True)
    dpsi = as_array("dpsi", dpsi, complex_too=True)
    xp = same_namespace(psi=psi, dpsi=dpsi)
    check_last_axes("psi", psi, 1)
    check_last_axes("dpsi", dpsi, 2, square=False)
    if dpsi.shape[-1] != psi.shape[-1]:
        raise ValidationError(
            f"dpsi of shape {tuple(dpsi.shape)} does not go with psi of shape "
            f"{tuple(psi.shape)}; expected (..., p, {psi.shape[-1]})",
            argument="dpsi",
            shape=tuple(dpsi.shape),
        )
    norm = xp.sqrt(xp.sum(xp.abs(psi) ** 2, axis=-1))
    off = float(xp.max(xp.abs(norm - 1.0)))
    if not off <= sum_tolerance(psi):
        raise ValidationError(
            f"psi of shape {tuple(psi.shape)} is not normalized: its norm is off 1 by {off!r}",
            argument="psi",
            shape=tuple(psi.shape),
            value=off,
        )
    ket = (psi / xp.astype(norm, psi.dtype)[..., None])[..., None, :]
    overlap = xp.sum(xp.conj(ket) * dpsi, axis=-1, keepdims=True)
    across = dpsi - overlap * ket
    # Once more: what is left along ψ is the rounding of the first projection.
    across = across - xp.sum(xp.conj(ket) * across, axis=-1, keepdims=True) * ket
    gram = product(xp.conj(across), xp.matrix_transpose(across))
    found = 4.0 * _real(xp, gram)
    return 0.5 * (found + xp.matrix_transpose(found))


def _real(xp: Any, x: Any) -> Any:
    return xp.real(x) if xp.isdtype(x.dtype, "complex floating") else x


def _checked(rho: Any, drho: Any, check: bool) -> tuple[Any, Any, Any]:
    rho = as_array("rho", rho, complex_too=True)
    drho = as_array("drho", drho, complex_too=True)
    xp = same_namespace(rho=rho, drho=drho)
    check_last_axes("rho", rho, 2)
    check_last_axes("drho", drho, 3, square=True)
    if drho.shape[-1] != rho.shape[-1] or tuple(drho.shape[:-3]) != tuple(rho.shape[:-2]):
        raise ValidationError(
            f"drho of shape {tuple(drho.shape)} does not go with rho of shape "
            f"{tuple(rho.shape)}; expected (..., p, n, n) over the same batch",
            argument="drho",
            shape=tuple(drho.shape),
        )
    if check:
        tolerance = sum_tolerance(rho)
        check_density("rho", rho, tolerance, spectrum=False)
        check_hermitian("drho", drho, tolerance, trace=0.0)
    common = xp.result_type(rho, drho)
    return xp.astype(rho, common), xp.astype(drho, common), xp


def _logarithmic(xp: Any, rho: Any, drho: Any) -> tuple[Any, Any]:
    derivative, inner, _ = _solve(xp, rho, drho)
    return derivative, inner


def _gram(xp: Any, derivative: Any, inner: Any) -> Any:
    """Re Tr(D_i L_j) of Hermitian D, L, symmetrised against rounding."""
    shape = tuple(derivative.shape)
    flat = (*shape[:-2], shape[-1] * shape[-2])
    left, right = xp.reshape(derivative, flat), xp.reshape(inner, flat)
    found = _real(xp, product(xp.conj(left), xp.matrix_transpose(right)))
    return 0.5 * (found + xp.matrix_transpose(found))


def _solve(xp: Any, rho: Any, drho: Any) -> tuple[Any, Any, Any]:
    """D = T†∂ρT, the solution L̃ of the Lyapunov equation, and T, the computed eigenvectors.

    T is taken as it is, not quite unitary: with S = T†ρT and G = T†T in extended precision,
    S·L̃·G + G·L̃·S = 2D holds exactly for L = T·L̃·T†, and a few Jacobi steps solve it, S being
    diagonal and G the identity but for rounding.
    """
    values, vectors = xp.linalg.eigh(rho)
    check_spectrum("rho", rho, values)
    n = rho.shape[-1]
    eps = epsilon(values)
    floor = rank_floor(values) * xp.max(values, axis=-1, keepdims=True)
    exact = eps < 1e-10
    if exact:
        similar = _sandwich(xp, rho, vectors)
        refined = real_diagonal(xp, similar)
        values = xp.where(values > floor, refined, xp.zeros_like(values))
    else:
        values = xp.where(values > floor, values, xp.zeros_like(values))
    sums = values[..., :, None] + values[..., None, :]
    kept = xp.astype(sums > 0.0, sums.dtype)
    weight = (kept / (sums + (1.0 - kept)))[..., None, :, :]
    turn = vectors[..., None, :, :]
    if not exact:
        derivative = product(adjoint(xp, turn), drho, turn)
        return derivative, 2.0 * derivative * weight, vectors
    derivative = _sandwich(xp, drho, turn)
    one = xp.eye(n, dtype=rho.dtype, device=_device(rho))
    unit = xp.broadcast_to(one, tuple(rho.shape))
    gram = -residual_product(xp, unit, adjoint(xp, vectors), adjoint(xp, vectors))
    # What is left beside the diagonal of S inside the support, and beside 1 in G.
    support = xp.astype(values > 0.0, values.dtype)
    inside = support[..., :, None] * support[..., None, :]
    beside = ((similar - similar * one) * inside)[..., None, :, :]
    gram = gram[..., None, :, :]
    row = xp.astype(values, rho.dtype)[..., None, :, None]
    inner = 2.0 * derivative * weight
    for _ in range(4):
        first = product(beside, inner) + row * product(inner, gram)
        coupling = first + adjoint(xp, first)
        inner = (2.0 * derivative - coupling) * weight
    return derivative, inner, vectors


def _device(x: Any) -> Any:
    from array_api_compat import device

    return device(x)


def _sandwich(xp: Any, matrix: Any, turn: Any) -> Any:
    """T†MT of Hermitian M with both products in extended precision, rounded once."""
    back = adjoint(xp, turn)
    first = product(matrix, turn)
    first_rest = -residual_product(xp, first, matrix, back)
    found = product(back, first)
    rest = product(back, first_rest) - residual_product(xp, found, back, adjoint(xp, first))
    found = found + rest
    return 0.5 * (found + adjoint(xp, found))
