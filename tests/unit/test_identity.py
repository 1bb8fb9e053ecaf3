"""Id maps and squash: fuse-overlayfs' meaning of a triple, but nothing unmapped is ever stored."""

from __future__ import annotations

import errno
import logging
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.core.ids.identity import (
    IDENTITY,
    KEEP,
    DiskGid,
    DiskUid,
    Identity,
    IdMap,
    IdRange,
    ShownGid,
    ShownUid,
    overflow_id,
)
from fuseunion.mounting.options.values import parse_id_map

LAST_ID = 2**32 - 2


@st.composite
def id_maps(draw: st.DrawFn) -> IdMap:
    """Maps of disjoint ranges, in any order on either side."""
    lengths = draw(st.lists(st.integers(1, 100_000), max_size=6))
    starts = []
    for _side in ("disk", "shown"):
        order = draw(st.permutations(range(len(lengths))))
        at = 0
        places = [0] * len(lengths)
        for which in order:
            at += draw(st.integers(0, 1000))
            places[which] = at
            at += lengths[which]
        starts.append(places)
    return IdMap(IdRange(*triple) for triple in zip(*starts, lengths, strict=True))


@given(id_maps(), st.integers(0, LAST_ID))
def test_what_is_shown_can_be_stored_again(idmap: IdMap, disk: int) -> None:
    shown = idmap.shown_or_none(disk)
    if shown is None:
        assert idmap.to_shown(disk) == overflow_id("uid")
    else:
        assert idmap.to_shown(disk) == shown
        assert idmap.to_disk(shown) == disk


@given(id_maps(), st.integers(0, 700_000))
def test_the_map_is_what_a_plain_scan_of_its_triples_says(idmap: IdMap, number: int) -> None:
    shown = [r.shown + number - r.disk for r in idmap.ranges if r.disk <= number < r.disk + r.length]
    stored = [r.disk + number - r.shown for r in idmap.ranges if r.shown <= number < r.shown + r.length]
    if idmap.ranges:
        assert [idmap.shown_or_none(number)] == (shown or [None])
        assert [idmap.disk_or_none(number)] == (stored or [None])
    else:
        assert idmap.to_shown(number) == idmap.to_disk(number) == number


@given(id_maps(), st.randoms(use_true_random=False))
def test_maps_are_equal_in_any_order(idmap: IdMap, random: Random) -> None:
    ranges = list(idmap.ranges)
    random.shuffle(ranges)
    assert IdMap(ranges) == idmap
    assert hash(IdMap(ranges)) == hash(idmap)
    assert IdMap(ranges, "gid") != idmap


def test_direction_is_that_of_fuse_overlayfs() -> None:
    idmap = IdMap([(0, 100, 10)])
    assert idmap.to_shown(0) == 100
    assert idmap.to_shown(9) == 109
    assert idmap.to_disk(105) == 5


def test_no_triples_are_the_identity() -> None:
    idmap = IdMap()
    assert idmap.trivial
    assert idmap.to_shown(LAST_ID) == idmap.to_disk(LAST_ID) == LAST_ID


def test_the_text_of_a_map_is_what_the_option_takes() -> None:
    text = "0:1000:1:1:110000:65536"
    assert str(IdMap(parse_id_map(f":{text}", "uidmapping"))) == text


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 1, 0)], "uid map: 0:1:0 covers nothing; the length must be at least 1"),
        ([(0, 1, 4294967295)], "uid map: 0:1:4294967295 goes past the last id 4294967294"),
        (
            [(0, 100, 10), (5, 300, 1)],
            "uid map: 0:100:10 and 5:300:1 both show disk id 5; let the ranges be disjoint",
        ),
        (
            [(0, 100, 10), (50, 105, 10)],
            "uid map: 0:100:10 and 50:105:10 both store shown id 105; let the ranges be disjoint",
        ),
    ],
)
def test_bad_maps_are_refused_in_one_line(ranges: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        IdMap(ranges)
    assert str(refused.value) == message


def test_the_map_of_the_initial_namespace_is_accepted() -> None:
    assert IdMap([(0, 0, 4294967295)]).to_shown(LAST_ID) == LAST_ID


def test_unmapped_ids_cannot_be_stored(caplog: pytest.LogCaptureFixture) -> None:
    idmap = IdMap([(0, 100, 10)], "gid")
    with caplog.at_level(logging.WARNING, "fuseunion"), pytest.raises(OSError) as refused:
        idmap.to_disk(0)
    assert refused.value.errno == errno.EINVAL
    assert caplog.messages == ["gid 0 is outside the gid map 0:100:10 and cannot be stored"]


def test_overflow_id_is_the_kernels() -> None:
    with open("/proc/sys/kernel/overflowgid") as file:
        assert overflow_id("gid") == int(file.read())


def test_identity_without_options_is_trivial() -> None:
    assert IDENTITY.trivial
    assert not IDENTITY.lenient
    assert IDENTITY.shown_uid(DiskUid(7)) == IDENTITY.disk_uid(ShownUid(7)) == 7
    assert IDENTITY.shown_gid(DiskGid(7)) == IDENTITY.disk_gid(ShownGid(7)) == 7
    assert Identity() == IDENTITY


def test_uids_and_gids_have_their_own_maps() -> None:
    identity = Identity(IdMap([(0, 100, 10)]), IdMap([(0, 200, 10)], "gid"))
    assert not identity.trivial
    assert identity.shown_uid(DiskUid(1)) == 101
    assert identity.shown_gid(DiskGid(1)) == 201
    assert identity.disk_uid(ShownUid(101)) == 1
    assert identity.disk_gid(ShownGid(201)) == 1
    with pytest.raises(OSError):
        identity.disk_uid(ShownUid(201))


def test_keep_means_keep() -> None:
    identity = Identity(IdMap([(0, 100, 10)]), IdMap([(0, 200, 10)], "gid"))
    assert identity.disk_uid(ShownUid(KEEP)) == KEEP
    assert identity.disk_gid(ShownGid(KEEP)) == KEEP


def test_squash_replaces_what_is_shown_and_forgives_what_cannot_be_stored() -> None:
    identity = Identity(IdMap([(0, 100, 10)]), squash_uid=5)
    assert not identity.trivial
    assert identity.lenient
    assert identity.shown_uid(DiskUid(1)) == 5
    assert identity.shown_gid(DiskGid(1)) == 1
    assert identity.disk_uid(ShownUid(101)) == 1
    assert identity.disk_uid(ShownUid(5)) == KEEP
    assert identity.disk_gid(ShownGid(12)) == 12
