"""Files of a lower that are looked at again after they were read: the kernel asks for all attributes then, and the
extension remembers them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseunion.engines.fuse.wire.native.device import compares
from tests.support.arena import Arena
from tests.support.layers import File, Link
from tests.support.product import WITH_EXTENSION
from tests.support.twin import Twin

Step = Callable[[Path], object]


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"new")
    path.with_name("new").rename(path)


CHANGES: dict[str, Step] = {
    "chmod": lambda path: path.chmod(0o700),
    "times": lambda path: os.utime(path, ns=(1_000_000_001, 2_000_000_002)),
    "write": lambda path: path.write_bytes(b"longer than it was"),
    "append": _append,
    "truncate": lambda path: os.truncate(path, 2),
    "attribute": lambda path: os.setxattr(path, "user.colour", b"red"),
    "rename": lambda path: path.rename(path.with_name("moved")),
    "link": lambda path: path.with_name("more").hardlink_to(path),
    "replaced": _replace,
    "deleted": lambda path: path.unlink(),
}


def _alone(arena: Arena, merged: Path) -> int:
    (report,) = json.loads(arena.place.fuseunion("status", "--json", merged).stdout)["mounts"]
    return int(report["alone"].get("getattr", 0))


def _shown(path: Path) -> tuple[int, ...]:
    st = os.stat(path)
    return st.st_mode, st.st_size, st.st_mtime_ns, st.st_nlink, st.st_uid, st.st_gid, st.st_blksize


@pytest.mark.actors("root", "user")
def test_it_needs_no_python(arena: Arena) -> None:
    names = [f"d/file{number}" for number in range(50)]
    lower = arena.lower({name: File(name.encode()) for name in names})
    with arena.mount(lower) as mount:
        first = [(_shown(mount / name), (mount / name).read_bytes()) for name in names]
        before = _alone(arena, mount.merged)
        assert [_shown(mount / name) for name in names] == [shown for shown, _ in first]
        if WITH_EXTENSION and not compares:  # asked too, Python remembers by itself
            assert _alone(arena, mount.merged) >= before + 45
        assert [shown for shown, _ in first] == [_shown(lower / name) for name in names]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(arena: Arena, change: str) -> None:
    """Before and after each change the tree is as a plain directory's."""
    lower = arena.lower({"file": File(b"content"), "linked": File(b"linked"), "second": Link("linked")})
    with arena.mount(lower) as mount:
        for name in ("file", "linked", "second"):
            (mount / name).read_bytes()
            os.stat(mount / name)
        opened = os.open(mount / "file", os.O_RDONLY)
        twin = Twin(arena, mount)
        kept = os.open(twin.plain / "file", os.O_RDONLY)
        twin.both(lambda root: CHANGES[change](root / "file"))
        for fd in (opened, kept):
            os.pread(fd, 100, 0)
        one, other = os.fstat(opened), os.fstat(kept)
        assert (one.st_size, one.st_nlink, one.st_mode) == (other.st_size, other.st_nlink, other.st_mode)
        os.close(opened)
        os.close(kept)
        twin.both(lambda root: CHANGES[change](root / "linked"))
        twin.remount()
