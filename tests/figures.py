"""How far a long form goes: its full figure, or the share of it that the environment asks for."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")

SHARE = float(os.environ.get("QIGSTORE_TEST_SHARE") or 1.0)


def figure(full: int) -> int:
    """The full figure, or `QIGSTORE_TEST_SHARE` of it (0.1: a tenth); said where it is not full."""
    count = max(1, round(full * SHARE))
    if count != full:
        print(f"QIGSTORE_TEST_SHARE={SHARE:g}: {count} instead of {full}")
    return count


def in_parts(full: int, parts: int = 4) -> pytest.MarkDecorator:
    """The full figure, as the `count`s of tests with a seed of their own, to run side by side."""
    assert full % parts == 0
    names = [f"{part} of {parts}" for part in range(1, parts + 1)]
    return pytest.mark.parametrize("count", [full // parts] * parts, ids=names)


def share_of(everything: Sequence[T], rng: random.Random) -> Sequence[T]:
    """All of it, or as many as `figure` says, drawn at random, in their order."""
    count = figure(len(everything))
    if count == len(everything):
        return everything
    return [everything[i] for i in sorted(rng.sample(range(len(everything)), count))]
