"""The peers of `benchmarks.recording`, each as its own documentation has it log scalars.

trackio and wandb (offline) take a row a call; TensorBoard takes a scalar a call; MLflow writes to
the same PostgreSQL server as ours, in its three ways.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any, ClassVar

from benchmarks.recording_subjects import Log, Place, Subject, one_number

__all__ = ["PEERS"]


def _size(folder: Path, pattern: str) -> int:
    found = {path.resolve() for path in folder.rglob(pattern)}
    return sum(path.stat().st_size for path in found if path.is_file())


class Trackio(Subject):
    """`trackio.log` into the SQLite file of a local project."""

    title = "trackio.log(row)"
    needs = ("trackio",)
    hot_calls, bulk_rows = 2_000, 5_000

    def open(self) -> Log:
        os.environ["TRACKIO_DIR"] = str(self.place.folder)
        self.trackio: Any = import_module("trackio")
        self.trackio.init(
            project=self.place.name, embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        self.logged = 0
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        self.logged += 1
        return self.trackio.log(row, step=step)

    def settle(self) -> None:
        from time import sleep

        while self.left() < self.logged:  # it has no call to wait with, other than `finish`
            sleep(0.01)

    def close(self) -> None:
        self.trackio.finish()

    def progress(self) -> int:
        return self.left()

    def bytes_used(self) -> int:
        return _size(self.place.folder, "*.db*")

    def left(self) -> int:
        return sum(_metrics_in(path) for path in self.place.folder.rglob("*.db"))


def _metrics_in(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'metrics'")
        if tables.fetchone() is None:
            return 0
        return int(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])


class Wandb(Subject):
    """`run.log` in offline mode: into the file that `wandb sync` uploads later."""

    title = "wandb offline run.log(row)"
    needs = ("wandb",)
    hot_calls, bulk_rows = 2_000, 4_000

    def open(self) -> Log:
        folder = str(self.place.folder)
        os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": folder}
        for what in ("CACHE", "CONFIG", "DATA"):
            os.environ[f"WANDB_{what}_DIR"] = f"{folder}/{what.lower()}"
        wandb: Any = import_module("wandb")
        settings = wandb.Settings(x_disable_stats=True, console="off")
        self.run = wandb.init(project=self.place.name, settings=settings)
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        return self.run.log(row, step=step)

    def settle(self) -> None:
        self.run.finish()  # nothing else makes its file whole; the process reads no row back

    def close(self) -> None:
        self.run.finish()

    def progress(self) -> int:
        return self.bytes_used()

    def bytes_used(self) -> int:
        return _size(self.place.folder, "run-*.wandb")

    def left(self) -> int:
        pb: Any = import_module("wandb.proto.wandb_internal_pb2")
        found = {path.resolve() for path in self.place.folder.rglob("run-*.wandb")}
        return sum(
            pb.Record.FromString(data).WhichOneof("record_type") == "history"
            for path in found
            for data in _leveldb_records(path.read_bytes())
        )


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """Whole records of a LevelDB log: blocks of 32 KiB, pieces of crc u32, length u16, type u8."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if not 1 <= kind <= 4 or at + 7 + length > len(data):
            return
        parts = (parts if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts


class TensorBoard(Subject):
    """`add_scalar` of each metric, by torch's writer where there is one, else tensorboardX's."""

    title = "TensorBoard add_scalar × 20"
    hot_calls, bulk_rows = 1_000, 1_500
    watched = 2  # its writer waits two minutes

    @classmethod
    def missing(cls) -> str | None:
        if find_spec("torch") and find_spec("tensorboard"):
            return None
        cls.needs = ("tensorboardX",)
        return super().missing()

    def open(self) -> Log:
        theirs = find_spec("torch") and find_spec("tensorboard")
        module: Any = import_module("torch.utils.tensorboard" if theirs else "tensorboardX")
        self.writer = module.SummaryWriter(str(self.place.folder / "events"))
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        add = self.writer.add_scalar
        for name, value in row.items():
            add(name, value, step)
        return None

    def settle(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def progress(self) -> int:
        return self.bytes_used()

    def bytes_used(self) -> int:
        return _size(self.place.folder / "events", "*tfevents*")

    def left(self) -> int:
        theirs = find_spec("tensorboard")
        name = "tensorboard.compat.proto.event_pb2" if theirs else "tensorboardX.proto.event_pb2"
        proto: Any = import_module(name)
        counts: dict[int, int] = {}
        for path in (self.place.folder / "events").rglob("*tfevents*"):
            data, at = path.read_bytes(), 0
            while at + 12 <= len(data):
                (length,) = struct.unpack_from("<Q", data, at)
                if at + 16 + length > len(data):
                    break
                event = proto.Event.FromString(data[at + 12 : at + 12 + length])
                counts[event.step] = counts.get(event.step, 0) + len(event.summary.value)
                at += 16 + length
        return sum(count == 20 for count in counts.values())


class _Mlflow(Subject):
    """A run in an experiment of its own, in a database beside ours on the same server."""

    needs = ("mlflow",)
    database: ClassVar[str] = "mlflow_peer"
    _RUN = (
        "(SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) "
        "WHERE experiments.name = %s)"
    )

    def _begin(self) -> None:
        import psycopg

        os.environ |= {
            "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
            "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_TRACKING_URI": _sqlalchemy_url(self.place),
        }  # fmt: skip
        with psycopg.connect(self.place.dsn, autocommit=True) as connection:
            known = "SELECT count(*) FROM pg_database WHERE datname = %s"
            if not one_number(connection, known, self.database):
                connection.execute(f"CREATE DATABASE {self.database}")
        self.mlflow: Any = import_module("mlflow")
        self.mlflow.set_experiment(self.place.name)
        self.run = self.mlflow.start_run().info.run_id
        self.reader = self._connect()
        self.before = self._table_bytes()

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.place.dsn, dbname=self.database, autocommit=True)

    def settle(self) -> None:
        """Nothing waits: the call returned after its COMMIT."""

    def close(self) -> None:
        self.mlflow.end_run()
        self.reader.close()

    def progress(self) -> int:
        query = "SELECT max(step) FROM latest_metrics WHERE run_uuid = %s"
        return one_number(self.reader, query, self.run)

    def _table_bytes(self) -> int:
        query = (
            "SELECT pg_total_relation_size('metrics') + pg_total_relation_size('latest_metrics')"
        )
        return one_number(self.reader, query)

    def bytes_used(self) -> int:
        return self._table_bytes() - self.before

    def left(self) -> int:
        query = (
            "SELECT count(*) FROM (SELECT step FROM metrics "
            f"WHERE run_uuid = {self._RUN} GROUP BY step HAVING count(*) = 20) AS whole"
        )
        with self._connect() as connection:
            return one_number(connection, query, self.place.name)


def _sqlalchemy_url(place: Place) -> str:
    from psycopg.conninfo import conninfo_to_dict
    from sqlalchemy.engine import URL

    given = {key: str(value) for key, value in conninfo_to_dict(place.dsn).items()}
    url = URL.create(
        "postgresql+psycopg",
        username=given.get("user"),
        password=given.get("password"),
        database=_Mlflow.database,
        query={key: given[key] for key in ("host", "port") if key in given},
    )
    return url.render_as_string(hide_password=False)


class MlflowSync(_Mlflow):
    """`mlflow.log_metrics`, which returns when its rows are stored."""

    title = "mlflow.log_metrics(row)"
    hot_calls, paced_calls, bulk_rows = 50, 50, 100

    def open(self) -> Log:
        self._begin()
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        return self.mlflow.log_metrics(row, step=step)


class MlflowAsync(_Mlflow):
    """`mlflow.log_metrics(synchronous=False)`: queued for a thread that stores."""

    title = "mlflow.log_metrics(row, synchronous=False)"
    hot_calls, paced_calls, bulk_rows = 200, 200, 100

    def open(self) -> Log:
        self._begin()
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        return self.mlflow.log_metrics(row, step=step, synchronous=False)

    def settle(self) -> None:
        self.mlflow.flush_async_logging()


class MlflowBatch(_Mlflow):
    """`MlflowClient.log_batch` by hand, 50 steps (its limit of 1,000 metrics) a call."""

    title = "MlflowClient.log_batch, 50 steps by hand"
    hot_calls, paced_calls, bulk_rows = 500, 500, 1_000
    watched = 0  # whenever the caller's fiftieth step comes

    def open(self) -> Log:
        self._begin()
        self.metric: Any = import_module("mlflow.entities").Metric
        self.client = self.mlflow.MlflowClient()
        self.waiting: list[Any] = []
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        now = int(time() * 1000)
        self.waiting += [self.metric(name, value, now, step) for name, value in row.items()]
        if len(self.waiting) >= 1_000:
            self.settle()
        return None

    def settle(self) -> None:
        if self.waiting:
            self.client.log_batch(self.run, self.waiting)
            self.waiting = []


PEERS: Sequence[type[Subject]] = (
    Trackio, Wandb, TensorBoard, MlflowSync, MlflowAsync, MlflowBatch,
)  # fmt: skip
