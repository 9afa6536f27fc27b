"""Reaches the database: the address, a pool that survives restarts and forks, and its errors.

Every failure to reach the server becomes `StoreUnavailable` with the driver's words; a password
never appears in an address, a `repr` or an error.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import psycopg
import psycopg.sql
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from sqlalchemy import event, exc

from qigstore.errors import ConfigurationError, StoreDenied, StoreUnavailable

if TYPE_CHECKING:
    from psycopg.abc import RV, PQGen
    from sqlalchemy.pool import ConnectionPoolEntry

    from qigstore.settings import Settings

__all__ = [
    "OLDEST_SERVER",
    "Database",
    "address_of",
    "open_database",
    "parse_dsn",
    "require_version",
]

OLDEST_SERVER = 140000
_APPLICATION = "qigstore"
_LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout")
# A connection that lives on while the server became a standby: the next one finds the primary.
_READ_ONLY = "25006"
# The server ended a transaction in which nothing was said for too long: the connection is gone.
_SILENT = "25P03"
_DENIED = "42501"
_POOL = "qigstore pool"
_BROKEN_OFF = (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN)

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _forget_connections() -> None:
    # The sockets are the parent's: dropped without a goodbye, which the server would take as his.
    for database in list(_databases):
        database.engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_connections)


def parse_dsn(dsn: str) -> dict[str, str]:
    """Parameters of a URL or of libpq keywords; an empty one leaves everything to PG* variables.

    Raises:
        ConfigurationError: it is neither.
    """
    text = dsn.strip()
    scheme, mark, rest = text.partition("://")
    if mark and scheme.partition("+")[0] in ("postgresql", "postgres"):
        text = f"postgresql://{rest}"
    elif mark:
        raise ConfigurationError(
            f"QIGSTORE_DSN: the scheme {scheme[:20]!r} is not known; expected "
            "postgresql://user@host:port/database or libpq keywords such as 'host=... dbname=...'"
        )
    try:
        given = conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # The driver's words may hold a piece of the password, so they are not passed on.
        raise ConfigurationError(
            "QIGSTORE_DSN cannot be read; expected postgresql://user:password@host:port/database "
            "(special characters percent-encoded) or libpq keywords such as 'host=... dbname=...'"
        ) from None
    return {name: str(value) for name, value in given.items() if value is not None}


def _masked(given: dict[str, str]) -> str:
    """The address as a URL, PG* variables included, with `***` for the password."""

    def value(name: str, variable: str, default: str) -> str:
        return given.get(name) or os.environ.get(variable) or default

    hosts = value("host", "PGHOST", "localhost").split(",")
    ports = value("port", "PGPORT", "5432").split(",")
    user = value("user", "PGUSER", "")
    secret = ":***" if "password" in given or os.environ.get("PGPASSWORD") else ""
    name = value("dbname", "PGDATABASE", user)
    role = given.get("target_session_attrs", "any")
    options = [f"target_session_attrs={role}"] if role != "any" else []
    if hosts[0].startswith(("/", "@")):
        place = ""
        options.insert(0, f"host={','.join(hosts)}")
        options.insert(1, f"port={','.join(ports)}")
    else:
        ports = ports * len(hosts) if len(ports) == 1 else ports
        place = ",".join(f"{host}:{port or 5432}" for host, port in zip(hosts, ports, strict=False))
    who = f"{quote(user)}{secret}@" if user or secret else ""
    query = f"?{'&'.join(options)}" if options else ""
    return f"postgresql://{who}{place}/{quote(name)}{query}"


def address_of(settings: Settings) -> str:
    """Where the settings' database is, in the words of `Database.address`; asks nobody.

    Raises:
        ConfigurationError: the DSN cannot be read.
    """
    if settings.dsn is None:
        return "the embedded server"
    return _masked(parse_dsn(settings.dsn.get_secret_value()))


def require_version(number: int, address: str) -> None:
    """Refuse a server older than the oldest one supported; `number` as libpq gives it.

    Raises:
        ConfigurationError: it is too old.
    """
    if number < OLDEST_SERVER:
        raise ConfigurationError(
            f"the server at {address} is PostgreSQL {number // 10000}.{number % 10000}; qigstore "
            f"needs {OLDEST_SERVER // 10000} or newer. Upgrade it, or unset QIGSTORE_DSN for the "
            "embedded server."
        )


class _Connection(psycopg.Connection[Any]):
    """Closes itself where no answer comes in time: a network may go deaf without a word.

    Attributes:
        answer_timeout_s: how long one answer may take; None: for ever.
        pools_left: how many pools had been left when it was begun: the one it is made for is next.
    """

    answer_timeout_s: float | None = None
    pools_left = 0

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:
        """As psycopg's own, within the limit."""
        if self.answer_timeout_s is None:
            return super().wait(gen, *arguments, **options)
        try:
            return super().wait(_within(gen, self.answer_timeout_s), *arguments, **options)
        except TimeoutError:
            self.close()
            limit = f"no answer within {self.answer_timeout_s:g} s"
            raise psycopg.OperationalError(limit) from None


def _state(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the driver or of SQLAlchemy."""
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None)


def _within(gen: PQGen[RV], limit_s: float) -> PQGen[RV]:
    """The same steps, given up after `limit_s`."""
    deadline = monotonic() + limit_s
    try:
        step = next(gen)
        while True:
            ready = yield step
            if not ready and monotonic() > deadline:
                raise TimeoutError
            step = gen.send(ready)
    except StopIteration as end:
        result: RV = end.value
        return result


class Database:
    """A pool of connections to one database; any number of threads may use it.

    `prepare_threshold=None` is for a pooler in transaction mode: no prepared statements, and the
    session's settings are made anew in each transaction. The server ends a statement after
    `statement_timeout_s`; where `answer_margin_s` later nothing was heard, the connection is lost.

    Attributes:
        engine: the SQLAlchemy engine (`postgresql+psycopg`).
        address: where it is, with the password masked.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 4,
        connect_timeout_s: int = 5,
        statement_timeout_s: float = 60.0,
        answer_margin_s: float = 5.0,
        prepare_threshold: int | None = 5,
        on_dispose: Callable[[], None] | None = None,
        revive: Callable[[], None] | None = None,
    ) -> None:
        given = parse_dsn(dsn)
        self.address = _masked(given)
        secrets = (given.get("password"), given.get("sslpassword"), os.environ.get("PGPASSWORD"))
        self._secrets = [secret for secret in secrets if secret]
        self._pooler = prepare_threshold is None
        self._settings = {
            "statement_timeout": f"{statement_timeout_s * 1000:.0f}ms",
            # Of a process that was stopped, or is gone without a word: others wait for its locks,
            # and must get them before their own statements time out.
            "idle_in_transaction_session_timeout": f"{statement_timeout_s * 1000 / 3:.0f}ms",
        }
        # A role named as our schema would have it in its path, and Alembic take it for `public`.
        self._settings |= {"timezone": "UTC", "search_path": "public"}
        self._on_dispose, self._revive = on_dispose, revive
        self._arguments = self._connect_arguments(given, connect_timeout_s)
        self._prepare_threshold = prepare_threshold
        self._answer_timeout_s = statement_timeout_s + answer_margin_s
        self.engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_pre_ping=True,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=30,
        )
        if self._pooler:
            event.listen(self.engine, "begin", self._set_locally)
        self._pools_left = 0
        event.listen(self.engine, "connect", self._mark)
        event.listen(self.engine, "checkin", self._close_late)
        _databases.add(self)

    def __repr__(self) -> str:
        return f"Database({self.address!r})"

    def _connect_arguments(self, given: dict[str, str], timeout_s: int) -> str:
        own: dict[str, Any] = {"connect_timeout": timeout_s, "application_name": _APPLICATION}
        own |= {"client_encoding": "UTF8"}
        if not self._pooler:  # a pooler refuses start-up parameters that it does not know
            own["options"] = " ".join(
                [f"-c {name}={value}" for name, value in self._settings.items()]
                + [given.get("options") or os.environ.get("PGOPTIONS", "")]
            ).strip()
        kept = {name: value for name, value in given.items() if name != "options"}
        return make_conninfo(**{**own, **kept})

    def _mark(self, driver: Any, record: ConnectionPoolEntry) -> None:
        record.info[_POOL] = driver.pools_left

    def _close_late(self, _driver: object, record: ConnectionPoolEntry) -> None:
        """Close a connection that comes back after its pool was left: nobody else would."""
        if record.info.get(_POOL, self._pools_left) != self._pools_left:
            record.invalidate()

    def _leave_pool(self) -> None:
        self._pools_left += 1
        self.engine.dispose()

    def _set_locally(self, connection: sqlalchemy.Connection) -> None:
        calls = ", ".join(f"set_config('{k}', '{v}', true)" for k, v in self._settings.items())
        connection.exec_driver_sql(f"SELECT {calls}")

    def _connect(self) -> _Connection:
        pools_left = self._pools_left  # before: to connect takes long, and the pool may be left
        try:
            return self._connect_once(pools_left)
        except psycopg.OperationalError:
            if self._revive is None:
                raise
        self._revive()
        return self._connect_once(pools_left)

    def _connect_once(self, pools_left: int) -> _Connection:
        connection = _Connection.connect(self._arguments, prepare_threshold=self._prepare_threshold)
        connection.answer_timeout_s = self._answer_timeout_s
        connection.pools_left = pools_left
        try:
            require_version(connection.info.server_version, self.address)
        except ConfigurationError:
            connection.close()
            raise
        return connection

    def _unavailable(self, error: BaseException) -> NoReturn:
        driver = getattr(error, "orig", None) or error
        reason = " ".join(str(driver).split()).rstrip(".") or type(driver).__name__
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        kind = StoreDenied if _state(error) == _DENIED else StoreUnavailable
        raise kind(self.address, reason) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.TimeoutError as error:
            self._unavailable(error)
        except exc.DBAPIError as error:
            self._tell(error, isinstance(error, exc.OperationalError | exc.InterfaceError))
        except psycopg.Error as error:
            self._tell(error, isinstance(error, psycopg.OperationalError | psycopg.InterfaceError))

    def _tell(self, error: exc.DBAPIError | psycopg.Error, lost: bool) -> NoReturn:
        """As one of our errors, unless it is about a statement alone."""
        state = _state(error)
        if state == _READ_ONLY:
            self._leave_pool()
        if lost or state in (_READ_ONLY, _DENIED, _SILENT):
            self._unavailable(error)
        raise error

    @contextmanager
    def begin(self) -> Iterator[sqlalchemy.Connection]:
        """One transaction: committed at the end of the block, rolled back by an exception.

        Raises:
            StoreUnavailable: no server, none that writes, or none that answers in time. After a
                failure at the end of the block the commit may have happened: read it back.
        """
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlalchemy.Connection]:
        """One transaction that only reads, and in which every query sees the same moment.

        Raises:
            StoreUnavailable: as for `begin`.
        """
        with self._translated(), self.engine.connect() as connection:
            reading = connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            with reading.begin():
                yield reading

    @contextmanager
    def raw(self) -> Iterator[psycopg.Connection[Any]]:
        """One transaction on psycopg's own connection, for COPY; otherwise as `begin`."""
        with self._translated(), self.engine.begin() as connection:
            driver: Any = connection.connection.driver_connection
            try:
                yield driver
            except BaseException:
                # Gone, or amid a COPY that nobody ends: there is nothing to roll back with.
                if driver.info.transaction_status in _BROKEN_OFF:
                    connection.invalidate()
                raise

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection[Any]]:
        """psycopg's own connection for statements that read, each by itself: one round trip each.

        Behind a pooler as `raw`: there the settings last as long as a transaction.
        """
        if self._pooler:
            with self.raw() as within:
                yield within
            return
        with self._translated(), self.engine.connect() as connection:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            driver: Any = alone.connection.driver_connection
            try:
                yield driver
            except BaseException:
                if driver.info.transaction_status in _BROKEN_OFF:
                    alone.invalidate()
                raise

    @contextmanager
    def begin_unlimited(self) -> Iterator[sqlalchemy.Connection]:
        """As `begin`, and what is done in it takes as long as it needs (a migration)."""
        with self._translated(), self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.answer_timeout_s = None
            try:
                with connection.begin():
                    for limit in _LIMITS:
                        connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
                    yield connection
            finally:
                driver.answer_timeout_s = self._answer_timeout_s

    @contextmanager
    def listening(self, channel: str) -> Iterator[Callable[[float], bool]]:
        """A connection of its own that hears notifications; call with the seconds to wait for one.

        What comes together counts as one. Behind a pooler in transaction mode nothing is heard.

        Raises:
            StoreUnavailable: at the start, or in a call: it is lost and hears no more.
        """
        with self._translated(), self._connect() as connection:
            connection.autocommit = True
            connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))

            def heard(timeout_s: float) -> bool:
                # Run to its end, so that what came together counts once.
                return sum(1 for _ in connection.notifies(timeout=timeout_s, stop_after=1)) > 0

            yield heard

    def ping(self) -> None:
        """One round trip.

        Raises:
            StoreUnavailable: it fails.
        """
        with self.begin() as connection:
            connection.exec_driver_sql("SELECT 1")

    def check_schema(self) -> None:
        """Compare the database's schema revision with this version's.

        Raises:
            SchemaOutdated: they differ.
            StoreUnavailable: the database cannot be reached.
        """
        from qigstore.database import migrate
        from qigstore.errors import SchemaOutdated

        found, expected = migrate.current(self), migrate.head()
        if found != expected:
            raise SchemaOutdated(self.address, found, expected)

    def dispose(self) -> None:
        """Close every connection, those in use once they are let go; the embedded server stops if
        this was its last user."""
        self._leave_pool()
        on_dispose, self._on_dispose = self._on_dispose, None
        if on_dispose is not None:
            on_dispose()


def open_database(settings: Settings, *, check: bool = True) -> Database:
    """Open the database that the settings name, or else the embedded one, starting its server.

    `check=False` leaves out the check of the schema (and the embedded server's migration).

    Raises:
        StoreUnavailable: it cannot be reached (EmbeddedServerError: or not started).
        SchemaOutdated: its schema is not this version's. Only the embedded server is migrated
            here; elsewhere `qigstore db upgrade` does it.
    """
    options: dict[str, Any] = {
        "pool_size": settings.pool_size,
        "connect_timeout_s": settings.connect_timeout_s,
        "statement_timeout_s": settings.statement_timeout_s,
    }
    if settings.dsn is not None:
        dsn, threshold = settings.dsn.get_secret_value(), settings.prepare_threshold
        database = Database(dsn, prepare_threshold=threshold, **options)
    else:
        database = _open_embedded(settings, options)
    try:
        if check:
            if settings.dsn is None:
                _migrate_embedded(database)
            database.check_schema()
        else:
            database.ping()
    except BaseException:
        database.dispose()
        raise
    return database


def _open_embedded(settings: Settings, options: dict[str, Any]) -> Database:
    from qigstore.database.embedded import EmbeddedServer

    server = EmbeddedServer.start(settings.server_root, settings.pg_bin)
    try:
        return Database(
            server.dsn(),
            prepare_threshold=settings.prepare_threshold,
            on_dispose=server.close,
            revive=server.ensure,
            **options,
        )
    except BaseException:
        server.close()
        raise


def _migrate_embedded(database: Database) -> None:
    from qigstore.database import migrate

    # A revision we do not know is a newer package's: left alone, and refused by the check.
    found = migrate.current(database)
    if found != migrate.head() and (found is None or found in migrate.revisions()):
        migrate.upgrade(database)
