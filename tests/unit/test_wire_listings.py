"""Listings without handles: what is there all the time is listed once, wherever the parts begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.engines.fuse.wire.directories import listings
from fuseunion.engines.fuse.wire.directories.listings import Listing
from fuseunion.engines.fuse.wire.entries import unkept_listing
from fuseunion.engines.fuse.wire.layouts import DIRENT, ENTRY

NAMES = st.lists(st.binary(min_size=1, max_size=8), unique=True, max_size=300)


def _listing(names: list[bytes]) -> Listing:
    made = Listing(len(names))
    made.add(names)
    return made


def _in_parts(listings: list[Listing], sizes: list[int]) -> list[bytes]:
    """List in parts, the first from the first listing, and so on; the last to the end."""
    found: list[bytes] = []
    position = 0
    for index, listing in enumerate(listings):
        last = index == len(listings) - 1
        for count, (place, name) in enumerate(listing.after(position)):
            if not last and count == sizes[index % len(sizes)]:
                break
            assert place > position
            position = place
            found.append(name)
    return found


@given(NAMES, st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(1, 10))
def test_in_parts(names: list[bytes], sizes: list[int], parts: int) -> None:
    """Each part from a listing that was made anew."""
    assert sorted(_in_parts([_listing(names) for _ in range(parts)], sizes)) == sorted(names)


@given(NAMES, NAMES, st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_names_that_come_and_go(stay: list[bytes], come: list[bytes], sizes: list[int]) -> None:
    others = [name for name in come if name not in stay]
    listings = [_listing(stay + others), _listing(stay), _listing(others + stay)]
    found = _in_parts(listings, sizes)
    assert [found.count(name) for name in stay] == [1] * len(stay)
    assert all(found.count(name) <= 1 for name in others)
    assert set(found) <= {*stay, *others}


def test_a_large_directory() -> None:
    names = [b"name%d" % number for number in range(20_000)]
    assert sorted(name for _, name in _listing(names).after(0)) == sorted(names)


def test_names_with_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "crc32", lambda _name, _start=0: 5)
    names = [b"%d" % number for number in range(5)]
    assert sorted(_in_parts([_listing(names) for _ in range(6)], [1])) == sorted(names)


def test_names_that_are_not_to_be_remembered() -> None:
    """Each name of an answer gets no time; everything else stays as it is."""
    entries, names = b"", [b"a", b"eight888", b"x" * 255]
    for number, name in enumerate(names, 7):
        fields = [number, 0, 99, 98, 97, 96, number, *range(15)]
        entries += ENTRY.pack(*fields) + DIRENT.pack(number, 1, len(name), 8) + name + bytes(-len(name) % 8)
    told: set[tuple[int, bytes]] = {(1, b"before")}
    changed = unkept_listing(entries, 5, told)
    assert told == {(1, b"before"), *((5, name) for name in names)}
    assert len(changed) == len(entries)
    begin = 0
    for number, name in enumerate(names, 7):
        assert ENTRY.unpack_from(changed, begin)[:7] == (number, 0, 0, 98, 0, 96, number)
        assert ENTRY.unpack_from(changed, begin)[7:] == ENTRY.unpack_from(entries, begin)[7:]
        begin += ENTRY.size
        end = begin + DIRENT.size + len(name) + (-len(name) % 8)
        assert changed[begin:end] == entries[begin:end]
        begin = end
