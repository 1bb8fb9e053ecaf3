"""The text form of stored ownership, and the names of escaped attributes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.core.ownership import facts, stored_names
from fuseunion.core.ownership.facts import Facts, backing_mode

KINDS = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR]

ids = st.integers(0, 2**32 - 2)


@st.composite
def all_facts(draw: st.DrawFn) -> Facts:
    kind = draw(st.sampled_from([0, *KINDS]))
    device = kind in (stat.S_IFBLK, stat.S_IFCHR)
    rdev = os.makedev(draw(st.integers(0, 2**12 - 1)), draw(st.integers(0, 2**20 - 1))) if device else 0
    return Facts(draw(ids), draw(ids), draw(st.integers(0, 0o7777)), kind, rdev)


# -- the grammar -------------------------------------------------------------------------------------------------


@given(all_facts())
def test_what_is_written_is_read(value: Facts) -> None:
    assert facts.parse(facts.unparse(value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # fuse-overlayfs 1.x: the whole st_mode, no type
        (b"0:0:104711", Facts(0, 0, 0o4711)),
        (b"0:0:40755", Facts(0, 0, 0o755)),
        # podman 4.3: three fields
        (b"0:0:0777", Facts(0, 0, 0o777)),
        # containers/storage
        (b"1000:5:1777:dir", Facts(1000, 5, 0o1777, stat.S_IFDIR)),
        (b"0:0:4755:file", Facts(0, 0, 0o4755, stat.S_IFREG)),
        (b"0:0:0644:symlink", Facts(0, 0, 0o644, stat.S_IFLNK)),
        (b"0:0:0600:pipe", Facts(0, 0, 0o600, stat.S_IFIFO)),
        (b"0:0:0600:socket", Facts(0, 0, 0o600, stat.S_IFSOCK)),
        (b"0:6:0660:block-8-1", Facts(0, 6, 0o660, stat.S_IFBLK, os.makedev(8, 1))),
        (b"0:0:0666:char-1-3", Facts(0, 0, 0o666, stat.S_IFCHR, os.makedev(1, 3))),
        # fuse-overlayfs 2.0's separator
        (b"0:0:0666:char-1:3", Facts(0, 0, 0o666, stat.S_IFCHR, os.makedev(1, 3))),
        (b"0:0:0666:char:1:3", Facts(0, 0, 0o666, stat.S_IFCHR, os.makedev(1, 3))),
        # what follows a type is tolerated
        (b"0:0:0666:char-1-3:later", Facts(0, 0, 0o666, stat.S_IFCHR, os.makedev(1, 3))),
        (b"0:0:0644:file:later", Facts(0, 0, 0o644, stat.S_IFREG)),
        (b"0:0:0644:", Facts(0, 0, 0o644)),
        (b"0:0:0644\0", Facts(0, 0, 0o644)),
    ],
)
def test_all_grammars_are_read(text: bytes, expected: Facts) -> None:
    assert facts.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0:0",
        b"0:0:",
        b"a:0:0644",
        b"-1:0:0644",
        b"0:4294967295:0644",
        b"0:0:0888",
        b"0:0:0644:what",
        b"0:0:0644:char",
        b"0:0:0644:char-1",
        b"0:0:0644:char-4096-0",
        b"0:0:0644:block-x-y",
    ],
)
def test_anything_else_is_invalid(text: bytes) -> None:
    with pytest.raises(OSError) as refused:
        facts.parse(text)
    assert refused.value.errno == errno.EINVAL


def test_one_form_is_written() -> None:
    assert facts.unparse(Facts(0, 5, 0o44, stat.S_IFCHR, os.makedev(1, 3))) == b"0:5:0044:char-1-3"
    assert facts.unparse(Facts(0, 5, 0o4755, stat.S_IFREG)) == b"0:5:4755:file"


def test_applying_keeps_times_and_sizes_exact(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1_234_567_890_123_456_789, 1_111_111_111_987_654_321))
    real = file.stat()
    seen = Facts(7, 8, 0o4711, stat.S_IFCHR, os.makedev(1, 3)).apply(real)
    assert (seen.st_uid, seen.st_gid, seen.st_mode) == (7, 8, stat.S_IFCHR | 0o4711)
    assert seen.st_rdev == os.makedev(1, 3)
    for field in ("ino", "dev", "nlink", "size", "blocks", "blksize", "atime_ns", "mtime_ns", "ctime_ns"):
        assert getattr(seen, f"st_{field}") == getattr(real, f"st_{field}")
    assert Facts(7, 8, 0o600).apply(real).st_mode == stat.S_IFREG | 0o600
    assert Facts.of(real).apply(real) == real


@given(st.sampled_from(KINDS), st.integers(0, 0o7777))
def test_a_real_object_is_no_more_open_than_it_looks(kind: int, permissions: int) -> None:
    mode = backing_mode(kind | permissions)
    if stat.S_ISLNK(kind):
        assert mode == kind | permissions
        return
    assert stat.S_IFMT(mode) == (stat.S_IFDIR if stat.S_ISDIR(kind) else stat.S_IFREG)
    assert mode & 0o7077 == permissions & 0o0077
    assert mode & 0o600 == 0o600


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"security.capability",
        b"security.selinux",
        b"trusted.overlay.opaque",
        b"user.overlay.x",
        b"user.fuseoverlayfs.y",
    ],
)
def test_privileged_names_are_escaped(name: bytes) -> None:
    stored = stored_names.to_disk(name)
    assert stored == b"user.containers.override_" + name
    assert stored_names.to_shown(stored) == name


@pytest.mark.parametrize("name", [b"user.mime", b"system.posix_acl_access", b"user.containers.override_stat"])
def test_other_names_are_not(name: bytes) -> None:
    assert stored_names.to_disk(name) == stored_names.to_shown(name) == name


def test_a_name_may_become_too_long() -> None:
    assert stored_names.to_disk(b"security." + b"x" * 221) is not None
    assert stored_names.to_disk(b"security." + b"x" * 222) is None
