"""Docstring examples run, and docs/geometric-validity.md shows what its command prints."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import qigkernels

MODULES = ["qigkernels"] + [
    f"qigkernels.{module.name}" for module in pkgutil.iter_modules(qigkernels.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"np": np})
    assert failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_exists_and_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    if name == "qigkernels":
        return
    assert list(module.__all__) == sorted(
        module.__all__, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n)
    )
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{public}"


def test_the_tables_of_geometric_validity_are_what_its_command_prints():
    from benchmarks.kernels_validity import DOCUMENT, missing, tables

    assert missing(DOCUMENT.read_text(encoding="utf-8"), tables()) == []
    assert missing("", {"any": ["| a |"]}) == ["any"]
