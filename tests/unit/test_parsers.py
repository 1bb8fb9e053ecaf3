"""Whatever lies on disk, what reads it answers or raises OSError: no other exception, however odd the bytes."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseunion.core.disk.wh_files import WhFiles
from fuseunion.core.format.link_entries import key_of
from fuseunion.core.format.numbers import Ino
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.ids import acl, capability
from fuseunion.core.ids.identity import Identity, IdMap
from fuseunion.core.marks import origin_mark
from fuseunion.core.ownership import facts
from tests.support.inprocess import in_process

PREFIX = "trusted.overlay." if os.geteuid() == 0 else "user.overlay."

ODD = [
    b"",
    b"\0",
    b"9" * 5000,
    b"-1",
    b"+1",
    b"1_0",
    "\N{ARABIC-INDIC DIGIT FOUR}".encode(),
    b"\xff\xfe",
    b"..",
    b"../x",
    b"/..",
    b"/",
    b"//",
    b"a\0b",
    b"18446744073709551616",
    b"x" * 5000,
]
"""What has broken parsers before."""

odd = st.one_of(st.binary(max_size=64), st.sampled_from(ODD))
"""Bytes, some of them odd in a way that is known."""

texts = st.lists(st.one_of(odd, st.sampled_from([b":", b"-", b"0:0:644", b"0", b"char", b"block-1-2"]))).map(b"".join)


def _raises_only_oserror(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()


shifted = Identity(IdMap([(0, 100_000, 10)]), IdMap([(0, 100_000, 10)], "gid"))


@given(st.one_of(odd, st.binary(max_size=40).map(lambda rest: struct.pack("<I", 2) + rest)), st.integers(0, 0o7777))
def test_acls(value: bytes, mode: int) -> None:
    for call in (
        lambda: acl.to_shown(value, shifted),
        lambda: acl.to_disk(value, shifted),
        lambda: acl.after_chmod(value, mode),
        lambda: acl.with_owner(value, 7),
        lambda: acl.inherit(value, mode, 0o022),
        lambda: acl.equivalent(acl.parse(value)),
    ):
        _raises_only_oserror(call)


@given(
    st.one_of(odd, st.binary(min_size=20, max_size=24), st.binary(max_size=23).map(lambda b: b"\x01\x00\x00\x03" + b))
)
def test_capabilities(value: bytes) -> None:
    for call in (
        lambda: capability.unparse(capability.parse(value)),
        lambda: capability.to_shown(value, shifted),
        lambda: capability.to_disk(value, shifted),
    ):
        _raises_only_oserror(call)


@given(texts)
def test_stored_ownership(value: bytes) -> None:
    _raises_only_oserror(lambda: facts.parse(value).apply(os.stat("/")))


@given(st.lists(st.one_of(odd, odd.map(b".wh.".__add__))))
def test_wh_files(names: list[bytes]) -> None:
    WhFiles(names)


def test_times_that_64_bits_of_nanoseconds_do_not_hold(tmp_path: Path) -> None:
    """A number of seconds is a time (statx(2)); only what has no room for it is left out."""
    (tmp_path / "f").touch()
    values = list((tmp_path / "f").stat().__reduce__()[1])
    for seconds in (-(2**63), 2**63 - 1, 2**34):
        fields, extra = values
        extra = {**extra, "st_mtime_ns": seconds * 10**9, "st_ctime_ns": seconds * 10**9}
        odd_st = os.stat_result(fields, extra)
        assert len(key_of(Ino(2), odd_st)) < 64


# -- through a union --------------------------------------------------------------------------------------------


def _names(union_of: Path, name: str, mark: str, value: bytes) -> None:
    """List a directory in which one object has a mark, and use the object beside it."""
    for layer in ("top", "lower", "upper", "work"):
        (union_of / layer).mkdir(exist_ok=True)
    for layer in ("top", "upper"):
        (union_of / layer / "d" / name).mkdir(parents=True)
        os.setxattr(union_of / layer / "d" / name, mark, value[:3000])
    (union_of / "top/d/good").write_text("good")
    (union_of / "lower/d" / name).mkdir(parents=True)
    layers = [union_of / "top", union_of / "lower"]
    with in_process(layers, union_of / "upper", union_of / "work") as union:
        directory = union.union.directory(union.find("d").ino)
        assert set(union.union.list_names(directory)) == {os.fsencode(name), b"good"}
        try:
            union.find(f"d/{name}")
        except MalformedError as error:
            inode, _ = union.union.unreadable(directory, os.fsencode(name), error)
            union.union.release(inode)
        assert union.read("d/good") == b"good"


origins = st.builds(
    lambda version, ino, number, ctime, path: struct.pack("<BQQq", version, ino, number, ctime) + path,
    st.sampled_from([0, 1, 1, 1, 2]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(odd).map(b"/".join),
)


@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize("mark", ["opaque", "redirect", "metacopy", "fuseunion.origin", "whiteout"])
@given(value=st.one_of(odd, origins, st.lists(odd).map(b"/".join)))
def test_one_malformed_object_is_its_own_error(mark: str, value: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        _names(Path(place), "object", PREFIX + mark, value)


@settings(deadline=None)
@given(value=origins, upper_ino=st.integers(0, 2**64 - 1), true=st.booleans())
def test_origins(value: bytes, upper_ino: int, true: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        (place / "lower").mkdir()
        with in_process([place / "lower"], None, None) as union:
            if true:
                value = value[:1] + struct.pack("<Q", upper_ino) + value[9:]
            reader = union.union.state.origins
            root = union.union.lowers[0].root
            assert reader.number(value, upper_ino, (root,), b"name") is None
            origin_mark.has_path(value)
            origin_mark.with_path(value, b"x" * 5000)


names = st.one_of(
    st.sampled_from([b"l-" + b"9" * 200, b"l-", b"l-1", b"c-", b"c-x", b"inode", b"l-\xd9\xa4", b"l-+1"]),
    st.binary(min_size=1, max_size=30).filter(lambda name: not {0, 47} & {*name} and name not in (b".", b"..")),
)
keys = st.one_of(
    st.sampled_from(
        [b"0-0-0", b"1-0-0", b"ffffffffffffffff-0-0", b"+5-0-0", b"5_5-0-0", b" 5-0-0", b"5-0-0", b"dirty"]
    ),
    names,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(keys, st.dictionaries(names, odd, max_size=3), max_size=3))
def test_the_link_index(entries: dict[bytes, dict[bytes, bytes]]) -> None:
    """A mount comes about whatever lies in WORK/links, and the paths in it lead nowhere but into the tree."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        for layer in ("lower", "upper", "work/links"):
            (place / layer).mkdir(parents=True)
        (place / "lower/f").write_text("f")
        for key, facts_of_it in {b"dirty": {}, **entries}.items():
            directory = os.fsencode(place / "work/links") + b"/" + key
            os.mkdir(directory)
            for entry, content in facts_of_it.items():
                with open(directory + b"/" + entry, "wb") as file:
                    file.write(content)
        with in_process([place / "lower"], place / "upper", place / "work") as union:
            assert union.read("f") == b"f"
            for group in union.union.state.writable().links.groups():
                assert 0 < group.number < 1 << 63
                for token in group.covered:
                    _raises_only_oserror(lambda: group.covered_path(token))  # noqa: B023 - called at once


def test_redirects_of_many_layers(tmp_path: Path) -> None:
    """A redirect in each of many layers, each of which leads into the next, is no reason to run out of stack."""
    lowers = [tmp_path / f"l{number}" for number in range(400)]
    for number, lower in enumerate(lowers):
        (lower / f"d{number}").mkdir(parents=True)
        (lower / f"d{number}/file{number}").touch()
        os.setxattr(lower / f"d{number}", PREFIX + "redirect", b"d%d" % (number + 1))
    with in_process(lowers, None, None) as union:
        assert len(union.names("d0")) == 400
        assert len(union.names("d390")) == 10


def test_redirects_that_lead_to_redirects(tmp_path: Path) -> None:
    """Each part of a path redirected again: the work does not double with each layer."""
    lowers = [tmp_path / f"l{number}" for number in range(14)]
    for lower in lowers:
        for path in ("d", "d/d", "d/d/d"):
            (lower / path).mkdir(parents=True)
            os.setxattr(lower / path, PREFIX + "redirect", b"/d/d/d")
    with in_process(lowers, None, None) as union:
        assert union.find("d")
