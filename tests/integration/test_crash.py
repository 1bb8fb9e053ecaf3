"""A daemon that is killed leaves an upper that is valid, and garbage only where the next mount sweeps."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.arena import Arena
from tests.support.layers import File, Link
from tests.support.waiting import wait_until

SIZE = 256 << 20


def _copy_in_progress(work: Path) -> bool:
    """Whether something of some size is being written in the work directory."""
    for directory, _, files in os.walk(work):
        for name in files:
            try:
                if os.stat(os.path.join(directory, name)).st_size > 0:
                    return True
            except FileNotFoundError:
                continue
    return False


@pytest.mark.actors("root", "user")
def test_killed_during_copy_up(arena: Arena) -> None:
    """The file being copied is the old one or whole after a kill -9; the next mount works and cleans up."""
    lower = arena.lower({"d/small": File(b"s")}, "large")
    block = os.urandom(1 << 20)
    with open(lower / "d/big", "wb") as file:
        for _ in range(SIZE >> 20):
            file.write(block)
        os.fsync(file.fileno())  # delayed allocation would change the count of blocks later
    arena.guard(lower)
    work = arena.root / "work"
    mount = arena.mount(lower, work=work)
    mount.start()
    writer = threading.Thread(target=_write_ignoring_errors, args=(mount / "d/big",))
    writer.start()
    # A copy by reflink, or one into an unnamed file, cannot be watched; then the kill comes after it.
    wait_until(lambda: _copy_in_progress(work) or not writer.is_alive() or _unnamed_copy(mount.daemon), "the copy")
    mount.kill()
    writer.join()
    copied = arena.upper / "d/big"
    assert not copied.exists() or copied.stat().st_size == SIZE
    mount.start()
    assert (mount / "d/small").read_bytes() == b"s"
    assert (mount / "d/big").stat().st_size == SIZE
    with open(mount / "d/big", "r+b") as file:
        assert file.read(1) in (block[:1], b"W")
        file.seek(0)
        file.write(b"V")
    assert sorted(os.listdir(mount / "d")) == ["big", "small"]
    mount.stop()
    left = [path for path in work.rglob("*") if path.is_file() and path.stat().st_size >= SIZE]
    assert left == []


def _unnamed_copy(daemon: int) -> bool:
    try:
        for fd in os.listdir(f"/proc/{daemon}/fd"):
            path = f"/proc/{daemon}/fd/{fd}"
            if os.readlink(path).endswith(" (deleted)") and os.stat(path).st_size > 0:
                return True
    except FileNotFoundError:
        return False
    return False


def _write_ignoring_errors(path: Path) -> None:
    try:
        with open(path, "r+b", buffering=0) as file:
            file.write(b"W")
    except OSError:
        # The daemon was killed under this very call.
        return


def test_killed_when_idle(arena: Arena) -> None:
    """Everything done before a kill -9 is there after it: deletions, link groups, renamed directories, numbers."""
    lower = arena.lower(
        {"a": File(b"a"), "b": Link("a"), "c": Link("a"), "gone": File(), "d/x": File(b"x"), "d/sub/y": File(b"y")}
    )
    mount = arena.mount(lower, work=arena.root / "work")
    mount.start()
    (mount / "a").write_bytes(b"changed")
    (mount / "gone").unlink()
    (mount / "d").rename(mount / "moved")
    (mount / "d").mkdir()
    (mount / "new").write_bytes(b"n")
    os.unlink(mount / "c")
    before = tree.snapshot(mount.merged)
    mount.kill()
    mount.start()
    after = tree.snapshot(mount.merged)
    found = tree.differences(before, after, (*tree.SEEN, "nlink", "ino"))
    assert not found, found
    assert (mount / "b").read_bytes() == b"changed"
    mount.stop()


def test_a_file_deleted_while_open_when_killed(arena: Arena) -> None:
    """What only an open descriptor kept alive is gone after a kill, and leaves nothing behind."""
    lower = arena.lower({"f": File(b"lower")})
    work = arena.root / "work"
    mount = arena.mount(lower, work=work)
    mount.start()
    (mount / "new").write_bytes(b"x" * 100_000)
    with open(mount / "new", "rb") as one, open(mount / "f", "rb") as two:
        (mount / "new").unlink()
        (mount / "f").unlink()
        assert one.read(1) + two.read(1) == b"xl"
        mount.kill()
    mount.start()
    assert os.listdir(mount.merged) == []
    mount.stop()
    assert [path for path in work.rglob("*") if path.is_file() and path.stat().st_size] == []
