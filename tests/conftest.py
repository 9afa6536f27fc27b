"""What every test may ask for: a server, a migrated database of its own, a store, a data folder.

The server is `QIGSTORE_TEST_DSN` (a role that may create databases), else an embedded one in a
folder of its own, else a container where an engine runs. With none of them the run stops: a suite
that skips its database proves nothing. All of it is removed at the end, after Ctrl-C too.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psycopg
import pytest
from long_log import pytest_addoption, pytest_configure  # noqa: F401 (hooks)
from places import CONNECT_S, new_database, short_folder
from roles import new_role

from qigstore.errors import EmbeddedServerError

if TYPE_CHECKING:
    from rest import Rest

    from qigstore.database.engine import Database

SEED = int(os.environ.get("QIGSTORE_TEST_SEED") or random.SystemRandom().getrandbits(32))
os.environ["QIGSTORE_TEST_SEED"] = str(SEED)  # xdist's workers draw none of their own
# JAX's share is most of a GPU's memory, and the workers may be several on one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# How long a busy machine takes to draw or to try an example, and what it drew, breaks no promise.
hypothesis.settings.register_profile(
    "qigstore",
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.filter_too_much,
    ],
)
hypothesis.settings.load_profile("qigstore")
CONTAINER_IMAGE = os.environ.get("QIGSTORE_TEST_IMAGE", "postgres:17-alpine")


def pytest_report_header() -> str:
    """The seed of every random test, to repeat a run with."""
    return f"QIGSTORE_TEST_SEED={SEED}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `make test-long` and `make test-containers` run, unless asked for.

    A long form takes as long as it takes; each has limits of its own where something could hang.
    """
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(0))
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    apart = [
        item for item in items if {"long", "containers"} & {m.name for m in item.iter_markers()}
    ]
    items[:] = [item for item in items if item not in apart]
    config.hook.pytest_deselected(items=apart)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, derived from the run's, and printed where the test fails."""
    own = random.Random(f"{SEED}:{request.node.nodeid}").getrandbits(32)
    print(f"QIGSTORE_TEST_SEED={SEED} (this test: {own})")
    return own


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Randomness that `QIGSTORE_TEST_SEED` repeats."""
    return random.Random(seed)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of this test's own, also for the processes it starts."""
    with short_folder() as folder:
        for name in [name for name in os.environ if name.startswith("QIGSTORE_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("QIGSTORE_HOME", str(folder))
        monkeypatch.setenv("QIGSTORE_CONFIG", str(folder / "config.toml"))
        yield folder


@contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(CONTAINER_IMAGE, driver=None) as container:
        yield container.get_connection_url()


@contextmanager
def _server() -> Iterator[str]:
    if given := os.environ.get("QIGSTORE_TEST_DSN"):
        yield given
        return
    from qigstore.database.embedded import EmbeddedServer

    with short_folder() as folder:
        try:
            server = EmbeddedServer.start(folder / "postgres")
        except EmbeddedServerError as error:
            reason = str(error)
        else:
            with server:
                yield server.dsn("postgres")
            return
    try:
        container = _container()
        dsn = container.__enter__()
    except Exception as error:
        pytest.exit(
            "the tests need PostgreSQL and have none.\n"
            f"  embedded: {reason}\n  container: {error!r}\nName a server with QIGSTORE_TEST_DSN.",
            returncode=3,
        )
    try:
        yield dsn
    finally:
        container.__exit__(None, None, None)


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """A server on which databases may be created."""
    with _server() as dsn:
        yield dsn


@pytest.fixture
def empty_dsn(server_dsn: str) -> Iterator[str]:
    """A database without qigstore's schema."""
    with new_database(server_dsn) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def template(server_dsn: str) -> Iterator[str]:
    """The name of a database that is migrated once, to be copied."""
    from qigstore.database.engine import Database
    from qigstore.database.migrate import upgrade

    with new_database(server_dsn) as dsn:
        database = Database(dsn, connect_timeout_s=CONNECT_S)
        try:
            upgrade(database)
        finally:
            database.dispose()
        yield psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]


@pytest.fixture
def dsn(server_dsn: str, template: str) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    with new_database(server_dsn, template) as fresh:
        yield fresh


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """The same, opened."""
    from qigstore.database.engine import Database

    opened = Database(dsn, connect_timeout_s=CONNECT_S)
    yield opened
    opened.dispose()


@pytest.fixture
def store(database: Database) -> Any:
    """A `Store` on the same."""
    from qigstore.repository import Store

    return Store(database)


@pytest.fixture
def elsewhere(server_dsn: str, template: str) -> Iterator[Any]:
    """A second database."""
    from qigstore.database.engine import Database
    from qigstore.repository import Store

    with (
        new_database(server_dsn, template) as dsn,
        Store(Database(dsn, connect_timeout_s=CONNECT_S)) as other,
    ):
        yield other


@pytest.fixture
def rest(store: Any, home: Path) -> Iterator[Rest]:
    """A REST server on the same."""
    from rest import served

    with served(store, home) as server:
        yield server


@pytest.fixture
def role(server_dsn: str) -> Iterator[str]:
    """The name of a role that a test may make."""
    with new_role(server_dsn) as name:
        yield name
