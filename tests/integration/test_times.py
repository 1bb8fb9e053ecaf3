"""Times: nothing moves that nobody touched, and ctime never goes backwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.arena import Arena
from tests.support.layers import OLD, Dir, File, Symlink
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until


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


def test_chown_of_nothing_is_a_change(arena: Arena) -> None:
    """chown(2) with -1 for both ids gives a new time of change and nothing else, as on a plain directory."""
    lower = arena.lower({"f": File(b"x"), "d/x": File(), "link": Symlink(target="f")})
    with arena.mount(lower) as mount:
        for path in (mount / "f", mount / "d", mount / "link", mount / "f", mount / "d"):
            before = os.lstat(path)
            wait_until(lambda: time.clock_gettime_ns(5) > before.st_ctime_ns + 20_000_000, "the clock to go on")  # noqa: B023
            os.chown(path, -1, -1, follow_symlinks=False)
            after = os.lstat(path)
            assert after.st_ctime_ns > before.st_ctime_ns
            assert (after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns, after.st_ino) == (
                before.st_mode, before.st_uid, before.st_gid, before.st_mtime_ns, before.st_ino
            )  # fmt: skip


def test_far_times(arena: Arena) -> None:
    """Times that do not fit into 64 bits of nanoseconds are copied up (ext4 and xfs have them up to 2446 and 2486)."""
    far = 14_000_000_000 * 1_000_000_000  # in the year 2413
    lower = arena.directory("lower")
    for name in ("f", "a"):
        (lower / name).write_bytes(b"x")
    os.link(lower / "a", lower / "b")
    (lower / "d").mkdir()
    for name in ("f", "a", "d"):
        os.utime(lower / name, ns=(far + 1, far + 2))
    known = (lower / "f").stat().st_mtime_ns
    arena.guard(lower)
    with arena.mount(lower) as mount:
        for name in ("f", "a", "d"):
            assert (mount / name).stat().st_mtime_ns == known
            (mount / name).chmod(0o700)
            assert (mount / name).stat().st_mtime_ns == known
        mount.stop()
        mount.start()
        for name in ("f", "a", "b", "d"):
            assert (mount / name).stat().st_mtime_ns == known
