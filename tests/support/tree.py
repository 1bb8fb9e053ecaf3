"""A snapshot of a directory tree, and the differences between two of them.

Paths are bytes relative to the root (b"." is the root itself), so that every name that a filesystem can hold is
covered. Hard links are recorded as groups: `links` is the smallest path among the names of one inode.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}

_BLOCK = 1 << 20


class Entry(NamedTuple):
    """Everything about one object that a program can see."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str
    rdev: int
    xattrs: tuple[tuple[str, bytes], ...]
    mtime: int
    links: bytes
    nlink: int
    ctime: int
    ino: int
    blocks: int


Tree = Mapping[bytes, Entry]

SEEN = ("kind", "mode", "uid", "gid", "size", "content", "rdev", "xattrs", "mtime", "links")
"""The fields that two views of one tree must share wherever they are stored."""

EXACT = tuple(field for field in Entry._fields if field != "links")
"""The fields of a tree that nobody may have touched."""


def walk(root: Path | bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Each path of the tree beneath `root` with its lstat, the root first as b".".

    Mounts are not crossed; a directory that the caller may not list and enter shows nothing.
    """
    top = os.fsencode(root)
    root_status = os.lstat(top)
    yield b".", root_status
    pending = [b""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(os.path.join(top, prefix) if prefix else top) as entries:
                names = sorted(entry.name for entry in entries)
            statuses = [os.lstat(os.path.join(top, prefix, name)) for name in names]
        except PermissionError:
            continue
        for name, status in zip(names, statuses, strict=True):
            path = os.path.join(prefix, name)
            yield path, status
            if stat.S_ISDIR(status.st_mode) and status.st_dev == root_status.st_dev:
                pending.append(path)


def _content(path: bytes, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "-> " + os.fsdecode(os.readlink(path))
    if not stat.S_ISREG(status.st_mode):
        return ""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except PermissionError:
        return "unreadable"
    return digest.hexdigest()


def xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    """The extended attributes of one object, not following a symbolic link; what may not be read is left out.

    A value that the kernel takes for malformed (security.capability) is shown as such.
    """
    found = []
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        try:
            found.append((name, os.getxattr(path, name, follow_symlinks=False)))
        except PermissionError:
            continue
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            found.append((name, b"(malformed)"))
    return tuple(found)


def snapshot(root: Path | bytes) -> dict[bytes, Entry]:
    """Every object at and beneath `root`."""
    top = os.fsencode(root)
    statuses = dict(walk(root))
    first_name: dict[tuple[int, int], bytes] = {}
    for path in sorted(statuses):
        first_name.setdefault((statuses[path].st_dev, statuses[path].st_ino), path)
    tree = {}
    for path, status in statuses.items():
        full = top if path == b"." else os.path.join(top, path)
        directory = stat.S_ISDIR(status.st_mode)
        tree[path] = Entry(
            kind=KINDS[stat.S_IFMT(status.st_mode)],
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=0 if directory else status.st_size,
            content=_content(full, status),
            rdev=status.st_rdev if status.st_rdev else 0,
            xattrs=xattrs(full),
            mtime=status.st_mtime_ns,
            links=first_name[(status.st_dev, status.st_ino)],
            nlink=0 if directory else status.st_nlink,
            ctime=status.st_ctime_ns,
            ino=status.st_ino,
            blocks=status.st_blocks,
        )
    return tree


def differences(
    expected: Tree,
    got: Tree,
    fields: Collection[str] = SEEN,
    *,
    since: int | None = None,
) -> list[str]:
    """One line per difference; empty when the trees are equal.

    :param fields: the fields of Entry that are compared
    :param since: two modification times at or after this moment (ns) are both "now", and so equal
    """
    found = []
    for path in sorted(set(expected) | set(got)):
        if path not in got:
            found.append(f"{path!r}: missing (expected {expected[path].kind})")
            continue
        if path not in expected:
            found.append(f"{path!r}: unexpected {got[path].kind}")
            continue
        for field in fields:
            wanted, seen = getattr(expected[path], field), getattr(got[path], field)
            if field == "mtime" and since is not None and wanted >= since and seen >= since:
                continue
            if field == "mode":
                wanted, seen = oct(wanted), oct(seen)
            if wanted != seen:
                found.append(f"{path!r}: {field} is {seen!r}, expected {wanted!r}")
    return found


def ctime_faults(before: Tree, after: Tree) -> list[str]:
    """Where ctime went backwards although nothing was done.

    It may go forwards: a copy-up creates an object on disk, and putting the times of its directory back sets the
    directory's ctime (utimensat(2)). A look before a remount and one after may differ in that.
    """
    found = []
    for path in sorted(set(before) & set(after)):
        moved = after[path].ctime - before[path].ctime
        if moved < 0:
            found.append(f"{path!r}: ctime moved by {moved} ns")
    return found


def assert_same(expected: Tree, got: Tree, what: str, *, since: int | None = None) -> None:
    """Fail with every difference between two views of one tree."""
    found = differences(expected, got, since=since)
    assert not found, f"{what}:\n  " + "\n  ".join(found)


def inode_faults(root: Path | bytes) -> list[str]:
    """Where inode numbers lie: d_ino unlike st_ino, or one st_ino on objects that are not one file."""
    top = os.fsencode(root)
    found = []
    owners: dict[int, tuple[bytes, os.stat_result]] = {}
    for path, status in walk(root):
        full = top if path == b"." else os.path.join(top, path)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(full) as entries:
                for entry in entries:
                    st_ino = os.lstat(entry.path).st_ino
                    if entry.inode() != st_ino:
                        found.append(f"{entry.path!r}: d_ino {entry.inode()} but st_ino {st_ino}")
        other = owners.setdefault(status.st_ino, (path, status))
        if other[0] == path:
            continue
        one_file = (
            not stat.S_ISDIR(status.st_mode)
            and status.st_nlink > 1
            and status.st_mode == other[1].st_mode
            and status.st_size == other[1].st_size
        )
        if not one_file:
            found.append(f"{path!r} and {other[0]!r} share st_ino {status.st_ino} and are not hard links")
    return found


def look(top: Path) -> dict[str, bytes]:
    """Every path with its content: of a link where it leads, of a directory `/`."""
    found = {}
    for path in sorted(top.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(top))] = os.fsencode(os.readlink(path))
        else:
            found[str(path.relative_to(top))] = path.read_bytes() if path.is_file() else b"/"
    return found
