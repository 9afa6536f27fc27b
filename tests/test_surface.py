"""The public surface: what is promised exists, is sorted, and costs nothing to import."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import qigstore


@pytest.mark.parametrize("name", qigstore.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(qigstore, name) is not None


def test_the_public_names_are_sorted_and_listed() -> None:
    assert sorted(qigstore.__all__) == qigstore.__all__
    assert dir(qigstore) == qigstore.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qigstore.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", qigstore.__all__)
def test_a_public_name_is_public_where_it_lives(name: str) -> None:
    if name == "__version__":
        return
    home = import_module(f"qigstore.{qigstore._HOME[name]}")
    assert name in home.__all__
    assert getattr(qigstore, name) is getattr(home, name)


def test_importing_loads_no_heavy_module() -> None:
    heavy = ("sqlalchemy", "psycopg", "alembic", "numpy", "scipy", "pydantic", "torch", "rich")
    code = f"import sys, qigstore; print(sorted(set(sys.modules) & set({heavy!r})))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
