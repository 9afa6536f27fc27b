"""The ways to reach a server, and one store for each (fixtures: `pytest_plugins = ["ways"]`)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from qigstore.database.embedded_binaries import OLDEST_MAJOR, find_binaries
from qigstore.database.engine import Database
from qigstore.database.migrate import upgrade
from qigstore.repository import Store


def _older_servers() -> list[int]:
    """Major versions of the system's server programs, where older than the ones we ship."""
    newest = find_binaries(Path()).major
    found = [int(path.parent.name) for path in Path("/usr/lib/postgresql").glob("*/bin")
             if re.fullmatch(r"\d+", path.parent.name) and (path / "initdb").is_file()]  # fmt: skip
    return sorted(major for major in found if OLDEST_MAJOR <= major < newest)


WAYS = ["direct", "pooler", *(f"postgresql-{major}" for major in _older_servers())]
"""`pooler`: as behind one in transaction mode, without prepared statements."""


@pytest.fixture(scope="session")
def older_templates() -> Iterator[dict[str, str]]:
    """A migrated database on a server of each older version, made when first asked for."""
    from places import short_folder

    from qigstore.database.embedded import EmbeddedServer

    with short_folder() as folder:
        servers = []

        class Templates(dict[str, str]):
            def __missing__(self, way: str) -> str:
                programs = Path("/usr/lib/postgresql") / way.removeprefix("postgresql-") / "bin"
                server = EmbeddedServer.start(folder / way, programs)
                servers.append(server)
                database = Database(server.dsn())
                upgrade(database)
                database.dispose()
                self[way] = server.dsn()
                return self[way]

        try:
            yield Templates()
        finally:
            for server in servers:
                server.close()


@pytest.fixture(params=WAYS)
def any_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated, empty database of this test's own, reached in each way."""
    if not request.param.startswith("postgresql-"):
        yield request.getfixturevalue("dsn")
        return
    template = request.getfixturevalue("older_templates")[request.param]
    name = f"qigstore_test_{secrets.token_hex(6)}"
    fresh = sql.Identifier(name)
    admin = make_conninfo(template, dbname="postgres")
    copied = sql.Identifier(str(conninfo_to_dict(template)["dbname"]))
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(fresh, copied))
        yield make_conninfo(template, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(fresh))


@pytest.fixture
def any_database(request: pytest.FixtureRequest, any_dsn: str) -> Iterator[Database]:
    """The same, opened."""
    pooler = "pooler" in request.node.callspec.params.values()
    opened = Database(any_dsn, prepare_threshold=None if pooler else 5)
    yield opened
    opened.dispose()


@pytest.fixture
def any_store(any_database: Database) -> Store:
    """A `Store` on the same."""
    return Store(any_database)
