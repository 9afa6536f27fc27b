"""What is refused before a database is asked."""

from __future__ import annotations

from qigstore.errors import InvalidInput

__all__ = ["check_bounded", "check_span"]


def check_bounded(name: str, value: int, most: int) -> None:
    """A whole number from 1 to `most`.

    Raises:
        InvalidInput: it is another.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidInput(name, value, f"1 to {most:,}")


def check_span(start: int, stop: int | None) -> None:
    """Steps [start, stop): not negative, not reversed; `stop=None` is open.

    Raises:
        InvalidInput: they are.
    """
    for name, value in (("start", start), ("stop", stop)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidInput(name, value, "a step")
    if not 0 <= start < 2**63:
        raise InvalidInput("start", start, "a step, from 0")
    if stop is not None and not start <= stop < 2**63:
        raise InvalidInput("stop", stop, f"a step from start ({start}) on")
