"""Operations on a small stack of layers, one at a time: what the tests of crashes and of failing calls are made of.

What touches owners and modes can be done with real ones, stored in attributes, and stored in the database.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path

from fuseunion.core.ops.attributes import Change
from fuseunion.core.ownership.database_store import DatabaseStore
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.linux.objects.real_object import RealObject
from tests.support.inprocess import InProcess, in_process

Operation = Callable[[InProcess], None]

_SAVED = ("upper", "work")


def _redirecting(operation: Operation) -> Operation:
    """The operation with redirect_dir=on."""
    return lambda union: operation(_with(union, redirect_dir=True))


def _metacopying(operation: Operation) -> Operation:
    """The operation with metacopy=on."""
    return lambda union: operation(_with(union, metacopy=True))


def _with(union: InProcess, **options: bool) -> InProcess:
    state = union.union.state
    state.settings = state.settings._replace(**options)  # type: ignore[arg-type]
    return union


OPERATIONS: dict[str, Operation] = {
    "write to a lower file": lambda u: u.write("/d/file", b"changed"),
    "write to a hard-linked lower file": lambda u: u.write("/link-a", b"changed"),
    "truncate a lower file": lambda u: u.setattr("/d/file", Change(size=0)),
    "chmod of a lower file": lambda u: u.setattr("/d/file", Change(mode=0o600)),
    "chmod of a lower directory": lambda u: u.setattr("/d/sub", Change(mode=0o700)),
    "chown of a lower symbolic link": lambda u: u.setattr("/d/symlink", Change(uid=7)),
    "unlink of a lower file": lambda u: u.unlink("/d/file"),
    "unlink of a hard-linked lower file": lambda u: u.unlink("/link-a"),
    "unlink of an upper file over a lower one": lambda u: u.unlink("/both"),
    "unlink of an upper file": lambda u: u.unlink("/upper-only"),
    "rmdir of a lower directory": lambda u: u.rmdir("/empty"),
    "rmdir of a merged directory with whiteouts": lambda u: u.rmdir("/emptied"),
    "create": lambda u: u.create("/d/new"),
    "create over a whiteout": lambda u: u.create("/deleted"),
    "mkdir over a whiteout of a directory": lambda u: u.mkdir("/deleted-dir"),
    "symlink over a whiteout": lambda u: u.symlink("x", "/deleted"),
    "link of a lower file": lambda u: u.link("/d/file", "/d/second"),
    "link over a whiteout": lambda u: u.link("/upper-only", "/deleted"),
    "rename of a lower file": lambda u: u.rename("/d/file", "/moved"),
    "rename of a hard-linked lower file": lambda u: u.rename("/link-a", "/d/moved"),
    "rename over a lower file": lambda u: u.rename("/upper-only", "/d/file"),
    "rename over a whiteout": lambda u: u.rename("/upper-only", "/deleted"),
    "rename of a lower directory": lambda u: u.rename("/d", "/moved"),
    "rename of a lower directory over a whiteout": lambda u: u.rename("/d", "/deleted-dir"),
    "rename of a merged directory": lambda u: u.rename("/merged", "/d/moved"),
    "rename of a directory over an emptied one": lambda u: u.rename("/d", "/emptied"),
    "rename of an upper directory over a whiteout": lambda u: u.rename("/upper-dir", "/deleted-dir"),
    "exchange of a lower file and a merged directory": lambda u: u.rename("/d/file", "/merged", 2),
    "setxattr on a lower file": lambda u: u.setxattr("/d/file", b"user.x", b"y"),
    "chown of an upper file": lambda u: u.setattr("/upper-only", Change(uid=7, gid=8)),
    "chmod of an upper file": lambda u: u.setattr("/upper-only", Change(mode=0o4700)),
    "mknod": lambda u: u.mknod("/d/fifo", stat.S_IFIFO | 0o640),
    "redirect of a lower directory": _redirecting(lambda u: u.rename("/d", "/moved")),
    "redirect into another directory": _redirecting(lambda u: u.rename("/d/sub", "/upper-dir/moved")),
    "redirect of a merged directory over a whiteout": _redirecting(lambda u: u.rename("/merged", "/deleted-dir")),
    "redirect over an emptied directory": _redirecting(lambda u: u.rename("/d", "/emptied")),
    "chmod of a lower file without its data": _metacopying(lambda u: u.setattr("/d/file", Change(mode=0o600))),
    "chmod of a file without data": _metacopying(lambda u: u.setattr("/hollow", Change(mode=0o600))),
    "write to a file without data": lambda u: u.write("/hollow", b"changed"),
    "truncate a file without data": lambda u: u.setattr("/hollow", Change(size=4)),
    "unlink of a file without data": lambda u: u.unlink("/hollow"),
    "rename of a file without data": lambda u: u.rename("/hollow", "/d/moved"),
    "link of a file without data": lambda u: u.link("/hollow", "/d/second"),
    "rename over a file without data": lambda u: u.rename("/upper-only", "/hollow"),
    "redirect of two that are exchanged": _redirecting(lambda u: u.rename("/d/sub", "/merged", 2)),
}


class Stored(Enum):
    """Where owners and modes are kept."""

    NOT = "real"
    ATTRIBUTE = "attribute"
    DATABASE = "database"


WITH_STORE = (
    "write to a lower file", "write to a hard-linked lower file", "chmod of a lower file", "chmod of a lower directory",
    "chown of a lower symbolic link", "create", "create over a whiteout", "mkdir over a whiteout of a directory",
    "symlink over a whiteout", "rename of a lower directory", "unlink of an upper file", "chown of an upper file",
    "chmod of an upper file", "mknod",
)  # fmt: skip
CASES = [
    *((name, Stored.NOT) for name in OPERATIONS),
    *((name, stored) for stored in (Stored.ATTRIBUTE, Stored.DATABASE) for name in WITH_STORE),
]


def opened(base: Path, stored: Stored) -> AbstractContextManager[InProcess]:
    wanted = OverrideName.CONTAINERS if stored is Stored.ATTRIBUTE else None
    return in_process([base / "lower"], base / "upper", base / "work", store=wanted)


def make_layers(base: Path, stored: Stored) -> None:
    lower = base / "lower"
    for directory in ("d/sub", "empty", "emptied", "merged/sub", "deleted-dir/inner"):
        (lower / directory).mkdir(parents=True)
    (lower / "d/file").write_bytes(b"content of a lower file")
    (lower / "d/sub/deep").write_bytes(b"deep")
    os.setxattr(lower / "d/file", "user.kept", b"value")
    (lower / "d/symlink").symlink_to("file")
    (lower / "link-a").write_bytes(b"one file")
    os.link(lower / "link-a", lower / "d/link-b")
    for name in ("both", "deleted", "merged/low", "emptied/gone", "hollow"):
        (lower / name).write_bytes(name.encode())
    (base / "upper").mkdir()
    (base / "work").mkdir()
    if stored is Stored.DATABASE:
        _begin_database(base)
    with opened(base, stored) as union:
        union.write("/both", b"upper content")
        union.create("/upper-only", b"mine")
        _with(union, metacopy=True).setattr("/hollow", Change(mode=0o640))
        _with(union, metacopy=False)
        union.mkdir("/upper-dir")
        union.create("/upper-dir/x", b"x")
        union.create("/merged/up", b"up")
        union.unlink("/deleted")
        union.unlink("/emptied/gone")
        union.rmdir("/deleted-dir/inner")
        union.rmdir("/deleted-dir")


def _begin_database(base: Path) -> None:
    """An upper whose work area has a database uses it, whatever its filesystem could do."""
    fds = [os.open(base / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("upper", "work")]
    store = DatabaseStore(fds[1])
    real = os.fstat(fds[0])
    store.store(RealObject(fds[0]), real, Facts.of(real))
    store.close()
    for fd in fds:
        os.close(fd)


def tree(base: Path, stored: Stored) -> dict[str, tuple[object, ...]]:
    with opened(base, stored) as union:
        return union.tree(numbers=True)


def save(layers: Path, place: Path) -> None:
    """Keep a copy of upper and work, as they are before an operation."""
    _copy(layers, place)


def restore(layers: Path, place: Path) -> None:
    """Bring upper and work back to what they were; the lower stays the same inodes."""
    for name in _SAVED:
        shutil.rmtree(layers / name)
    _copy(place, layers)


def _copy(source: Path, target: Path) -> None:
    # cp keeps devices, xattrs, times and hard links, which shutil does not. Spawned: a fork of pytest takes as long as
    # two copies, of which thousands are made.
    words = ["cp", "-a", *(str(source / name) for name in _SAVED), f"{target}/"]
    pid = os.posix_spawnp("cp", words, os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
