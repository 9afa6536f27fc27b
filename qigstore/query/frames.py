"""Results as tables of named columns, for NumPy, pandas, Polars, Arrow and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qigstore.errors import ConfigurationError

__all__ = ["Column", "Frame"]

Column: TypeAlias = "NDArray[Any] | Sequence[Any]"
"""The values of a column, one a row; in a sequence None says that there is none."""

_HTML_ROWS = 20


class Frame:
    """A result that is a table: what it is (`about`) and its columns, all of one length."""

    __slots__ = ()

    def about(self) -> dict[str, Any]:
        """What was asked: session, metric and the like, in plain values."""
        raise NotImplementedError

    def columns(self) -> dict[str, Column]:
        """The columns by name, in their order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def to_dict(self) -> dict[str, Any]:
        """`about` and each column as a list of Python's own values: what JSON shows of it."""
        plain = {
            name: column.tolist() if isinstance(column, np.ndarray) else list(column)
            for name, column in self.columns().items()
        }
        return self.about() | plain

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Each column as an array: numbers as float64 or int64, no value as NaN, the rest objects.

        Times are datetime64[us], UTC.
        """
        return {name: _array(column) for name, column in self.columns().items()}

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`; times are UTC.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        pandas = _library("pandas")
        made = pandas.DataFrame({n: _for_pandas(c) for n, c in self.columns().items()})
        made.attrs.update(self.about())
        return made

    def to_polars(self) -> Any:
        """A `polars.DataFrame`.

        Raises:
            ConfigurationError: Polars is not installed.
        """
        return _library("polars").DataFrame(self.columns(), strict=False)

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`; no value is null, NaN stays NaN.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        arrow = _library("pyarrow")
        return arrow.table({
            name: arrow.array(column, from_pandas=False) for name, column in self.columns().items()
        })  # fmt: skip

    def _repr_html_(self) -> str:
        """The first rows for a notebook; names and texts are data, never markup."""
        columns, count = self.columns(), len(self)
        told = ", ".join(f"{name} {value}" for name, value in self.about().items())
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(c[i]))}</td>" for c in columns.values()) + "</tr>"
            for i in range(min(count, _HTML_ROWS))
        )
        more = f"<p>… {count - _HTML_ROWS} more rows</p>" if count > _HTML_ROWS else ""
        caption = f"<caption>{type(self).__name__}: {escape(told)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"{name} is not installed ({error}): pip install 'qigstore[frames]'"
        ) from error


def _array(column: Column) -> NDArray[Any]:
    if isinstance(column, np.ndarray):
        return column
    kinds = {type(value) for value in column if value is not None}
    if kinds <= {float} and (kinds or not column):
        return np.array(column, dtype=np.float64)  # None becomes NaN
    if kinds == {int} and None not in column:
        return np.array(column, dtype=np.int64)
    if kinds == {datetime} and None not in column:
        return np.array([time.replace(tzinfo=None) for time in column], dtype="datetime64[us]")
    made = np.empty(len(column), dtype=object)
    made[:] = column
    return made


def _for_pandas(column: Column) -> Any:
    array = _array(column)
    if array.dtype.kind == "M":
        return _library("pandas").to_datetime(array, utc=True)
    return array


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
