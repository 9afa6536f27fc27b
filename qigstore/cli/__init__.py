"""The command line, `qigstore …`: one file a command group, and one place for errors.

Every error this package raises on purpose becomes one line on stderr and an exit status of the
table below; `QIGSTORE_DEBUG=1` shows the traceback as well.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import NoReturn

from qigstore import errors

__all__ = ["EXIT_CODES", "exit_code", "main"]

EXIT_CODES = MappingProxyType(
    {
        0: "all went well",
        1: "an error, said in one line on stderr",
        2: "the command line or a setting cannot be used as given",
        3: "the store is unavailable: no database answers",
        4: "the schema is outdated: run `qigstore db upgrade`",
        5: "not found: no session, checkpoint or event of that name",
        6: "no healthy checkpoint to recover from",
        7: "a checkpoint is damaged, or `checkpoints doctor` found something to mend",
        8: "the session is not running: there is nothing to stop",
        errors.EXIT_EMERGENCY: "a run stopped itself in an emergency; start it again to recover",
        130: "interrupted by Ctrl-C; nothing is left running",
    }
)
"""Exit statuses of `qigstore` and of the training processes it starts, with their meaning."""

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.StoreUnavailable, 3),
    (errors.SchemaOutdated, 4),
    (errors.NotFound, 5),
    (errors.NoHealthyCheckpoint, 6),
    (errors.CheckpointCorrupt, 7),
    (errors.NotRunning, 8),
    (errors.ConfigurationError, 2),
    (errors.InvalidInput, 2),
)


def exit_code(error: BaseException) -> int:
    """The exit status that tells of this error."""
    if isinstance(own := getattr(error, "exit_status", None), int):
        return own
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its status.

    Args:
        arguments: the words after `qigstore`; None: those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Φ shows its code, and no command fails for a letter.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from typer.main import get_command

        from qigstore.cli.app import app

        get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="qigstore"
        )
    except (errors.QigstoreError, OSError) as error:
        if os.environ.get("QIGSTORE_DEBUG", "") not in {"", "0"}:
            raise
        sys.stderr.write(f"qigstore: {_words(error)}\n")
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        # Ctrl-C outside Typer's own hands: while modules load, or a command is being left.
        sys.stderr.write("qigstore: interrupted\n")
        sys.exit(130)
    finally:
        # A KeyboardInterrupt that came out of source text (which modules execute while they load)
        # makes `python -m` end by SIGINT, though it was caught since. The next text clears that.
        exec("")  # noqa: S102 - it is empty
    sys.exit(0)


def _words(error: BaseException) -> str:
    if isinstance(error, errors.QigstoreError):
        return str(error)
    assert isinstance(error, OSError)
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
