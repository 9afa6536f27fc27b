"""The worked queries of docs/sql.md and those of the Grafana dashboard, on a real run's data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import psycopg
import pytest
from places import new_database, short_folder
from psycopg.rows import dict_row
from roles import as_role

import qigstore
from qigstore.database import views
from qigstore.errors import EmergencyStop
from qigstore.repository import open_store

DOCS = Path(__file__).parents[2] / "docs"
NAME = "ocean-7"
QUERIES = re.findall(r"^```sql\n(.*?)^```", (DOCS / "sql.md").read_text(), re.MULTILINE | re.DOTALL)
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana" / "qigstore.json").read_text())


def train(dsn: str, steps: int, spike: int) -> None:
    rules = {"rules": [{"kind": "threshold", "metric": "loss", "above": 5.0, "action": "abort"}]}
    with qigstore.session(NAME, dsn=dsn, rules=rules, settle_steps=5, quiet=True) as run:
        state = run.recover(default={"step": 0})
        for step in run.steps(state["step"], steps):
            loss = math.nan if step == 7 else 9.0 if step == spike else 1.0 / (1 + step)
            run.record(step, loss=loss, phi=0.3 + step / 1000, kappa_eff=64.0, throughput=1e3,
                       regime="linear" if step < 100 else "geometric")  # fmt: skip
            run.checkpoint({"step": step + 1}, step=step, every=50)


@pytest.fixture(scope="module")
def filled(server_dsn: str, template: str) -> Iterator[str]:
    """A database with a session that stopped itself, went back and went on."""
    with short_folder() as home, new_database(server_dsn, template) as dsn:
        patch = pytest.MonkeyPatch()
        patch.setenv("QIGSTORE_HOME", str(home))
        with pytest.raises(EmergencyStop):
            train(dsn, 500, spike=300)
        train(dsn, 450, spike=-1)
        yield dsn
        patch.undo()


def asked(dsn: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute(query.encode()).fetchall()


def test_there_are_ten_questions() -> None:
    assert len(QUERIES) == 10
    numbers = re.findall(r"^\*\*(\d+)\.", (DOCS / "sql.md").read_text(), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]


def test_the_document_names_every_view() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (DOCS / "sql.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(views.VIEWS)


def test_each_question_has_an_answer_and_it_is_right(filled: str) -> None:
    answers = [asked(filled, query) for query in QUERIES]
    stand, latest, loss, curve, nan, regimes, changes, events, checkpoints, custom = answers
    assert [(row["session"], row["attempts"], row["last_step"]) for row in stand] == [
        (NAME, 2, 449)
    ]
    assert [(row["step"], row["attempt"]) for row in latest] == [(449, 2)]
    (skip,) = asked(filled, "SELECT * FROM qigstore.recovery_history WHERE skip_first IS NOT NULL")
    left_out = range(skip["skip_first"], skip["skip_last"] + 1)
    assert 300 in left_out
    assert [row["step"] for row in loss] == [step for step in range(450) if step not in left_out]
    assert sum(row["finite"] + row["nans"] for row in curve if row["attempt"] == 2) >= 64
    assert nan == [{"attempt": 1, "first_step": 7, "last_step": 7, "rows": 1}]
    assert {row["regime"]: row["steps"] for row in regimes} == {
        "geometric": 350 - (left_out.stop - 301), "linear": 100,
    }  # fmt: skip  # attempt 1 came to step 300
    assert changes == [{"step": 100, "before": "linear", "regime": "geometric"}]
    assert any("loss" in row["message"] for row in events)
    assert sum(bool(row["resumed_from"]) for row in checkpoints) == 1
    assert [row["place"] for row in checkpoints] == list(range(1, len(checkpoints) + 1))
    assert (len(custom), custom[0]["throughput"]) == (100, 1000.0)


# -- Grafana ------------------------------------------------------------------------------------

MACROS = (
    (r"\$__timeGroupAlias\(([\w.]+), ?\$__interval\)",
     r'to_timestamp(floor(extract(epoch FROM \1) / 60) * 60) AS "time"'),
    (r"\$__timeFilter\(([\w.]+)\)",
     r"\1 BETWEEN now() - interval '1 hour' AND now() + interval '1 hour'"),
    (r"\$\{session:sqlstring\}", f"'{NAME}'"),
)  # fmt: skip
"""What Grafana's PostgreSQL data source makes of its macros, with an interval of a minute."""


def substituted(query: str) -> str:
    for pattern, made in MACROS:
        query = re.sub(pattern, made, query)
    assert "$" not in query, query
    return query


def targets() -> list[tuple[str, str, str]]:
    """Place, format and SQL of every query of the dashboard."""
    found = [
        (f"panel {panel['title']}", target["format"], target["rawSql"])
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]
    found += [
        (f"annotation {each['name']}", each["target"]["format"], each["target"]["rawSql"])
        for each in DASHBOARD["annotations"]["list"]
    ]
    variables = DASHBOARD["templating"]["list"]
    return found + [(f"variable {each['name']}", "table", each["query"]) for each in variables]


def test_a_reader_can_run_every_query_of_the_dashboard(
    filled: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(dsn=filled) as store:
        reader = as_role(filled, store.database, role, "reader")
    for place, shape, query in targets():
        rows = asked(reader, substituted(query))
        assert rows, place
        names = list(rows[0])
        if shape == "time_series":
            assert names == ["time", "metric", "value"], place
            assert all(isinstance(row["time"], datetime) for row in rows), place
            assert all(math.isfinite(row["value"]) for row in rows), place
            assert [row["time"] for row in rows] == sorted(row["time"] for row in rows), place
        if place.startswith("annotation"):
            assert names == ["time", "text", "tags"], place


def test_the_regime_bands_change_where_the_regime_does(filled: str) -> None:
    (query,) = [sql for place, _, sql in targets() if place == "panel Regime"]
    assert [row["regime"] for row in asked(filled, substituted(query))] == ["linear", "geometric"]


def test_the_dashboard_asks_only_views() -> None:
    for place, _, query in targets():
        named = set(re.findall(r"qigstore\.(\w+)", query))
        assert named, place
        assert named <= set(views.VIEWS), place


def test_the_dashboard_has_the_shape_that_grafana_imports() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", DASHBOARD["uid"])
    (given,) = DASHBOARD["__inputs"]
    source = {"type": given["pluginId"], "uid": "${" + given["name"] + "}"}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in {"stat", "timeseries", "state-timeline", "table"}
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == source
        assert {"defaults", "overrides"} == set(panel["fieldConfig"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert target["rawQuery"] is True
            assert target["format"] == ("time_series" if panel["type"] == "timeseries" else "table")
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["session"]
