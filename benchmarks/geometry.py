"""`python -m benchmarks.geometry`: the geometry core against its peers, in one interleaved run.

Every line is a ratio of best times taken in turns in this process, so that a busy machine slows
both sides alike. PennyLane, QuTiP, pyRiemann and JAX are compared where they are installed
(extra `geometry-bench`); NumPy, SciPy and the bare LAPACK call always are.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import timeit
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402  (after the thread count is set)

from qigkernels import batch, fisher, integration, simplex, states  # noqa: E402

__all__ = ["main"]

Timed = dict[str, Callable[[], Any]]


def best_of(calls: Timed, rounds: int) -> dict[str, float]:
    """Best seconds of each call, taken in turns of a millisecond or one call each."""
    number = {}
    for name, call in calls.items():
        call()
        number[name] = max(1, int(1e-3 / timeit.timeit(call, number=1)))
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            one = timeit.timeit(call, number=number[name]) / number[name]
            found[name] = min(found[name], one)
    return found


def line(label: str, ours: float, peers: dict[str, float], per: int, unit: float = 1e6) -> float:
    """Print ours per item, and how many times as long each peer takes; the least such ratio."""
    suffix = {1e6: "µs", 1e9: "ns"}[unit]
    ratios = {name: seconds / ours for name, seconds in peers.items()}
    shown = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    print(f"{label:<46} {ours / per * unit:9.2f} {suffix}   {shown}")
    return min(ratios.values(), default=float("nan"))


def random_states(rng: np.random.Generator, count: int, n: int, rank: int) -> Any:
    G = rng.standard_normal((count, n, rank)) + 1j * rng.standard_normal((count, n, rank))
    rho = G @ G.conj().swapaxes(-1, -2)
    return rho / np.trace(rho, axis1=-2, axis2=-1).real[:, None, None]


def textbook(rho: Any, sigma: Any) -> Any:
    """Bures distance as it is usually written: two eigendecompositions, batched."""
    values, vectors = np.linalg.eigh(rho)
    half = (vectors * np.sqrt(values.clip(min=0.0))[:, None, :]) @ vectors.conj().swapaxes(-1, -2)
    inner = np.linalg.eigvalsh(half @ sigma @ half)
    return np.sqrt((2.0 - 2.0 * np.sqrt(inner.clip(min=0.0)).sum(axis=-1)).clip(min=0.0))


def bures_peers(rho: Any, sigma: Any) -> Timed:
    """Whatever is installed that computes Bures distance or fidelity of a batch of states."""
    found: Timed = {"eigh+eigvalsh": lambda: textbook(rho, sigma)}
    if importlib.util.find_spec("pennylane"):
        qml: Any = importlib.import_module("pennylane")
        found["PennyLane"] = lambda: qml.math.fidelity(rho, sigma)
    if importlib.util.find_spec("pyriemann"):
        riemann: Any = importlib.import_module("pyriemann.geometry.distance")
        found["pyRiemann"] = lambda: riemann.distance_wasserstein(rho, sigma)
    if importlib.util.find_spec("qutip"):
        qutip: Any = importlib.import_module("qutip")
        pairs = [(qutip.Qobj(a), qutip.Qobj(b)) for a, b in zip(rho, sigma, strict=True)]
        found["QuTiP (loop)"] = lambda: [qutip.fidelity(a, b) for a, b in pairs]
    return {name: call for name, call in found.items() if answers(name, call)}


def answers(name: str, call: Callable[[], Any]) -> bool:
    """Whether the peer takes these states at all; a refusal is printed, not timed."""
    try:
        call()
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        print(f"    {name} refuses the next line's states: {str(error)[:60]}")
        return False
    return True


def bench_states(rng: np.random.Generator, rounds: int) -> None:
    print("\nBures distance of a batch of pairs; peers give fidelity or distance")
    for n, count in ((2, 4000), (4, 2000), (16, 200), (64, 8)):
        full, wide = (random_states(rng, count, n, k) for k in (n, 2 * n))
        near = 0.999 * wide + 0.001 * random_states(rng, count, n, n)
        tiny = (1.0 - 1e-12) * wide + 1e-12 * full
        low, pure = (random_states(rng, count, n, k) for k in (max(1, n // 2), 1))
        kinds = {
            "full rank": (full, random_states(rng, count, n, n)),
            "well-conditioned": (wide, random_states(rng, count, n, 2 * n)),
            "near (1e-3)": (wide, near),
            "near (1e-12)": (wide, tiny),
            "low rank": (low, random_states(rng, count, n, max(1, n // 2))),
            "pure": (pure, random_states(rng, count, n, 1)),
        }
        for kind, (rho, sigma) in kinds.items():
            calls: Timed = {"ours": partial(states.bures_distance, rho, sigma)}
            peers = bures_peers(rho, sigma)
            if kind != "full rank":
                peers.pop("QuTiP (loop)", None)
            calls |= peers
            calls["LAPACK eigvalsh"] = partial(np.linalg.eigvalsh, rho)
            times = best_of(calls, rounds)
            line(f"n = {n:<2} {kind}", times.pop("ours"), times, count)


def bench_simplex(rng: np.random.Generator, rounds: int) -> None:
    print("\nSimplex, n = 64")
    P, Q = rng.dirichlet(np.ones(64), 1000), rng.dirichlet(np.ones(64), 1000)
    calls: Timed = {
        "ours": lambda: simplex.pairwise(P, Q, check=False),
        "arccos(UVᵀ)": lambda: 2.0 * np.arccos((np.sqrt(P) @ np.sqrt(Q).T).clip(max=1.0)),
    }
    times = best_of(calls, 3 * rounds)
    line("all pairs, P and Q of 1,000 rows", times.pop("ours"), times, 10**6, 1e9)
    times = best_of({"ours": lambda: simplex.pairwise(P)}, 3 * rounds)
    line("all pairs of P with itself", times.pop("ours"), times, 10**6, 1e9)
    p, q = P[0], Q[0]
    near = 0.99 * p + 0.01 * q

    def many(other: Any) -> Callable[[], Any]:
        return lambda: [simplex.distance(p, other) for _ in range(1000)]

    times = best_of(
        {
            "ours": many(q),
            "ours, near": many(near),
            "2·arccos Σ√pq, unchecked": lambda: [
                2.0 * np.arccos(np.minimum(1.0, np.sum(np.sqrt(p * q)))) for _ in range(1000)
            ],
        },
        rounds,
    )
    line("one pair, checked, single call", times.pop("ours"), times, 1000)
    calls = {
        "ours": lambda: simplex.distance(P, Q),
        "2·arccos Σ√pq, unchecked": lambda: 2.0 * np.arccos(np.sqrt(P * Q).sum(1).clip(max=1.0)),
    }
    times = best_of(calls, rounds)
    line("1,000 matched pairs", times.pop("ours"), times, 1000)
    rho, sigma = random_states(rng, 2, 4, 8)
    times = best_of(
        {"ours": lambda: [states.bures_distance(rho, sigma) for _ in range(100)]}, rounds
    )
    line("one pair of 4 × 4 states, single call", times.pop("ours"), {}, 100)


def bench_batch(rng: np.random.Generator, rounds: int) -> None:
    print("\nupdate_basins, n = 64, 20,000 basins")
    P, G = rng.dirichlet(np.ones(64), 20_000), rng.standard_normal((20_000, 64))
    out = np.empty_like(P)
    calls: Timed = {
        "ours": lambda: batch.update_basins(P, G, 0.01),
        "copy of P": lambda: np.copyto(out, P),
    }
    if importlib.util.find_spec("torch"):
        import torch

        TP, TG = torch.from_numpy(P), torch.from_numpy(G)
        calls["ours on torch"] = lambda: batch.update_basins(TP, TG, 0.01)
    times = best_of(calls, rounds)
    line("one basin", times.pop("ours"), times, 20_000)


def bench_phi(rng: np.random.Generator, rounds: int) -> None:
    print("\nIntegrated information")
    for m in (4, 6, 8, 12, 16, 32):
        A = rng.standard_normal((m, 3 * m))
        cov = A @ A.T
        times = best_of({"ours": partial(integration.phi_mib, cov)}, rounds)
        line(f"phi_mib, {m} subsystems", times.pop("ours"), {}, 1)
    X = rng.standard_normal((256, 24))
    groups = [range(4 * k, 4 * k + 4) for k in range(6)]
    times = best_of({"ours": lambda: integration.phi_mib_samples(X, groups)}, rounds)
    line("phi_mib_samples, 256 × 24 in 6 groups", times.pop("ours"), {}, 1)


def grid(k: int) -> Any:
    """Precision of a Gaussian field on a k × k grid, sparse."""
    import scipy.sparse as sp

    one = sp.diags_array(
        [np.full(k - 1, -1.0), np.full(k, 2.05), np.full(k - 1, -1.0)], offsets=[-1, 0, 1]
    )
    return (sp.kron(one, sp.eye_array(k)) + sp.kron(sp.eye_array(k), one)).tocsr()


def grid_band(k: int) -> Any:
    """The same as a lower band of width k."""
    full = grid(k)
    band = np.zeros((k + 1, k * k))
    for below in (0, 1, k):
        band[below, : k * k - below] = full.diagonal(-below)
    return band


def declared_forms(rng: np.random.Generator, n: int) -> dict[str, Callable[[], Any]]:
    """What builds and factors each declared structure of about n parameters."""
    p = rng.dirichlet(np.full(n + 1, 5.0))
    blocks = {}
    for size in (8, 32):
        samples = rng.standard_normal((n // size, size, 2 * size))
        blocks[size] = samples @ samples.swapaxes(1, 2)
    side = int(np.sqrt(n))
    left, right = (x @ x.T for x in rng.standard_normal((2, side, 2 * side)))
    chain = np.stack((np.full(n, 2.5), np.full(n, -1.0)))
    band = np.stack((np.full(n, 12.0), *[np.full(n, -1.0)] * 5))
    return {
        "multinomial": partial(fisher.multinomial_fisher, p),
        "diagonal + rank one": partial(
            fisher.DiagPlusLowRank, 1.0 / p, np.ones((n + 1, 1)), np.ones(1)
        ),
        "chain": partial(fisher.SparsePrecision.from_band, chain),
        "band of 5": partial(fisher.SparsePrecision.from_band, band),
        "blocks of 8": partial(fisher.BlockDiagonal, blocks[8]),
        "blocks of 32": partial(fisher.BlockDiagonal, blocks[32]),
        "Kronecker": partial(fisher.Kronecker, left, right),
        "grid, as a band": partial(fisher.SparsePrecision.from_band, grid_band(side)),
        "grid, sparse": partial(fisher.SparsePrecision, grid(side)),
    }


def solvers(build: Callable[[], fisher.FisherMatrix], v: Any) -> Timed:
    """Ways to factor and solve once: declared, densely here, by SciPy, by LAPACK alone."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.linalg.lapack import dpotrf, dpotrs

    full = build().to_dense()
    # LAPACK without a copy over: column-major, one triangle read.
    whole = np.asfortranarray(full)
    return {
        "ours": lambda: build().solve(v),
        "Dense": lambda: fisher.Dense(full).solve(v),
        "cho_solve(cho_factor)": lambda: cho_solve(cho_factor(full), v),
        "bare dpotrf+dpotrs": lambda: dpotrs(dpotrf(whole, lower=1, clean=0)[0], v, lower=1),
    }


def repeated_solvers(build: Callable[[], fisher.FisherMatrix], v: Any) -> Timed:
    """The same once they are factored, as in training."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.linalg.lapack import dpotrf, dpotrs

    metric = build()
    full = metric.to_dense()
    root = dpotrf(np.asfortranarray(full), lower=1, clean=0)[0]
    return {
        "ours": partial(metric.solve, v),
        "Dense": partial(fisher.Dense(full).solve, v),
        "cho_solve": partial(cho_solve, cho_factor(full), v),
        "bare dpotrs": partial(dpotrs, root, v, lower=1),
    }


def bench_fisher(rng: np.random.Generator, rounds: int, large: Sequence[int]) -> None:
    """In the declared form against densely."""
    for n in (64, *large):
        # Many short turns: the best of them is one that nothing else interrupted.
        turns = 10 * rounds if n == 64 else min(rounds, 3)
        for what, ways in (
            ("build, factor and solve once", solvers),
            ("solve only, factored before", repeated_solvers),
        ):
            print(f"\nFisher matrices of {n} parameters: {what}")
            for name, build in declared_forms(rng, n).items():
                calls = ways(build, rng.standard_normal(build().n))
                times = best_of(calls, turns)
                line(f"  {name}", times.pop("ours"), times, 1)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns each call gets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--large",
        type=int,
        nargs="*",
        default=[1024],
        help="sizes of the Fisher matrices beside 64, squares (4096 takes minutes)",
    )
    parser.add_argument(
        "--only", choices=("states", "simplex", "batch", "phi", "fisher"), default=None
    )
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    # Peers take square roots of what rounding made negative; that is theirs to warn about.
    warnings.simplefilter("ignore", RuntimeWarning)
    print(f"NumPy {np.__version__}, seed {options.seed}, one thread, best of {options.rounds}")
    print("ratios: time of the peer / time of ours")
    benches: dict[str, Callable[[], None]] = {
        "states": lambda: bench_states(rng, options.rounds),
        "simplex": lambda: bench_simplex(rng, options.rounds),
        "batch": lambda: bench_batch(rng, options.rounds),
        "phi": lambda: bench_phi(rng, options.rounds),
        "fisher": lambda: bench_fisher(rng, options.rounds, options.large),
    }
    for name, bench in benches.items():
        if options.only in {None, name}:
            bench()
    return 0


if __name__ == "__main__":
    sys.exit(main())
