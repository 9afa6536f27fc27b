"""`python -m benchmarks.geometry_gpu`: the geometry core on torch-CUDA.

First whether it gives NumPy's numbers, function by function; then `update_basins` on a million
basins against NumPy and against the copy bandwidth of the device, in one run. Where there is no
CUDA device it says so in one line and ends; `--device cpu` runs the same on torch's CPU.
"""

from __future__ import annotations

import argparse
import sys
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qigkernels import batch, simplex, states

__all__ = ["disagreements", "main"]

TOLERANCE = 1e-14
"""Of the largest entry of the result, or of 1 where that is larger."""

Case = tuple[str, Callable[..., Any], tuple[Any, ...]]


def random_states(rng: np.random.Generator, count: int, n: int, rank: int) -> Any:
    """`(count, n, n)` states of that rank."""
    G = rng.standard_normal((count, n, rank)) + 1j * rng.standard_normal((count, n, rank))
    rho = G @ G.conj().swapaxes(-1, -2)
    return rho / np.trace(rho, axis1=-2, axis2=-1).real[:, None, None]


def simplex_cases(rng: np.random.Generator) -> Iterator[Case]:
    p, q, a = rng.dirichlet(np.full(64, 2.0), (3, 500))
    v = simplex.log(p, a)
    near = p * (1.0 + 1e-9 * rng.standard_normal(p.shape))
    near /= near.sum(axis=1, keepdims=True)
    yield "simplex.distance", simplex.distance, (p, q)
    yield "simplex.distance, 1e-9 apart", lambda x, y: 1e9 * simplex.distance(x, y), (p, near)
    yield "simplex.distance_from_roots", simplex.distance_from_roots, (np.sqrt(p), np.sqrt(q))
    yield "simplex.pairwise", simplex.pairwise, (p, q)
    yield "simplex.geodesic", lambda x, y: simplex.geodesic(x, y, 0.3), (p, q)
    yield "simplex.log", simplex.log, (p, q)
    yield "simplex.exp", simplex.exp, (p, v)
    yield "simplex.transport", simplex.transport, (p, q, v)
    yield "simplex.inner", simplex.inner, (p, v, v)
    yield "simplex.natural_gradient", simplex.natural_gradient, (p, v)
    yield "simplex.metric", simplex.metric, (p[:20],)
    yield "simplex.metric_inverse", simplex.metric_inverse, (p[:20],)
    yield "simplex.frechet_mean", simplex.frechet_mean, (p.reshape(50, 10, 64),)
    yield "simplex.path_curvature", simplex.path_curvature, (p,)
    for how in ("softmax", "counts", "amplitudes"):
        yield f"simplex.to_simplex, {how}", lambda x, how=how: simplex.to_simplex(x, how=how), (p,)


def state_cases(rng: np.random.Generator) -> Iterator[Case]:
    for n in (2, 3, 4, 8, 16, 33):
        rho = np.concatenate([random_states(rng, 20, n, k) for k in (2 * n, n, max(1, n // 2), 1)])
        sigma = rho[rng.permutation(len(rho))]
        sigma[::5] = 0.999 * rho[::5] + 0.001 * random_states(rng, len(rho[::5]), n, n)
        for function in (
            states.root_fidelity,
            states.bures_angle,
            states.bures_distance,
            states.trace_distance,
        ):
            yield f"states.{function.__name__}, n = {n}", function, (rho, sigma)
        for single in (
            states.entropy,
            states.purity,
            states.coherence_l1,
            states.coherence_relative_entropy,
        ):
            yield f"states.{single.__name__}, n = {n}", single, (rho,)
        yield f"states.depolarise, n = {n}", lambda x: states.depolarise(x, 0.25), (rho,)
        wide = random_states(rng, 10, n, 2 * n)
        drho = (random_states(rng, 10, n, 2 * n) - wide)[:, None]
        yield f"states.qfi_matrix, n = {n}", states.qfi_matrix, (wide, drho)
    psi = rng.standard_normal((50, 6)) + 1j * rng.standard_normal((50, 6))
    psi /= np.linalg.norm(psi, axis=-1, keepdims=True)
    dpsi = rng.standard_normal((50, 3, 6)) + 1j * rng.standard_normal((50, 3, 6))
    yield "states.qfi_pure", states.qfi_pure, (psi, dpsi)


def batch_cases(rng: np.random.Generator) -> Iterator[Case]:
    P, G = rng.dirichlet(np.ones(64), 2000), rng.standard_normal((2000, 64))
    P[3, 0] += 0.5
    G[5, 5] = np.nan
    reference = rng.dirichlet(np.ones(64))
    for chunk in (None, 64 * 1024):

        def update(p: Any, g: Any, r: Any, chunk: int | None = chunk) -> Any:
            return tuple(batch.update_basins(p, g, 0.02, reference=r, chunk_bytes_max=chunk))

        yield f"batch.update_basins, chunks of {chunk}", update, (P, G, reference)
    path, anchors = rng.dirichlet(np.full(64, 2.0), 200), rng.dirichlet(np.ones(64), 3)
    yield (
        "batch.basin_series",
        lambda x, r, a: tuple(batch.basin_series(x, reference=r, anchors=a)),
        (path, reference, anchors),
    )
    yield "batch.coherence_drift", batch.coherence_drift, (random_states(rng, 50, 4, 4),)
    yield "batch.fisher_metric_trace", batch.fisher_metric_trace, (rng.standard_normal((64, 9)),)


def off(found: Any, wanted: Any) -> float:
    """Largest difference, of the largest entry or of 1; inf where NaN or an answer differs."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.dtype == bool:
        return 0.0 if np.array_equal(found, wanted) else float("inf")
    missing = np.isnan(wanted)
    if not np.array_equal(np.isnan(found), missing):
        return float("inf")
    scale = max(1.0, float(np.abs(wanted[~missing]).max(initial=0.0)))
    return float(np.abs(found - wanted)[~missing].max(initial=0.0)) / scale


def disagreements(device: str, seed: int = 0) -> list[tuple[str, float]]:
    """`(function, difference)` of every function on torch tensors of that device, worst first."""
    import torch

    rng = np.random.default_rng(seed)
    found = []
    for cases in (simplex_cases, batch_cases, state_cases):
        for name, function, arrays in cases(rng):
            wanted = function(*arrays)
            answer = function(*(torch.from_numpy(x.copy()).to(device) for x in arrays))
            if type(wanted) is not tuple:
                answer, wanted = (answer,), (wanted,)
            worst = 0.0
            for ours, theirs in zip(answer, wanted, strict=True):
                if str(ours.device).split(":")[0] != device:
                    raise RuntimeError(f"{name} left the device: {ours.device}")
                worst = max(worst, off(ours.cpu().numpy(), theirs))
            found.append((name, worst))
    return sorted(found, key=lambda pair: -pair[1])


def best_of(call: Callable[[], Any], rounds: int, wait: Callable[[], Any]) -> float:
    """Best seconds of a call, its work on the device included."""

    def once() -> None:
        call()
        wait()

    once()
    return min(timeit.timeit(once, number=1) for _ in range(rounds))


def bench_update(device: str, basins: int, rounds: int) -> None:
    """One table: time, ratio to NumPy, and share of the copy bandwidth."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    rng = np.random.default_rng(1)
    P = rng.standard_exponential((basins, 64))
    P /= P.sum(axis=1, keepdims=True)
    G = rng.standard_normal((basins, 64))
    TP, TG = torch.from_numpy(P).to(device), torch.from_numpy(G).to(device)
    target = torch.empty_like(TP)
    copy = best_of(lambda: target.copy_(TP), 4 * rounds, wait)
    bandwidth = 2.0 * P.nbytes / copy
    print(f"\nupdate_basins, {basins:,} basins of 64, float64, best of {rounds}")
    print(f"  copy of P on the device        {copy * 1e3:9.2f} ms   {bandwidth / 1e9:8.0f} GB/s")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    ours = best_of(lambda: batch.update_basins(TP, TG, 0.01), rounds, wait)
    numpy = best_of(lambda: batch.update_basins(P, G, 0.01), max(1, rounds // 3), lambda: None)
    # P and G are read and the points written, at the least.
    least = 3.0 * P.nbytes / bandwidth
    print(f"  ours on {device:<22} {ours * 1e3:9.2f} ms   {ours / basins * 1e9:8.2f} ns a basin")
    print(f"  ours on NumPy                  {numpy * 1e3:9.2f} ms   {numpy / ours:8.1f}x as long")
    print(f"  least traffic at copy speed    {least * 1e3:9.2f} ms   {least / ours:8.1%} of ours")
    if device == "cuda":
        used = (torch.cuda.max_memory_allocated() - before) / 2**30
        print(f"  device memory beside the input {used:9.2f} GiB")
    moved = batch.update_basins(TP, TG, 0.01).points.cpu().numpy()
    gap = off(moved, batch.update_basins(P, G, 0.01).points)
    print(f"  differs from NumPy by          {gap:9.1e}")


def missing_device(device: str) -> str | None:
    """Why nothing can be run on the device; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed (extra `torch`)"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 1 where a function does not agree with NumPy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--basins", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9, help="turns each call gets")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    why = missing_device(options.device)
    if why is not None:
        print(f"not run: {why}")
        return 0
    import torch

    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, NumPy {np.__version__}, seed {options.seed}")
    found = disagreements(options.device, options.seed)
    failed = [pair for pair in found if not pair[1] <= TOLERANCE]
    print(f"{len(found)} checks against NumPy, {len(failed)} beyond {TOLERANCE:g}; the worst:")
    for label, worst in failed + found[len(failed) : len(failed) + 5]:
        print(f"  {worst:9.1e}  {label}")
    bench_update(options.device, options.basins, options.rounds)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
