"""What /proc/mounts shows in the place of a device: the lowers, or what the caller names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseunion.engines.fuse.mount_point import source_of
from fuseunion.linux.mountinfo import mount_at
from fuseunion.mounting.options.values import parse_lowers
from tests.support.arena import Arena
from tests.support.layers import File


def _source(merged: Path) -> str:
    entry = mount_at(str(merged))
    assert entry is not None and entry.fstype == "fuse.fuseunion"
    return entry.source


@pytest.mark.parametrize("name", ["a:b, #c", "back\\slash", "ü\nline", "\\,"])
@pytest.mark.actors("root", "user")
def test_odd_names(arena: Arena, name: str) -> None:
    """Through mount(2) and through fusermount3 it is the path, written as LOWER is."""
    lower, other = arena.lower({"f": File(b"x")}, name), arena.lower({})
    with arena.mount(lower, other) as mount:
        assert parse_lowers(_source(mount.merged)) == (str(lower), str(other))


@pytest.mark.actors("root", "user")
def test_a_name_that_is_given(arena: Arena) -> None:
    """mount(8) compares the source of a line of fstab with it, and so finds out what is mounted already."""
    lower, merged = arena.lower({}), arena.directory("merged")
    layers = f"lowerdir={lower},upperdir={arena.upper}"
    for arguments, source in (
        (["overlay", merged, "-o", layers], "overlay"),
        (["a label", merged, "-o", layers], "a label"),
        (["overlay", merged, "-o", f"{layers},fsname=name"], "name"),
        (["-o", f"fsname=na\\,me,{layers}", merged], "na\\,me"),
        (["-o", layers, merged], str(lower)),
    ):
        done = arena.place.fuseunion(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert _source(merged) == source
        assert arena.place.fuseunion("umount", str(merged)).returncode == 0


def test_many() -> None:
    """As many as fit, each whole."""
    assert source_of(["/a", "/b:c"]) == "/a:/b\\:c"
    many = source_of([f"/lower{number:04}" for number in range(500)])
    assert many.startswith("/lower0000:/lower0001:") and many.endswith(":...") and len(many) < 420
    assert all(len(lower) == 10 for lower in parse_lowers(many)[:-1])
    long = "/" + "d" * 3000
    assert source_of([long]) == long and source_of([long, "/b"]) == f"{long}:..."
    assert source_of(["/" + "d" * 5000]) == "fuseunion"
