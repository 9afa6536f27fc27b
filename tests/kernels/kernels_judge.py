"""The judge: every quantity once more, from its definition, in 50 decimal digits; and cases.

Entries of the inputs are taken as exact binary numbers; states and distributions are divided by
their exact trace or sum. Eigenvalues at or below max(n, 8)·ε·λ_max are the rounding of a
rank-deficient state and count as 0, as `docs/geometric-validity.md` says.
"""

from __future__ import annotations

import itertools

import mpmath as mp
import numpy as np

mp.mp.dps = 50


def make_state(rng, n, *, spectrum=None, real=False):
    """A random state `(n, n)`; of the spectrum given, or Hilbert-Schmidt distributed."""
    G = rng.standard_normal((n, n))
    if not real:
        G = G + 1j * rng.standard_normal((n, n))
    if spectrum is None:
        rho = G @ G.conj().T
    else:
        Q, _ = np.linalg.qr(G)
        rho = (Q * np.asarray(spectrum)) @ Q.conj().T
    rho = 0.5 * (rho + rho.conj().T)
    return rho / np.trace(rho).real


def exact(array):
    """A NumPy array as an mpmath matrix, without rounding."""
    return mp.matrix([[mp.mpc(complex(x).real, complex(x).imag) for x in row] for row in array])


def norm(matrix):
    return mp.sqrt(mp.fsum(abs(x) ** 2 for x in matrix))


def roots(p):
    values = [mp.mpf(float(x)) for x in p]
    total = mp.fsum(values)
    return [mp.sqrt(x / total) for x in values]


def fisher_rao(p, q):
    u, v = roots(p), roots(q)
    gap = mp.sqrt(mp.fsum((a - b) ** 2 for a, b in zip(u, v, strict=True)))
    total = mp.sqrt(mp.fsum((a + b) ** 2 for a, b in zip(u, v, strict=True)))
    return 4 * mp.atan2(gap, total)


def frechet_mean(P, weights=None):
    V = [roots(p) for p in P]
    k, n = len(V), len(V[0])
    w = [mp.mpf(1) / k] * k if weights is None else [mp.mpf(float(x)) for x in weights]
    u = [mp.fsum(w[i] * V[i][j] for i in range(k)) for j in range(n)]
    for _ in range(400):
        size = mp.sqrt(mp.fsum(x * x for x in u))
        u = [x / size for x in u]
        step = [mp.mpf(0)] * n
        for i in range(k):
            c = mp.fsum(a * b for a, b in zip(V[i], u, strict=True))
            s = mp.sqrt(max(mp.mpf(0), 1 - c * c))
            f = mp.acos(min(c, mp.mpf(1))) / s if s > 0 else mp.mpf(1)
            step = [step[j] + w[i] * f * (V[i][j] - c * u[j]) for j in range(n)]
        length = mp.sqrt(mp.fsum(x * x for x in step))
        if length < mp.mpf(10) ** -45:
            break
        u = [mp.cos(length) * u[j] + mp.sin(length) / length * step[j] for j in range(n)]
    return [x * x for x in u]


def state(rho):
    matrix = exact(rho)
    return matrix / mp.re(sum(matrix[i, i] for i in range(matrix.rows)))


def spectrum(rho):
    """Eigenvalues and vectors of a state, rounding-level eigenvalues set to 0."""
    values, vectors = mp.eighe(state(rho))
    floor = max(8, len(values)) * mp.mpf(2) ** -52 * max(values)
    kept = [v if v > floor else mp.mpf(0) for v in values]
    total = mp.fsum(kept)
    return [v / total for v in kept], vectors


def root(rho):
    values, vectors = spectrum(rho)
    return vectors * mp.diag([mp.sqrt(v) for v in values]) * vectors.H


def bures(rho, sigma):
    """√F, Bures angle and Bures distance."""
    return bures_of_roots(root(rho), root(sigma))


def bures_of_roots(A, B):
    """The same from the Hermitian roots of both states.

    Eigenvalues of M†M give √F to 25 digits, which arccos keeps but for near pairs: those go by
    the singular vectors.
    """
    M = A.H * B
    squares = mp.eighe(M.H * M, eigvals_only=True)
    overlap = mp.fsum(mp.sqrt(max(x, mp.mpf(0))) for x in squares)
    if overlap < 1 - mp.mpf(10) ** -6:
        angle = mp.acos(overlap)
    else:
        P, s, Q = mp.svd_c(M)
        U = P * Q
        overlap = mp.fsum(s)
        angle = 2 * mp.atan2(norm(A * U - B), norm(A * U + B))
    return overlap, angle, 2 * mp.sin(angle / 2)


def entropy(rho):
    values, _ = spectrum(rho)
    return -mp.fsum(v * mp.log(v) for v in values if v > 0)


def qfi(rho, drho):
    """QFI matrix of the derivatives `(p, n, n)`."""
    values, vectors = spectrum(rho)
    turned = [vectors.H * exact(d) * vectors for d in drho]
    n, p = len(values), len(drho)
    found = mp.matrix(p, p)
    for i, j in itertools.product(range(p), repeat=2):
        found[i, j] = mp.fsum(
            2 * mp.re(turned[i][k, m] * turned[j][m, k]) / (values[k] + values[m])
            for k in range(n)
            for m in range(n)
            if values[k] + values[m] > 0
        )
    return found


def log_det(matrix):
    return mp.log(mp.re(mp.det(matrix)))


def phi_gaussian(cov, groups):
    """Φ of a Gaussian by going through every cut; and the least value of each cut."""
    full = exact(cov)

    def part(indices):
        return mp.matrix([[full[i, j] for j in indices] for i in indices])

    m = len(groups)
    whole = log_det(part([i for g in groups for i in g]))
    best = None
    for code in range(1, 2 ** (m - 1)):
        far = [i for k in range(1, m) if code >> (k - 1) & 1 for i in groups[k]]
        near = [i for k in range(m) if k == 0 or not code >> (k - 1) & 1 for i in groups[k]]
        value = (log_det(part(near)) + log_det(part(far)) - whole) / 2
        best = value if best is None else min(best, value)
    return best


def error(found, wanted):
    """|found − wanted| in 50 digits, as a float."""
    return float(abs(mp.mpf(float(found)) - wanted))
