"""ACL arithmetic, with the kernel as the judge: what we compute is what ext4 or tmpfs really does."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseunion.core.ids import acl
from fuseunion.core.ids.acl import NO_ID, Acl, Entry, Tag
from fuseunion.core.ids.identity import IDENTITY, Identity, IdMap, overflow_id

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

perms = st.integers(0, 7)


@st.composite
def acls(draw: st.DrawFn, ids: st.SearchStrategy[int] | None = None) -> Acl:
    """Valid ACLs in canonical order, minimal ones too."""
    ids = st.integers(0, 5000) if ids is None else ids
    named = [
        *(Entry(Tag.USER, draw(perms), who) for who in sorted(draw(st.sets(ids, max_size=3)))),
        Entry(Tag.GROUP_OBJ, draw(perms)),
        *(Entry(Tag.GROUP, draw(perms), who) for who in sorted(draw(st.sets(ids, max_size=3)))),
    ]
    mask = [Entry(Tag.MASK, draw(perms))] if len(named) > 1 or draw(st.booleans()) else []
    return (Entry(Tag.USER_OBJ, draw(perms)), *named, *mask, Entry(Tag.OTHER, draw(perms)))


@pytest.fixture(params=["disk", "tmpfs"], scope="module")
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on a filesystem whose ACL code is the kernel's."""
    if request.param == "disk":
        yield tmp_path_factory.mktemp("acl")
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            yield Path(name)


_numbers = itertools.count()


def _new(directory: Path) -> Path:
    return directory / str(next(_numbers))


def _xattr(path: Path, name: str) -> bytes | None:
    return os.getxattr(path, name) if name in os.listxattr(path) else None


on_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(acls(), st.integers(0, 0o777), st.integers(0, 0o777), st.sampled_from(["file", "directory", "fifo"]))
@on_disk
def test_inheritance_is_the_kernels(directory: Path, default: Acl, mode: int, umask: int, kind: str) -> None:
    parent = _new(directory)
    parent.mkdir()
    os.setxattr(parent, DEFAULT, acl.unparse(default))
    child = parent / "child"
    before = os.umask(umask)
    try:
        if kind == "directory":
            mode |= stat.S_IFDIR
            os.mkdir(child, stat.S_IMODE(mode))
        elif kind == "fifo":
            mode |= stat.S_IFIFO
            os.mkfifo(child, stat.S_IMODE(mode))
        else:
            mode |= stat.S_IFREG
            os.close(os.open(child, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IMODE(mode)))
    finally:
        os.umask(before)
    found = acl.inherit(_xattr(parent, DEFAULT), mode, umask)
    assert found.mode == child.stat().st_mode
    assert found.access == _xattr(child, ACCESS)
    if kind == "directory":
        assert found.default == _xattr(child, DEFAULT)
    else:
        assert found.default is None


@given(st.integers(0, 0o7777), st.integers(0, 0o777))
def test_without_a_default_acl_the_umask_counts(mode: int, umask: int) -> None:
    mode |= stat.S_IFREG
    assert acl.inherit(None, mode, umask) == (mode & ~umask, None, None)
    assert acl.inherit(acl.unparse(()), mode, umask) == (mode & ~umask, None, None)


def test_symbolic_links_inherit_nothing() -> None:
    default = acl.unparse((Entry(Tag.USER_OBJ, 0), Entry(Tag.GROUP_OBJ, 0), Entry(Tag.OTHER, 0)))
    assert acl.inherit(default, stat.S_IFLNK | 0o777, 0o077) == (stat.S_IFLNK | 0o777, None, None)


def test_a_broken_default_acl_is_an_io_error() -> None:
    default = acl.unparse((Entry(Tag.USER_OBJ, 7), Entry(Tag.OTHER, 7)))
    with pytest.raises(OSError) as failed:
        acl.inherit(default, stat.S_IFREG | 0o644, 0)
    assert failed.value.errno == errno.EIO


@given(acls())
@on_disk
def test_the_equivalent_mode_is_the_kernels(directory: Path, access: Acl) -> None:
    file = _new(directory)
    file.touch()
    os.setxattr(file, ACCESS, acl.unparse(access))
    found = acl.equivalent(access)
    assert found.permissions == stat.S_IMODE(file.stat().st_mode)
    # The kernel stores no ACL that a mode can express.
    assert (_xattr(file, ACCESS) is None) == found.exact


def test_an_empty_acl_has_no_mode() -> None:
    with pytest.raises(OSError) as refused:
        acl.equivalent(())
    assert refused.value.errno == errno.EINVAL


@given(acls(), st.integers(0, 0o777))
@on_disk
def test_chmod_changes_an_acl_as_the_kernel_does(directory: Path, access: Acl, mode: int) -> None:
    file = _new(directory)
    file.touch()
    os.setxattr(file, ACCESS, acl.unparse(access))
    stored = _xattr(file, ACCESS)
    os.chmod(file, mode)
    if stored is not None:
        changed = acl.after_chmod(stored, mode)
        assert changed == _xattr(file, ACCESS)
        assert acl.equivalent(acl.parse(changed)).permissions == mode


@given(acls(st.integers(0, NO_ID - 1)))
def test_binary_round_trip(entries: Acl) -> None:
    assert acl.parse(acl.unparse(entries)) == entries


@given(acls(st.integers(0, 99)))
def test_mapped_qualifiers_come_back(entries: Acl) -> None:
    identity = Identity(IdMap([(0, 1000, 100)]), IdMap([(0, 5000, 100)], "gid"))
    value = acl.unparse(entries)
    shown = acl.to_shown(value, identity)
    assert acl.to_disk(shown, identity) == value
    for entry, seen in zip(entries, acl.parse(shown), strict=True):
        shift = {Tag.USER: 1000, Tag.GROUP: 5000}.get(entry.tag, 0)
        assert seen == entry._replace(who=entry.who + shift)


def test_without_a_map_nothing_is_read() -> None:
    assert acl.to_shown(b"anything", IDENTITY) == acl.to_disk(b"anything", IDENTITY) == b"anything"
    assert acl.to_shown(b"anything", Identity(squash_uid=0)) == b"anything"


def test_unmapped_qualifiers_are_shown_as_overflow_and_refused() -> None:
    identity = Identity(IdMap([(0, 1000, 100)]))
    value = acl.unparse(
        (
            Entry(Tag.USER_OBJ, 7),
            Entry(Tag.USER, 7, 500),
            Entry(Tag.GROUP_OBJ, 7),
            Entry(Tag.MASK, 7),
            Entry(Tag.OTHER, 7),
        )
    )
    assert acl.parse(acl.to_shown(value, identity))[1].who == overflow_id("uid")
    with pytest.raises(OSError) as refused:
        acl.to_disk(value, identity)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", errno.EINVAL),
        (b"\2\0\0", errno.EINVAL),
        (b"\2\0\0\0\1\0\7\0", errno.EINVAL),
        (b"\1\0\0\0\1\0\7\0\xff\xff\xff\xff", errno.EOPNOTSUPP),
        (b"\2\0\0\0\3\0\7\0\xff\xff\xff\xff", errno.EINVAL),
    ],
)
def test_bad_values_get_the_kernels_errno(tmp_path: Path, value: bytes, code: int) -> None:
    with pytest.raises(OSError) as refused:
        acl.parse(value)
    assert refused.value.errno == code
    if value:  # setting an empty value means "no ACL" and succeeds
        with pytest.raises(OSError) as kernel:
            os.setxattr(tmp_path, ACCESS, value)
        assert kernel.value.errno == code
