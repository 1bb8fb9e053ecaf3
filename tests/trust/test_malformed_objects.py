"""One object that cannot be understood is its own error, and never makes its directory unlistable."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File

FAR = 10_000_000_000_000_000_000
"""Nanoseconds: in the year 2286, past what 63 bits hold."""

ORIGIN = struct.Struct("<BQQq")

MARKS = {
    "redirect-dots": ("redirect", b"/../../etc"),
    "redirect-nul": ("redirect", b"/a\0b"),
    "redirect-digits": ("redirect", b"/" + b"9" * 2000),
    "origin-dots": ("fuseunion.origin", ORIGIN.pack(1, 0, 0, 0) + b"../../etc/passwd"),
    "origin-nul": ("fuseunion.origin", ORIGIN.pack(1, 0, 0, 0) + b"a\0b"),
    "origin-short": ("fuseunion.origin", b"\1"),
    "opaque-nul": ("opaque", b"\0" * 100),
    "metacopy": ("metacopy", b"9" * 2000),
    "whiteout": ("whiteout", b"\xff" * 100),
}

STORED = {
    "digits": b"9" * 3000,
    "ids": b"4294967295:0:644",
    "nul": b"0:0\0:644",
    "non-ascii": "\N{ARABIC-INDIC DIGIT FOUR}:0:644".encode(),
    "device": b"0:0:644:char-4096-1048576",
    "negative": b"-1:-1:644",
}


def _listed(directory: Path) -> set[str]:
    """The names in a directory, each of which was also looked at, whatever that answered."""
    names = set(os.listdir(directory))
    for name in names:
        try:
            (directory / name).lstat()
            os.listxattr(directory / name, follow_symlinks=False)
        except OSError:
            pass
    return names


def test_marks(arena: Arena) -> None:
    prefix = arena.actor.xattr_prefix
    described = {f"d/{name}": Dir(xattrs={prefix + mark: value}) for name, (mark, value) in MARKS.items()}
    upper = arena.directory("upper")
    for name, node in described.items():
        node.make(os.fsencode(upper / name))
        for attribute, value in node.xattrs.items():
            os.setxattr(upper / name, attribute, value)
    lower = arena.lower({**described, "d/good": File(b"good")})
    with arena.mount(lower, arena.lower({"d/below": File(b"below")}), tolerated="malformed|refused") as mount:
        assert _listed(mount / "d") == {*MARKS, "good", "below"}
        assert (mount / "d/good").read_bytes() == b"good"


def test_stored_ownership(arena: Arena) -> None:
    name = "user.containers.override_stat"
    described = {f"d/{key}": File(b"", xattrs={name: value}) for key, value in STORED.items()}
    lower = arena.lower({"": Dir(xattrs={name: b"0:0:755:dir"}), **described, "d/good": File(b"good")})
    with arena.mount(lower) as mount:
        assert _listed(mount / "d") == {*STORED, "good"}
        assert (mount / "d/good").read_bytes() == b"good"
        for key in STORED:
            with pytest.raises(OSError):
                (mount / "d" / key).stat()


def test_times(arena: Arena) -> None:
    """A time that the layer holds is a time of the merged tree, and of a copy."""
    lower = arena.lower({"d/far": File(b"far", mtime=FAR), "d/early": File(b"early", mtime=-1), "d/good": File(b"")})
    with arena.mount(lower) as mount:
        assert _listed(mount / "d") == {"far", "early", "good"}
        for name, mtime in (("far", FAR), ("early", -1)):
            assert (mount / "d" / name).stat().st_mtime_ns == mtime
            os.chmod(mount / "d" / name, 0o600)
            assert (arena.upper / "d" / name).stat().st_mtime_ns == mtime
            os.utime(mount / "d" / name, ns=(FAR + 1, FAR + 1))
            assert (mount / "d" / name).stat().st_mtime_ns == FAR + 1
