"""The layouts of one spool, each with a number of its own."""

from __future__ import annotations

from qigstore.errors import InvalidInput
from qigstore.recording.spool.frame import FRAME_BYTES_MAX, Layout

__all__ = ["Layouts"]

_LAYOUTS_MAX = 4_096


class Layouts:
    """Knows the latest few thousand; one that comes again later gets a new number."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, ...], int], Layout] = {}
        self._last = 0

    def of(self, names: tuple[str, ...], dimension: int) -> Layout:
        """The layout of rows with these metrics and a basin of `dimension` numbers.

        Raises:
            InvalidInput: the row, or its names together, would not fit a frame.
        """
        found = self._known.get((names, dimension))
        if found is None:
            self._last += 1
            found = Layout(self._last, names, dimension)
            size = max(found.size, len("".join(names).encode()) + 8 * len(names) + 256)
            if size > FRAME_BYTES_MAX:
                what = f"a row and its names within {FRAME_BYTES_MAX} bytes each"
                raise InvalidInput("metrics", f"{len(names)} names, {size} bytes", what)
            self._known[names, dimension] = found
            if len(self._known) > _LAYOUTS_MAX:
                del self._known[next(iter(self._known))]
        return found
