"""Frames: what a result is in NumPy, pandas, Polars, Arrow and a notebook."""

from __future__ import annotations

import json
import math
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from qigstore.errors import ConfigurationError
from qigstore.query import Curve, Frame, Latest, LatestRow, RowPage
from qigstore.query.pieces import Piece, join_pieces
from qigstore.records import TelemetryRow
from qigstore.repository.buckets import bucket_rows

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
EVIL = "<script>alert('x')</script>&\"'"


def page() -> RowPage:
    rows = (
        TelemetryRow(1, 0, 7, 1, NOW, "linear", {"loss": 0.5, "step": 3.0, EVIL: math.nan}),
        TelemetryRow(1, 0, 8, 2, NOW, None, {"phi": math.inf}),
    )
    return RowPage(EVIL, rows, "abc")


def curve(count: int = 3) -> Curve:
    steps, values = np.arange(count), np.linspace(0.0, 1.0, count)
    ones, none = np.ones(count, np.int64), np.zeros(count, np.int64)
    return Curve(
        "ocean", "loss", None, 0, "step", steps, steps + 1, steps * 1.0, values, values, values,
        ones, none, none,
    )  # fmt: skip


def test_numpy_has_nan_for_what_was_not_measured() -> None:
    arrays = page().to_numpy()
    assert arrays["step"].tolist() == [7, 8]
    assert arrays["step"].dtype == np.int64
    assert arrays["recorded_at"].dtype == np.dtype("datetime64[us]")
    assert arrays["recorded_at"][0] == np.datetime64("2026-01-02T03:04:05.000678")
    assert arrays["regime"].tolist() == ["linear", None]
    assert arrays["phi"].tolist()[1] == math.inf
    np.testing.assert_array_equal(arrays["loss"], [0.5, math.nan])
    assert arrays["metric step"].tolist()[0] == 3.0  # a custom metric named as a column of ours


def test_pandas_polars_and_arrow_have_the_same_columns() -> None:
    for frame in (page(), curve(), curve(0)):
        names = list(frame.columns())
        assert list(frame.to_pandas().columns) == names
        assert frame.to_polars().columns == names
        assert frame.to_arrow().column_names == names
        sizes = {len(frame.to_pandas()), frame.to_polars().height, frame.to_arrow().num_rows}
        assert sizes == {len(frame)}


def test_pandas_keeps_times_in_utc_and_what_was_asked() -> None:
    found = page().to_pandas()
    assert found["recorded_at"].iloc[0] == NOW
    assert found.attrs == {"session": EVIL, "next": "abc"}


def test_arrow_and_polars_tell_null_from_nan() -> None:
    table = page().to_arrow()
    assert table.column("loss").to_pylist() == [0.5, None]
    assert math.isnan(table.column(EVIL).to_pylist()[0])
    assert table.column(EVIL).to_pylist()[1] is None
    assert page().to_polars()["loss"].to_list() == [0.5, None]
    assert table.column("recorded_at").to_pylist() == [NOW, NOW]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    asked = getattr(page(), {"pyarrow": "to_arrow"}.get(library, f"to_{library}"))
    with pytest.raises(ConfigurationError, match=rf"{library}.*pip install 'qigstore\[frames\]'"):
        asked()


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_in_a_notebook_are_text_never_markup() -> None:
    seen = Tags()
    seen.feed(page()._repr_html_())
    assert seen.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert seen.text.count(EVIL) == 2  # the session in the caption, the metric as a heading
    long = curve(500)._repr_html_()
    assert long.count("<tr>") == 21
    assert "480 more rows" in long


def test_to_dict_is_plain() -> None:
    told = curve().to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["session"] == "ocean"
    assert told["start"] == [0, 1, 2]


def test_a_frame_of_nothing_has_its_columns() -> None:
    empty = Latest(())
    assert len(empty) == 0
    assert "step" in empty.columns()
    one = Latest((LatestRow("ocean", page().rows[0]),))
    assert one.columns()["session"] == ["ocean"]
    with pytest.raises(NotImplementedError):
        Frame().columns()


def test_pieces_that_do_not_touch_stay_apart_and_each_ends_with_its_span() -> None:
    places = np.zeros(1, np.int64)
    first = bucket_rows(np.arange(100), np.ones((100, 1)), places, 8)
    second = bucket_rows(np.arange(100, 120), np.full((20, 1), 2.0), places, 16)
    pieces = [Piece(0, 100, 8, first), Piece(100, 120, 16, second)]
    joined = join_pieces(pieces, 1000, overlap=False)
    assert joined.start.tolist()[-3:] == [96, 100, 112]
    assert joined.stop.tolist()[-3:] == [100, 112, 120]
    assert joined.buckets.low[-3:, 0].tolist() == [1.0, 2.0, 2.0]
    assert joined.origin.tolist()[-3:] == [0, 1, 1]
    few = join_pieces(pieces, 4, overlap=False)
    assert len(few) <= 4
    assert few.buckets.finite.sum() == 120
    assert few.stop[-1] == 120
