"""Times: nothing moves that nobody touched, and ctime never goes backwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.arena import Arena
from tests.support.layers import OLD, Dir, File
from tests.support.mounts import FuseunionMount


def _times(mount: FuseunionMount) -> dict[str, tuple[int, int]]:
    paths = [mount.merged, *mount.merged.rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in paths}


def test_a_remount_changes_no_time(arena: Arena) -> None:
    """mtime and ctime of everything are the same after a remount: lower, copied, new, and their parents."""
    lower = arena.lower({"d/copied": File(), "d/same": File(), "e/gone": File(), "f/x": File()})
    with arena.mount(lower) as mount:
        (mount / "d/copied").chmod(0o600)
        (mount / "e/gone").unlink()
        (mount / "f/new").write_bytes(b"1")
        (mount / "f").rename(mount / "g")
        before = _times(mount)
        mount.stop()
        mount.start()
        assert _times(mount) == before


def test_a_copy_touches_no_parent_and_an_entry_does(arena: Arena) -> None:
    """A directory's mtime changes when its entries do, not when something in it is copied up."""
    lower = arena.lower({"d": Dir(), "d/sub/f": File(b"x"), "d/g": File()})
    with arena.mount(lower) as mount:
        (mount / "d/sub/f").write_bytes(b"changed")
        (mount / "d/g").chmod(0o600)
        for path in (mount / "d", mount / "d/sub"):
            assert path.stat().st_mtime_ns == OLD, path
        before = time.time_ns() - 1_000_000_000
        (mount / "d/sub/f").unlink()
        assert (mount / "d/sub").stat().st_mtime_ns > before
        assert (mount / "d").stat().st_mtime_ns == OLD
        (mount / "d/g").rename(mount / "g")
        assert (mount / "d").stat().st_mtime_ns > before
        assert mount.merged.stat().st_mtime_ns > before


def test_ctime_never_goes_backwards(arena: Arena) -> None:
    """Each change of a file, the copying first one too, sets a ctime at or after the last."""
    lower = arena.lower({"f": File(b"x"), "d/y": File()})
    with arena.mount(lower) as mount:
        for path in (mount / "f", mount / "d"):
            last = path.stat().st_ctime_ns
            for step in (
                lambda path: path.chmod(0o700),
                lambda path: os.setxattr(path, "user.x", b"1"),
                lambda path: os.utime(path, ns=(1, 1)),
                lambda path: path.rename(path.with_name("moved")).rename(path),
                lambda path: path.chmod(0o755),
            ):
                start = time.time_ns() - 50_000_000
                step(path)
                now = path.stat().st_ctime_ns
                assert now >= last
                assert now >= start
                last = now


def test_times_that_are_set(arena: Arena) -> None:
    """utimensat sets both, one or the present, with nanoseconds, through paths and descriptors."""
    lower = arena.lower({"f": File(b"x")})
    with arena.mount(lower) as mount:
        path = mount / "f"
        os.utime(path, ns=(1_000_000_001, 2_000_000_002))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
        with open(path, "rb") as file:
            os.utime(file.fileno(), ns=(3_000_000_003, 4_000_000_004))
        assert path.stat().st_mtime_ns == 4_000_000_004
        os.utime(path, ns=(-1_000_000_000, -5))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (-1_000_000_000, -5)
        before = time.time_ns() - 1_000_000_000
        os.utime(path)
        assert path.stat().st_mtime_ns > before
        _write_keeps_up(path)


def _write_keeps_up(path: Path) -> None:
    os.utime(path, ns=(1, 1))
    with open(path, "ab") as file:
        file.write(b"y")
    assert path.stat().st_mtime_ns > 1
