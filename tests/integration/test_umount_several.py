"""`umount` of several mounts, and what is said of an UPPER that another mount uses."""

from __future__ import annotations

import os

import pytest

from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mount_at


@pytest.mark.actors("root", "user")
def test_one_that_fails_keeps_none_of_the_others(arena: Arena) -> None:
    """Each failure is one line, and the exit code is that of the first."""
    lower = arena.lower({"f": File(b"x")})
    merged = [arena.directory(name) for name in ("-first", "busy", "last")]
    for number, directory in enumerate(merged):
        done = arena.place.fuseunion("--", str(lower), f"{arena.root}/upper{number}", str(directory))
        assert done.returncode == 0, done.stderr
    none = arena.directory("none")
    with (merged[1] / "f").open():
        given = ["umount", "--", "-first", "busy", "none", "last"]
        done = arena.place.fuseunion(*given, cwd=arena.root)
        assert done.returncode == 4
        first, second = done.stderr.splitlines()
        assert first.startswith("fuseunion: 'busy' is busy: used by ") and f"{os.getpid()} " in first
        assert second == "fuseunion: 'none' is not a mount point; see the mounted ones with: fuseunion status"
    assert [mount_at(directory) is not None for directory in merged] == [False, True, False]
    done = arena.place.fuseunion("umount", str(none), str(merged[1]))
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert mount_at(merged[1]) is None
    assert arena.place.fuseunion("umount").returncode == 2


@pytest.mark.actors("root", "user", "userns")
def test_where_an_upper_is_in_use(arena: Arena) -> None:
    """The line names the mount and its process."""
    lower, other = arena.lower({"f": File(b"x")}), arena.directory("other")
    with arena.mount(lower) as mount:
        for upper, work in ((arena.upper, None), (arena.root / "new", arena.root / ".upper.fuseunion-work")):
            options = ["--work", str(work)] if work is not None else []
            done = arena.place.fuseunion(*options, str(lower), str(upper), str(other))
            assert done.returncode == 4
            assert (
                f"in use by another live fuseunion mount at '{mount.merged}' (process {mount.daemon}, " in done.stderr
            )


@pytest.mark.actors("root")
def test_where_an_overlay_is(arena: Arena) -> None:
    lower, other = arena.lower({"f": File(b"x")}), arena.directory("other")
    with arena.kernel(lower, upper=arena.upper) as overlay:
        done = arena.place.fuseunion(str(lower), str(arena.upper), str(other))
        assert done.returncode == 4
        assert f"in use by another live kernel overlayfs mount at '{overlay.merged}'; unmount" in done.stderr
