"""Places in a stream: snapshots against a model, tokens that are whole or refused."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.errors import InvalidInput
from qigstore.repository.feed import FOLLOWED_MAX, Mark, Seen, WriterKey
from qigstore.repository.snapshots import Snapshot
from qigstore.server.stream.position import (
    TOKEN_CHARACTERS_MAX,
    Position,
    read_token,
    write_token,
)

STORE, SCOPE = UUID(int=7), b"abcd"
LAST = 40


@st.composite
def histories(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """A snapshot and a later one: transactions begin and end, in any order."""
    state = ["new"] * LAST
    found = []
    for _ in range(2):
        for number in range(LAST):
            if state[number] != "ended":
                state[number] = draw(st.sampled_from([state[number], "running", "ended"]))
        begun = [number for number in range(LAST) if state[number] != "new"]
        xmax = max(begun, default=0) + 1
        # A number is given out only after all below it.
        state = ["ended" if was == "new" and n < xmax else was for n, was in enumerate(state)]
        running = tuple(n for n in range(1, xmax) if state[n] == "running")
        found.append(Snapshot(xmax, running))
    return found[0], found[1]


def seen_by(snapshot: Snapshot) -> set[int]:
    return {number for number in range(LAST + 2) if snapshot.sees(number)}


@given(histories(), st.integers(0, LAST + 1))
def test_a_snapshot_advanced_sees_what_it_saw_and_the_later_one_up_to_there(
    pair: tuple[Snapshot, Snapshot], transaction: int
) -> None:
    before, later = pair
    made = before.advanced(later, transaction)
    expected = {n for n in seen_by(later) if n <= transaction} | seen_by(before)
    assert seen_by(made) == expected
    made.check()
    assert made.includes(before)
    assert later.includes(made)


@given(histories(), st.integers(1, LAST))
def test_a_snapshot_including_a_transaction_sees_that_one_more(
    pair: tuple[Snapshot, Snapshot], transaction: int
) -> None:
    made = pair[0].including(transaction)
    assert seen_by(made) == seen_by(pair[0]) | {transaction}
    made.check()


@given(histories(), histories())
def test_one_includes_another_where_it_sees_all_that_the_other_sees(
    pair: tuple[Snapshot, Snapshot], other: tuple[Snapshot, Snapshot]
) -> None:
    for one in pair:
        for two in other:
            assert one.includes(two) == (seen_by(two) <= seen_by(one))


def test_what_runs_in_the_other_is_not_missing_here() -> None:
    assert Snapshot(39, (38,)).includes(Snapshot(40, (38, 39)))
    assert not Snapshot(39, (38,)).includes(Snapshot(40, (38,)))


@given(histories())
def test_a_snapshot_is_postgresqls_own_text(pair: tuple[Snapshot, Snapshot]) -> None:
    for snapshot in pair:
        assert Snapshot.parse(str(snapshot)) == snapshot


@pytest.mark.parametrize("text", ["", "1:2", "2:1:", "1:5:3,2", "1:5:9", "3:5:2", "a:b:c", "0:0:"])
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Snapshot.parse(text)


whole = st.integers(0, 2**62)
keys = st.builds(WriterKey, whole, whole, whole)
marks = st.dictionaries(keys, st.builds(Mark, whole, st.integers(-1, 2**62)), max_size=20)
places = st.builds(
    lambda pair, transaction, last, marks: Position(
        Seen(pair[1], transaction, last) if 0 < transaction <= pair[1].xmax else Seen(pair[1]),
        marks,
    ),
    histories(), st.integers(0, LAST), st.uuids(), marks,
)  # fmt: skip


@given(places)
def test_a_token_gives_back_its_position(position: Position) -> None:
    token = write_token(position, STORE, SCOPE)
    assert read_token(token, STORE, SCOPE) == position


@given(places, st.data())
def test_a_token_that_was_changed_or_cut_is_refused(
    position: Position, data: st.DataObject
) -> None:
    token = write_token(position, STORE, SCOPE)
    at = data.draw(st.integers(0, len(token) - 1))
    letter = "A" if token[at] != "A" else "B"
    for wrong in (token[:at], token[:at] + letter + token[at + 1 :], token + "AAAA"):
        try:
            found = read_token(wrong, STORE, SCOPE)
        except InvalidInput:
            continue
        assert found == position  # the last letter has bits that stand for nothing


def test_a_token_is_for_its_store_and_its_subscriptions_only() -> None:
    token = write_token(Position(Seen(Snapshot(9)), {}), STORE, SCOPE)
    for store, scope in ((uuid4(), SCOPE), (STORE, b"abce")):
        with pytest.raises(InvalidInput, match="of this store"):
            read_token(token, store, scope)


@pytest.mark.parametrize("text", ["", "x", "====", "é" * 20, "A" * (TOKEN_CHARACTERS_MAX + 1)])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_token(text, STORE, SCOPE)


def test_the_token_of_as_many_writers_as_are_followed_fits() -> None:
    marks = {WriterKey(10**6 + n, 20, n % 64): Mark(10**9, 10**9) for n in range(FOLLOWED_MAX)}
    token = write_token(Position(Seen(Snapshot(2**40)), marks), STORE, SCOPE)
    assert len(token) <= TOKEN_CHARACTERS_MAX


def test_a_position_reaches_another_where_it_has_all_of_it() -> None:
    key, other = WriterKey(1, 1, 0), WriterKey(1, 2, 0)
    low = Position(Seen(Snapshot(9, (5,))), {key: Mark(3, 3)})
    high = Position(Seen(Snapshot(12, (11,))), {key: Mark(4, 4), other: Mark(1, 1)})
    assert high.reaches(low)
    assert not low.reaches(high)
    assert not Position(high.seen, {key: Mark(2, 2)}).reaches(low)
    assert not Position(low.seen, high.marks).reaches(high)
    # Of transaction 11 the client has a part: only who sees all of it can go on.
    part = Position(Seen(low.seen.snapshot, 11, uuid4()), {})
    assert not high.reaches(part)
    assert Position(Seen(Snapshot(12)), {}).reaches(part)
