"""metacopy=on: chmod, chown and times of lower files in a mount, as in a plain directory (docs/options.md)."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node
from tests.support.twin import Twin

BIG = os.urandom(1 << 20)
LOWER: dict[Name, Node] = {"d": Dir(), "d/big": File(BIG, mode=0o644), "d/small": File(b"small"), "e/big": File(BIG)}
OPTIONS = ("metacopy=on",)


def _blocks(upper: Path) -> int:
    return sum(path.lstat().st_blocks for path in upper.rglob("*") if path.is_file())


def test_like_a_plain_directory(arena: Arena) -> None:
    """Changes, reads and writes, with remounts in between."""
    with arena.mount(arena.lower(LOWER), options=OPTIONS) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: (root / "d/big").chmod(0o600))
        twin.both(lambda root: os.utime(root / "e/big", ns=(1, 2)))
        twin.both(lambda root: os.chown(root / "d/small", -1, os.getegid()))
        assert _blocks(arena.upper) * 512 < len(BIG) // 4
        twin.remount()
        assert (mount / "d/big").read_bytes() == BIG
        twin.both(lambda root: (root / "d/big").chmod(0o640))
        twin.both(lambda root: os.truncate(root / "e/big", 4000))
        twin.both(lambda root: (root / "d/small").write_bytes(b"other"))
        twin.remount()
        twin.both(lambda root: (root / "d/big").rename(root / "moved"))
        twin.both(lambda root: os.link(root / "moved", root / "d/linked"))
        twin.remount()


def test_open_and_mapped_files(arena: Arena) -> None:
    """Descriptors from before the change, and from before the data came, see all that is written."""
    with arena.mount(arena.lower(LOWER), options=OPTIONS) as mount:
        path = mount / "d/big"
        with open(path, "rb", buffering=0) as before, open(path, "r+b", buffering=0) as writer:
            mapped = mmap.mmap(before.fileno(), 0, prot=mmap.PROT_READ)
            os.fchmod(writer.fileno(), 0o400)
            assert _blocks(arena.upper) <= 16
            with open(path, "rb", buffering=0) as between:
                assert writer.write(b"written") == 7
                os.fsync(writer.fileno())
                assert between.read(20) == before.read(20) == mapped[:20] == b"written" + BIG[7:20]
            mapped.close()
        assert path.read_bytes() == b"written" + BIG[7:]
    assert (arena.upper / "d/big").read_bytes() == b"written" + BIG[7:]


@pytest.mark.actors("root", "userns")
def test_of_another_owner(arena: Arena) -> None:
    """chown to somebody else: with the option it is read again; by root without it too."""
    lower = arena.lower(LOWER)
    with arena.mount(lower, options=OPTIONS) as mount:
        os.chown(mount / "d/big", 7, 8)
    assert _blocks(arena.upper) <= 16
    believed = not arena.actor.in_namespace and not os.statvfs(arena.upper).f_flag & os.ST_NOSUID
    for options in (OPTIONS, ()) if believed else (OPTIONS,):
        with arena.mount(lower, options=options) as mount:
            st = (mount / "d/big").stat()
            assert (st.st_uid, st.st_gid, (mount / "d/big").read_bytes()) == (7, 8, BIG)


@pytest.mark.actors("user", "userns")
def test_what_others_may_write_is_not_believed_without_the_option(arena: Arena) -> None:
    """Somebody of the group could have marked the file, and so read the lower as the one who mounts."""
    lower = arena.lower(LOWER)
    with arena.mount(lower, options=OPTIONS) as mount:
        (mount / "d/big").chmod(0o620)
        (mount / "e/big").chmod(0o600)
    with arena.mount(lower, tolerated="refused") as mount:
        assert sorted(os.listdir(mount / "d")) == ["big", "small"]
        with pytest.raises(PermissionError):
            (mount / "d/big").read_bytes()
        assert (mount / "e/big").read_bytes() == BIG
    with arena.mount(lower, options=OPTIONS) as mount:
        assert (mount / "d/big").read_bytes() == BIG
