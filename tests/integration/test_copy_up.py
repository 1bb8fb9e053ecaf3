"""Copy-up: what it keeps, when it happens and when it does not."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import acl, tree
from tests.support.arena import Arena
from tests.support.layers import OLD, Device, Dir, File, Name, Node, Symlink

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep, version 2 (capabilities(7))."""

TRIGGERS: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o640),
    "utime": lambda path: os.utime(path, ns=(OLD, OLD + 5)),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.kept"),
    "link": lambda path: os.link(path, path.with_name("another")),
    "rename": lambda path: path.rename(path.with_name("moved")),
    "chown": lambda path: os.chown(path, os.geteuid(), os.getegid()),
    "append": lambda path: _append(path, b"!"),
    "truncate": lambda path: os.truncate(path, 3),
}


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_what_a_copy_keeps(arena: Arena) -> None:
    """Bytes, mode, owner, times, xattrs and ACLs survive every kind of first change; so do the parents' times."""
    attributes = {"user.kept": b"\0value", "user.more": b"", acl.ACCESS: acl.with_named_user(os.geteuid())}
    description: dict[Name, Node] = {}
    for name in TRIGGERS:
        description[f"{name}/sub"] = Dir(mode=0o2751, xattrs={"user.dir": b"d"})
        description[f"{name}/sub/file"] = File(b"contents" * 1000, mode=0o754, xattrs=attributes)
    lower = arena.lower(description)
    with arena.mount(lower) as mount:
        before = tree.snapshot(mount.merged)
        for name, trigger in TRIGGERS.items():
            trigger(mount / name / "sub" / "file")
        after = tree.snapshot(mount.merged)
        for name in TRIGGERS:
            kept = {"rename": "moved"}.get(name, "file")
            expected = before[f"{name}/sub/file".encode()]
            got = after[f"{name}/sub/{kept}".encode()]
            allowed = {
                "chmod": {"mode", "xattrs"},
                "utime": {"mtime"},
                "setxattr": {"xattrs"},
                "removexattr": {"xattrs"},
                "link": {"links"},
                "rename": {"links"},
                "chown": set(),
                "append": {"size", "content", "mtime"},
                "truncate": {"size", "content", "mtime"},
            }[name]
            changed = {field for field in tree.SEEN if getattr(got, field) != getattr(expected, field)}
            assert changed <= allowed, f"{name}: {changed}"
            parent = f"{name}/sub".encode()
            if name not in ("link", "rename"):
                found = tree.differences({parent: before[parent]}, {parent: after[parent]})
                assert not found, f"{name}: {found}"
            top = name.encode()
            assert after[top].mtime == before[top].mtime, name
        mount.stop()
        mount.start()
        again = tree.snapshot(mount.merged)
        found = tree.differences(after, again, (*tree.SEEN, "ino", "nlink")) + tree.ctime_faults(after, again)
        assert not found, found


@pytest.mark.actors("root", "userns")
def test_owner_is_kept(arena: Arena) -> None:
    """A copy belongs to whom the original belonged to, and so do the copies of its parents."""
    lower = arena.lower({"d": Dir(uid=1000, gid=1001, mode=0o750), "d/f": File(uid=1001, gid=1000)})
    with arena.mount(lower) as mount:
        os.setxattr(mount / "d/f", "user.x", b"1")
        for path in (mount.merged, arena.upper):
            assert ((path / "d").stat().st_uid, (path / "d").stat().st_gid) == (1000, 1001)
            assert ((path / "d/f").stat().st_uid, (path / "d/f").stat().st_gid) == (1001, 1000)


@pytest.mark.actors("root", "userns")
def test_capability_is_kept_by_chmod_and_lost_by_writing(arena: Arena) -> None:
    """security.capability is copied after the data, which would strip it (capabilities(7), copy_up.c)."""
    lower = arena.lower(
        {name: File(b"x" * 9000, mode=0o755, xattrs={"security.capability": CAPABILITY}) for name in ("kept", "lost")}
    )
    with arena.mount(lower) as mount:
        (mount / "kept").chmod(0o750)
        os.setxattr(mount / "kept", "user.x", b"1")
        assert os.getxattr(mount / "kept", "security.capability") == CAPABILITY
        _append(mount / "lost", b"1")
        assert "security.capability" not in os.listxattr(mount / "lost")
        mount.stop()
        mount.start()
        assert os.getxattr(mount / "kept", "security.capability") == CAPABILITY


def test_holes_stay_holes(arena: Arena) -> None:
    """Only data is copied: a sparse file of 64 MiB costs what its data costs."""
    lower = arena.lower({"sparse": File(b"start", 64 << 20)})
    os.chmod(lower / "sparse", 0o644)
    with open(lower / "sparse", "r+b") as file:
        file.seek(10 << 20)
        file.write(b"middle")
    arena.guard(lower)
    with arena.mount(lower) as mount:
        _append(mount / "sparse", b"end")
        with open(mount / "sparse", "rb") as file:
            assert file.read(5) == b"start"
            assert file.seek(10 << 20) and file.read(6) == b"middle"
            assert file.seek(64 << 20) and file.read() == b"end"
        assert (mount / "sparse").stat().st_size == (64 << 20) + 3
        assert (arena.upper / "sparse").stat().st_blocks * 512 < 1 << 20
        assert (mount / "sparse").stat().st_blocks * 512 < 1 << 20


def test_opening_for_write_copies_nothing(arena: Arena) -> None:
    """Only a change copies: opening, reading, locking and closing a writable descriptor do not."""
    lower = arena.lower({"d/f": File(b"data")})
    with arena.mount(lower) as mount:
        with open(mount / "d/f", "r+b", buffering=0) as file:
            assert file.read() == b"data"
            os.fsync(file.fileno())
            assert list(arena.upper.rglob("*")) == []
            file.write(b"+")
            assert (arena.upper / "d/f").read_bytes() == b"data+"
        assert (mount / "d/f").read_bytes() == b"data+"


def test_reading_changes_nothing(arena: Arena) -> None:
    """Looking at everything leaves upper empty."""
    lower = arena.lower({"d/f": File(b"data"), "l": Symlink("d/f"), "d/e": Dir()})
    with arena.mount(lower) as mount:
        tree.snapshot(mount.merged)
        os.access(mount / "d/f", os.W_OK)
        with pytest.raises(FileExistsError):
            os.mkdir(mount / "d")
        with pytest.raises(OSError, match="No data"):
            os.removexattr(mount / "d/f", "user.none")
    assert list(arena.upper.rglob("*")) == []


@pytest.mark.parametrize("way", ["truncate", "open", "ftruncate"])
@pytest.mark.actors("root")
def test_truncating_to_nothing_copies_no_data(arena: Arena, way: str) -> None:
    """What would be thrown away is not copied first."""
    size = 16 << 20
    lower = arena.lower({"big": File(os.urandom(size))})
    with arena.mount(lower) as mount:
        before = _written(mount.daemon)
        match way:
            case "truncate":
                os.truncate(mount / "big", 0)
            case "open":
                os.close(os.open(mount / "big", os.O_WRONLY | os.O_TRUNC))
            case _:
                with open(mount / "big", "r+b") as file:
                    file.truncate(0)
        assert (mount / "big").stat().st_size == 0
        assert _written(mount.daemon) - before < size // 8


def _written(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def test_objects_that_are_not_files(arena: Arena) -> None:
    """Symlinks, fifos and sockets are copied as what they are."""
    lower = arena.lower(
        {"l": Symlink("gone"), "fifo": Device(kind=stat.S_IFIFO), "socket": Device(kind=stat.S_IFSOCK), "d/x": File()}
    )
    with arena.mount(lower) as mount:
        for name in ("l", "fifo", "socket"):
            os.utime(mount / name, ns=(OLD + 1, OLD + 1), follow_symlinks=False)
            assert stat.S_IFMT(os.lstat(arena.upper / name).st_mode) == stat.S_IFMT(os.lstat(lower / name).st_mode)
            assert os.lstat(mount / name).st_mtime_ns == OLD + 1
        assert os.readlink(mount / "l") == "gone"
        (mount / "fifo").chmod(0o611)
        assert (mount / "fifo").stat().st_mode == stat.S_IFIFO | 0o611
        os.link(mount / "l", mount / "l2", follow_symlinks=False)
        assert os.lstat(mount / "l2").st_nlink == 2


@pytest.mark.actors("root")
def test_devices(arena: Arena) -> None:
    """A lower device is copied as the same device, and can be deleted."""
    lower = arena.lower({name: Device(kind=stat.S_IFCHR, major=1, minor=3) for name in ("null", "gone")})
    with arena.mount(lower) as mount:
        (mount / "null").chmod(0o604)
        status = (mount / "null").stat()
        assert status.st_mode == stat.S_IFCHR | 0o604
        assert status.st_rdev == os.makedev(1, 3)
        (mount / "gone").unlink()
        assert os.listdir(mount.merged) == ["null"]


def test_setxattr_on_a_lower_setuid_file_keeps_its_mode(arena: Arena) -> None:
    """No step of copy-up clears set-user-id or set-group-id."""
    lower = arena.lower({"tool": File(b"#!", mode=0o6755)})
    with arena.mount(lower) as mount:
        os.setxattr(mount / "tool", "user.x", b"1")
        assert (mount / "tool").stat().st_mode & 0o7777 == 0o6755


@pytest.mark.actors("root", "userns")
def test_unreadable_lower_file(arena: Arena) -> None:
    """A file that nobody may read is copied by who may read everything."""
    lower = arena.lower({"secret": File(b"s", mode=0o600)})
    os.chmod(lower / "secret", 0o000)
    arena.guard(lower)
    with arena.mount(lower) as mount:
        (mount / "secret").chmod(0o600)
        assert (mount / "secret").read_bytes() == b"s"
