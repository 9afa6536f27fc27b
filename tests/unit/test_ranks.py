"""Ranks agree at a step boundary: the strongest wish of any holds for all, a lost one stops all."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from processes import wait_until

from qigstore.errors import ConfigurationError, RankError
from qigstore.safety.detectors import Alarm
from qigstore.safety.emergency import Emergency, Origin
from qigstore.safety.ranks import Ranks, Together, Wish, led

LIMIT_S = 60.0


class Table:
    """Where threads that play ranks meet; `leave` is a rank's death."""

    def __init__(self, size: int) -> None:
        self.size, self.given = size, [0] * size
        self.words = [""] * size
        self.barrier = threading.Barrier(size)

    def _wait(self, limit_s: float) -> None:
        try:
            self.barrier.wait(limit_s)
        except threading.BrokenBarrierError:
            raise RankError("a rank is gone") from None

    def most(self, rank: int, number: int, waits: Callable[[], bool]) -> int:
        self.given[rank] = number
        if not waits():
            self.barrier.abort()
        self._wait(LIMIT_S)
        found = max(self.given)
        self._wait(LIMIT_S)
        return found

    def tell(self, rank: int, text: str, source: int) -> str:
        self.words[rank] = text
        self._wait(LIMIT_S)
        found = self.words[source]
        self._wait(LIMIT_S)
        return found

    def leave(self) -> None:
        # Not while the others are still on their way out of what was agreed last.
        wait_until(lambda: self.barrier.n_waiting == self.size - 1, "the others wait", LIMIT_S)
        self.barrier.abort()

    def seat(self, rank: int, **more: Any) -> Ranks:
        return Ranks(
            rank=rank, size=self.size,
            most=lambda number, waits: self.most(rank, number, waits),
            tell=lambda text, source: self.tell(rank, text, source),
            **more,
        )  # fmt: skip


def emergency(rank: int) -> Emergency:
    return Emergency(Origin(1, 1, rank), write_event=lambda _event: None)


def play(size: int, part: Callable[[int], object]) -> list[Any]:
    """Every rank's part in a thread of its own; their results, or what they raised."""
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = part(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LIMIT_S)
        assert not thread.is_alive()
    return results


def test_all_stop_at_one_boundary_for_the_first_reason_of_the_strongest_wish(
    rng: random.Random,
) -> None:
    for _ in range(60):
        size, every = rng.randint(1, 5), rng.randint(1, 4)
        # When each rank begins to want what: most want nothing for a long time.
        wishes = [(rng.randint(0, 30), Wish(rng.randint(0, 3))) for _ in range(size)]
        table = Table(size)
        seen: list[tuple[int, Wish]] = []

        def part(
            rank: int,
            table: Table = table,
            wishes: Any = wishes,
            every: int = every,
            seen: list[tuple[int, Wish]] = seen,
        ) -> tuple[int | None, bool, str | None]:
            flag = emergency(rank)
            mine = Together(table.seat(rank, every=every), flag, lambda: False, 1.0)
            for step in range(40):
                at, wish = wishes[rank]
                wanted = wish if step >= at else Wish.GO_ON
                if wanted >= Wish.LEAVE:
                    flag.stop.set(f"reason {rank}", checkpoint=wanted == Wish.STOP)
                if mine.due(step):
                    agreed = mine.meet(wanted, step)
                    if rank == 0:
                        seen.append((step, agreed))
                if mine.stopping:
                    return step, mine.saves, flag.stop.reason
            return None, False, flag.stop.reason

        results = play(size, part)
        for step, agreed in seen:
            assert agreed == max(w if step >= at else Wish.GO_ON for at, w in wishes)
        stops = [at for at, wish in wishes if wish >= Wish.LEAVE]
        boundary = min((-(-at // every) * every for at in stops), default=None)
        assert {step for step, *_ in results} == {boundary}
        if boundary is None:
            continue
        strongest = max(wish for at, wish in wishes if at <= boundary)
        source = next(r for r, (at, w) in enumerate(wishes) if w == strongest and at <= boundary)
        assert {saves for _, saves, _ in results} == {strongest == Wish.STOP}
        for rank, (_, _, reason) in enumerate(results):
            own = wishes[rank][0] <= boundary and wishes[rank][1] >= Wish.LEAVE
            assert reason == (f"reason {rank}" if own else f"rank {source}: reason {source}")


def test_a_critical_event_of_another_rank_is_known_by_its_id() -> None:
    table = Table(2)

    def part(rank: int) -> tuple[str | None, bool, Any]:
        flag = emergency(rank)
        mine = Together(table.seat(rank), flag, lambda: False, 1.0)
        if rank == 1:
            alarm = Alarm("r", "critical", "loss", 9.0, 1.0, "too high", "abort", 3)
            flag.raise_alarm(alarm)
        mine.meet(Wish.STOP if rank else Wish.GO_ON, 3)
        flag.close(LIMIT_S)
        return mine.event, mine.alarm, flag.stop.event

    (event, alarm, own), (_, _, raised) = play(2, part)
    assert (event, alarm, own) == (str(raised.id), True, None)


def test_a_lost_rank_stops_the_others_with_an_event_and_a_checkpoint() -> None:
    table = Table(3)

    def part(rank: int) -> tuple[bool, bool, bool, Any]:
        flag = emergency(rank)
        mine = Together(table.seat(rank), flag, lambda: False, 1.0)
        mine.meet(Wish.GO_ON, 0)
        if rank == 1:
            table.leave()
            return (True,) * 3 + (None,)
        assert mine.meet(Wish.GO_ON, 1) == Wish.STOP
        flag.close(LIMIT_S)
        return mine.stopping, mine.saves, mine.lost, flag.stop.event

    for rank, (stopping, saves, lost, event) in enumerate(play(3, part)):
        assert (stopping, saves, lost) == (True, True, True)
        if rank != 1:
            assert (event.rule, event.severity, event.action) == ("rank lost", "warning", "abort")
            assert (event.step, event.rank) == (1, rank)


@pytest.mark.parametrize(("hurried", "limit_s"), [(True, 100.0), (False, 1e-9)])
def test_a_silent_rank_is_waited_for_with_a_limit_and_shorter_after_a_signal(
    hurried: bool, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, times = [], itertools.count()
    # A hundredth of a second passes from one look at the clock to the next.
    monkeypatch.setattr("qigstore.safety.ranks.monotonic", lambda: next(times) / 100)

    def most(_number: int, waits: Callable[[], bool]) -> int:
        while waits():  # the other one never comes
            asked.append(1)
        raise RankError("a rank did not come to the end of its step in time")

    ranks = Ranks(rank=0, size=2, most=most, tell=lambda text, _: text, limit_s=limit_s)
    together = Together(ranks, emergency(0), lambda: hurried, 0.05)
    assert together.meet(Wish.GO_ON, 5) == Wish.STOP
    assert together.lost
    assert bool(asked) == hurried


def test_what_rank_0_does_for_all_is_known_to_all_and_so_is_its_failure() -> None:
    table = Table(3)
    done: list[int] = []

    def good(rank: int) -> str:
        def count() -> str:
            done.append(rank)
            return "one"

        return led(table.seat(rank), "count", count)

    assert play(3, good) == ["one"] * 3
    assert done == [0]

    def fail() -> str:
        raise ConfigurationError("no")

    first, *others = play(3, lambda rank: led(table.seat(rank), "count", fail))
    assert isinstance(first, ConfigurationError)
    for error in others:
        assert isinstance(error, RankError)
        assert str(error) == "rank 0 could not count: ConfigurationError: no"


def test_rank_0_raises_its_own_error_where_nobody_is_left_to_hear_of_it() -> None:
    table = Table(2)
    table.barrier.abort()

    def fail() -> str:
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError, match="no"):
        led(table.seat(0), "count", fail)


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 2}, {"rank": -1}, {"size": 0}, {"every": 0}, {"limit_s": 0.0}, {"limit_s": -1.0},
     {"limit_s": float("nan")}],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused(wrong: dict[str, Any]) -> None:
    given = {"rank": 0, "size": 2, **wrong}
    with pytest.raises(ConfigurationError, match="expected"):
        Ranks(most=lambda n, _: n, tell=lambda t, _: t, **given)
