"""`python -m benchmarks.kernels_validity`: the tables of docs/geometric-validity.md.

Every number is computed here from a seed; `--check` says whether the document still shows them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qigkernels import fisher, simplex, states

__all__ = ["main", "tables"]

_MATRICES = 40
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "geometric-validity.md"


def wishart(rng: np.random.Generator, n: int) -> Any:
    """Empirical Fisher matrix of n parameters from 1.25·n samples."""
    samples = rng.standard_normal((n + n // 4, n))
    return samples.T @ samples / len(samples)


def correlated(rng: np.random.Generator, n: int) -> Any:
    """The same with gradients that a few directions dominate, as in trained networks."""
    mixing = np.exp(-np.arange(n) / 8.0)[:, None] * rng.standard_normal((n, n))
    return mixing.T @ mixing + 1e-4 * np.eye(n)


def truncation_table() -> list[str]:
    """Share of matrices that truncation makes indefinite, and how far it moves lengths."""
    lines = [
        "| family, n = 64 | entries below | set to 0 | indefinite | weakest direction off by |",
        "|---|---|---|---|---|",
    ]
    families: dict[str, Callable[[np.random.Generator, int], Any]] = {
        "gradients of equal size": wishart,
        "a few dominant directions": correlated,
    }
    for name, family in families.items():
        for share in (0.001, 0.01, 0.05):
            rng = np.random.default_rng(20)
            zeros, lost, off = [], 0, []
            for _ in range(_MATRICES):
                full = family(rng, 64)
                cut = np.where(np.abs(full) < share * np.abs(full).max(), 0.0, full)
                zeros.append(float((cut == 0.0).mean()))
                values, vectors = np.linalg.eigh(full)
                lost += int(np.linalg.eigvalsh(cut)[0] <= 0.0)
                weak = vectors[:, 0]
                off.append(abs(weak @ cut @ weak - values[0]) / values[0])
            lines.append(
                f"| {name} | {share:g} of the largest | {100 * np.mean(zeros):.0f} % | "
                f"{100 * lost / _MATRICES:.0f} % | {100 * np.median(off):.0f} % |"
            )
    return lines


def recognised_table() -> list[str]:
    """What is kept instead: every structure is the same matrix."""
    rng = np.random.default_rng(21)
    p = rng.dirichlet(np.full(65, 3.0))
    chain = np.stack((np.full(64, 2.5), np.full(64, -1.0)))
    blocks = np.stack([wishart(rng, 8) for _ in range(8)])
    forms: dict[str, fisher.FisherMatrix] = {
        "multinomial": fisher.multinomial_fisher(p),
        "Dirichlet": fisher.dirichlet_fisher(rng.uniform(0.5, 3.0, 64)),
        "chain (Markov field)": fisher.SparsePrecision.from_band(chain),
        "8 blocks of 8": fisher.BlockDiagonal(blocks),
        "Kronecker 8 ⊗ 8 (KFAC)": fisher.Kronecker(wishart(rng, 8), wishart(rng, 8)),
        "no structure": fisher.Dense(wishart(rng, 64)),
    }
    lines = [
        "| declared | class | numbers held | exact zeros | positive definite | norms agree |",
        "|---|---|---|---|---|---|",
    ]
    for name, metric in forms.items():
        full, v = metric.to_dense(), np.cos(np.arange(64.0))
        agree = abs(metric.norm(v) - np.sqrt(v @ full @ v)) <= 1e-14 * metric.norm(v)
        lines.append(
            f"| {name} | `{type(metric).__name__}` | {metric.stored} | "
            f"{100 * metric.natural_sparsity:.0f} % | {np.linalg.eigvalsh(full)[0] > 0.0} | "
            f"{bool(agree)} |"
        )
    return lines


def textbook_table() -> list[str]:
    """Error of the usual formulas where points are near, against the exact ones here."""
    rng = np.random.default_rng(22)
    lines = [
        "| apart | 2·arccos Σ√(pq) | `simplex.distance` | Bures by eigh | `bures_distance` |",
        "|---|---|---|---|---|",
    ]
    for apart in (1e-2, 1e-5, 1e-8, 1e-11):
        # A rotation by a known angle: the truth needs no arithmetic.
        angle = apart / 2.0
        u = np.sqrt(np.full(64, 1.0 / 64.0))
        e = rng.standard_normal(64)
        e -= (e @ u) * u
        e /= np.linalg.norm(e)
        p, q = u**2, (np.cos(angle) * u + np.sin(angle) * e) ** 2
        usual = 2.0 * np.arccos(min(1.0, float(np.sum(np.sqrt(p * q)))))
        exact = simplex.distance(p, q / q.sum())
        rho = np.diag(p)
        half = np.diag(np.sqrt(p))
        inner = np.linalg.eigvalsh(half @ np.diag(q / q.sum()) @ half).clip(min=0.0)
        chord = np.sqrt(max(0.0, 2.0 - 2.0 * float(np.sqrt(inner).sum())))
        found = states.bures_distance(rho, np.diag(q / q.sum()))
        wanted = 2.0 * np.sin(angle / 2.0)
        shown = [
            _percent(abs(usual - apart) / apart),
            _percent(abs(exact - apart) / apart),
            _percent(abs(chord - wanted) / wanted),
            _percent(abs(found - wanted) / wanted),
        ]
        lines.append(f"| {apart:g} | " + " | ".join(shown) + " |")
    return lines


def _percent(share: float) -> str:
    """A relative error in words coarse enough to be the same on every machine."""
    if share >= 0.5:
        return "all digits lost"
    if share <= 1e-4:
        return "below 0.01 %"
    return "below 1 %" if share <= 1e-2 else "above 1 %"


def tables() -> dict[str, list[str]]:
    """Every table by its name in the document."""
    return {
        "truncation": truncation_table(),
        "structures": recognised_table(),
        "near": textbook_table(),
    }


def missing(document: str, found: dict[str, list[str]]) -> list[str]:
    """Names of the tables that the document does not show as they are."""
    return [name for name, lines in found.items() if "\n".join(lines) not in document]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, or check the document against them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    found = tables()
    if options.check:
        stale = missing(DOCUMENT.read_text(encoding="utf-8"), found)
        print(f"stale: {', '.join(stale)}" if stale else "the document shows these tables")
        return int(bool(stale))
    for name, lines in found.items():
        print(f"\n{name}\n")
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
