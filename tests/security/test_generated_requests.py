"""R19: no 5xx, no undocumented answer and no leak on any generated request (schemathesis)."""

from __future__ import annotations

import random
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from figures import figure, in_parts
from hypothesis.errors import FlakyStrategyDefinition
from rest import BASE, Filled, Rest, served
from schemathesis.checks import CHECKS, load_all_checks

from qigstore.repository import Store

# What an answer must never hold: our files, our SQL, a traceback, a token's text.
LEAK = re.compile(
    r"Traceback|site-packages|/tmp/|qigstore\.\w+ |psycopg|sqlalchemy|SELECT |qs_[0-9a-f]{32}_"
)
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


class Hunt:
    """Sends generated requests, most of them about something that is there, and checks answers."""

    def __init__(self, rest: Rest, filled: Filled) -> None:
        self.rest, self.filled = rest, filled
        load_all_checks()
        self.checks = CHECKS.get_by_names(list(CHECKED))
        self.statuses: Counter[int] = Counter()
        self.reached: Counter[str] = Counter()
        self.failures: list[str] = []

    @property
    def calls(self) -> int:
        return self.statuses.total()

    def aim(self, case: Any) -> None:
        """Point a case at what exists, three times in four: what is made up is mostly not found."""
        if case.meta is not None and not case.meta.generation.mode.is_positive:
            return  # what is to be refused stays as it was made
        # From the case itself, so that Hypothesis sees the same request each time.
        rng = random.Random(f"{case.operation.label} {case.path_parameters} {case.query}")
        known: dict[str, Any] = {
            "session": self.filled.session,
            "event": self.filled.event,
            "checkpoint": rng.choice(self.filled.checkpoints),
            "attempt": self.filled.attempt,
            "writer": self.filled.writer,
        }
        for name in case.path_parameters or ():
            if rng.random() < 0.75:
                case.path_parameters[name] = str(known[name])
        if "metric" in (case.query or {}) and rng.random() < 0.5:
            case.query["metric"] = rng.choice(["loss", "phi", "mine"])
        if case.operation.path in {"/v1/compare", "/v1/latest"} and rng.random() < 0.75:
            case.query["session"] = [self.filled.session]
        if case.operation.path.endswith("/ingest") and rng.random() < 0.75:
            first = self.rest.store.writers.state(self.filled.writer).acked_seq + 1
            case.body |= {"writer": str(self.filled.writer), "epoch": 1, "attempt": 1, "rank": 0}
            case.body["first_seq"] = first
            for row in case.body["rows"]:  # a made-up vector is no distribution
                row.pop("basin", None), row.pop("regime", None)
        if case.operation.path == "/v1/nearest" and rng.random() < 0.75:
            case.body["basin"], case.body["session"] = [0.3, 0.2, 0.5], self.filled.session

    def send(self, case: Any) -> Any:
        response = case.call(base_url=BASE, headers=self.bearer(case))
        self.judge(case, response)
        return response

    def bearer(self, case: Any) -> dict[str, str]:
        """A valid token in place of a made-up one; none where the case is to have none."""
        given = {name.lower() for name in case.headers or ()}
        return {"Authorization": f"Bearer {self.rest.token()}"} if "authorization" in given else {}

    def judge(self, case: Any, response: Any) -> None:
        try:
            self._judge(case, response)
        except Exception as error:
            self.failures.append(f"{case.operation.label}: {error}"[:2000])
            raise

    def _judge(self, case: Any, response: Any) -> None:
        self.statuses[response.status_code] += 1
        self.reached[case.operation.label] += response.status_code < 300
        case.validate_response(response, checks=self.checks)
        text = response.content.decode(errors="replace")
        assert response.status_code < 500, text
        assert not LEAK.search(text), text
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"]


def hunt(rest: Rest, rng: random.Random, calls: int) -> Hunt:
    """So many generated requests: each operation alone, then sequences that follow its links."""
    found = Hunt(rest, rest.fill())
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", rest.app, headers={"Host": "localhost"}
    )
    operations = [item.ok() for item in schema.get_all_operations()]
    each = max(calls // 2 // len(operations), 1)
    settings = hypothesis.settings(
        max_examples=each, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    for operation in operations:

        @hypothesis.seed(rng.getrandbits(32))
        @settings
        @hypothesis.given(case=operation.as_strategy())
        def one(case: Any) -> None:
            found.aim(case)
            found.send(case)

        one()

    class Machine(schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            found.aim(case)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": BASE, "headers": found.bearer(case)}

        def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
            found.judge(case, response)

    while found.calls < calls:
        hypothesis.seed(rng.getrandbits(32))(Machine)
        wanted = max((calls - found.calls) // 6, 2)
        more = hypothesis.settings(settings, max_examples=wanted, stateful_step_count=6)
        # The store remembers what was sent to it, so that a sequence may go on in another way than
        # one that began alike: Hypothesis gives that run up, and another goes on. What an answer
        # was judged to be is kept all the same.
        with suppress(FlakyStrategyDefinition):
            Machine.run(settings=more)
    assert not found.failures, found.failures[:3]
    assert found.statuses[200] > found.calls / 4, "most are to reach what is there"
    return found


@pytest.mark.timeout(1200)
def test_no_generated_request_fails_the_server(
    store: Store, home: Path, rng: random.Random
) -> None:
    with served(store, home) as rest:
        found = hunt(rest, rng, 2_000)
        print(found.calls, dict(found.statuses))
        print({label: count for label, count in found.reached.items() if not count})


@pytest.mark.long(seconds=200)
@in_parts(20_000)
def test_no_generated_request_fails_the_server_long(
    store: Store, home: Path, rng: random.Random, count: int
) -> None:
    with served(store, home) as rest:
        found = hunt(rest, rng, figure(count))
        print(f"{found.calls} generated requests: {dict(found.statuses)}")
