"""Snapshots of PostgreSQL as positions in what was committed; pure.

Transactions become visible in another order than that of their numbers: a number that is passed
may still commit. A snapshot says of every transaction whether it was visible: so it is a place in
the order of commits that loses nothing, and a smaller one can be made of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from qigstore.errors import InvalidInput

__all__ = ["Snapshot"]

_RUNNING_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Visible: every transaction below `xmax` that is not among `running`.

    Attributes:
        running: numbers below `xmax`, rising.
    """

    xmax: int
    running: tuple[int, ...] = ()

    @property
    def xmin(self) -> int:
        """Everything below it is visible."""
        return self.running[0] if self.running else self.xmax

    @classmethod
    def parse(cls, text: str) -> Self:
        """From PostgreSQL's own text, `xmin:xmax:running`.

        Raises:
            InvalidInput: it is not one.
        """
        try:
            least, most, listed = text.split(":")
            running = tuple(int(number) for number in listed.split(",") if number)
            found = cls(int(most), running)
        except ValueError:
            raise InvalidInput("snapshot", text[:80], "xmin:xmax:running") from None
        found.check()
        if found.xmin != int(least):
            raise InvalidInput("snapshot", text[:80], f"xmin {found.xmin}")
        return found

    def check(self) -> None:
        """See that it is one.

        Raises:
            InvalidInput: numbers that are not rising, or not below `xmax`.
        """
        bounds = (0, *self.running, self.xmax)
        rising = all(a < b for a, b in pairwise(bounds))
        if not rising or self.xmax >= 2**63 or len(self.running) > _RUNNING_MAX:
            raise InvalidInput("snapshot", str(self)[:80], "rising numbers of transactions")

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"

    def sees(self, transaction: int) -> bool:
        """Whether a transaction is visible."""
        return transaction < self.xmax and transaction not in self.running

    def includes(self, other: Snapshot) -> bool:
        """Whether everything that is visible in another one is visible in this."""
        unknown = other.xmax - self.xmax  # running there, or visible there and not here
        if unknown > sum(number >= self.xmax for number in other.running):
            return False
        hidden = (number for number in self.running if number < other.xmax)
        return all(number in other.running for number in hidden)

    def advanced(self, later: Snapshot, transaction: int) -> Snapshot:
        """This one and, of what `later` sees beyond it, the transactions up to this number.

        `later` includes this one.
        """
        xmax = max(self.xmax, min(transaction + 1, later.xmax))
        running = {number for number in later.running if number < xmax}
        running |= {number for number in self.running if number > transaction}
        return Snapshot(xmax, tuple(sorted(running)))

    def including(self, transaction: int) -> Snapshot:
        """This one and a single transaction beyond it."""
        hidden = {*self.running, *range(self.xmax, transaction)} - {transaction}
        return Snapshot(max(self.xmax, transaction + 1), tuple(sorted(hidden)))
