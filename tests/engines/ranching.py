"""Making a ranch in the way that the actor has, and looking at what it leaves in a union."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fuseunion.cli.main import run as command
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File as UnionFile
from tests.engines.shown import run
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.crash import run_until_change
from tests.support.inprocess import InProcess, in_process
from tests.support.layers import File, Name, Node, Symlink

LOWER: dict[Name, Node] = {
    "one": File(b"1", mode=0o640),
    "dir/two": File(b"2"),
    "dir/sub/three": File(b"3", xattrs={"user.mine": b"value"}),
    "dir/sub/link": Symlink(target="three"),
    "other/four": File(b"4"),
}

for module in (
    "cli.commands.doctor",
    "cli.mount",
    "cli.commands.promote",
    "cli.commands.sync",
    "cli.commands.umount",
    "engines.fuse.fuse_engine",
    "engines.fuse.mount_point",
    "engines.kernel.kernel_engine",
    "engines.ranch.corral",
    "engines.ranch.ranch_engine",
):
    importlib.import_module(f"fuseunion.{module}")  # so that the forks below need not import them one by one

CAPABILITY = "security.capability"
MAY_BIND = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""Its value for a file that may bind low ports (linux/capability.h, vfs_cap_data)."""

everybody = pytest.mark.actors("root", "userns", "denied")
with_mounts = pytest.mark.actors("root", "userns")


def ranch(arena: Arena, *arguments: str | Path) -> Path:
    """Make a ranch of one lower in the way that the actor has; returns MERGED."""
    merged = arena.directory("merged")
    safe = ["--copy", "*"] if arena.actor.role is Role.DENIED and "--allow-writable-lower" not in arguments else []
    run(arena, "--engine", "ranch", *safe, *arguments, arena.upper, merged)
    return merged


def is_link(path: Path) -> bool:
    """Whether a path is a link of a ranch."""
    return path.is_symlink() and ".fuseunion-ranch/lower/" in os.readlink(path)


def forked(*arguments: str | Path) -> int:
    """Run a command in a fork, which takes much less time than an interpreter of its own; returns its exit status."""
    child = os.fork()
    if child == 0:
        status = 125
        try:
            status = _command(arguments)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_until_killed(number: int, *arguments: str | Path) -> bool:
    """Run a command in a fork that dies before its change `number` (tests/support/crash.py); True when it did not."""
    return run_until_change(number, lambda: None if _command(arguments) == 0 else os._exit(125))


def _command(arguments: tuple[str | Path, ...]) -> int:
    return command(["fuseunion", *map(str, arguments)])


class Facts(NamedTuple):
    """What a tree holds under one name; `links` is the first name of the same file."""

    kind: str
    mode: int
    uid: int
    gid: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    mtime: int
    links: str = ""


def of_union(lower: Path, upper: Path) -> dict[str, Facts]:
    """What the union shows, looked at in process: also in directories that their owner closed."""
    work = upper.parent / f".{upper.name}.fuseunion-work"
    kept = work.exists()
    work.mkdir(exist_ok=True)
    try:
        with in_process([lower], upper, work) as union, contextlib.ExitStack() as stack:
            return _grouped(_of_union(union, stack))
    finally:
        if not kept:
            shutil.rmtree(work)


def _of_union(union: InProcess, stack: contextlib.ExitStack) -> Iterator[tuple[str, object, Facts]]:
    pending = [""]
    while pending:
        path = pending.pop()
        inode = union.find(path)
        st, _ = union.union.stat(inode)
        if isinstance(inode, Directory):
            top = inode.top
            beside, name = (top, b".") if top.parent is None else (top.parent, top.name)
            where = b"/proc/self/fd/%d/%s" % (beside.fd(), name)
            target = ""
        else:
            assert isinstance(inode, UnionFile)
            place = inode.location()
            assert place is not None
            where = b"/proc/self/fd/%d/%s" % (place[0].fd(), place[1])
            target = os.fsdecode(union.union.readlink(inode)) if stat.S_ISLNK(inode.kind) else ""
        yield path, inode.ino, _facts(where, st, target, stack)
        if isinstance(inode, Directory):
            pending += [f"{path}/{name}" for name in union.names(path)]


def of_directory(root: Path) -> dict[str, Facts]:
    """The same of a plain directory."""
    with contextlib.ExitStack() as stack:
        return _grouped(_of_directory(root, stack))


def _of_directory(root: Path, stack: contextlib.ExitStack) -> Iterator[tuple[str, object, Facts]]:
    pending = [""]
    while pending:
        path = pending.pop()
        full = os.fsencode(f"{root}{path}")
        st = os.lstat(full)
        target = os.fsdecode(os.readlink(full)) if stat.S_ISLNK(st.st_mode) else ""
        yield path, st.st_ino, _facts(full, st, target, stack, "user.fuseunion.")
        if stat.S_ISDIR(st.st_mode):
            pending += [f"{path}/{os.fsdecode(name)}" for name in os.listdir(full)]


def _facts(path: bytes, st: os.stat_result, target: str, stack: contextlib.ExitStack, own_marks: str = "-") -> Facts:
    """Args:
    stack: gives directories back, at the end, the permissions that they did not have.
    own_marks: what the names of a ranch's marks begin with, where there may be some.
    """
    kind, mode = tree.KINDS[stat.S_IFMT(st.st_mode)], stat.S_IMODE(st.st_mode)
    with contextlib.ExitStack() as soon:
        rights = {"dir": 0o500, "file": 0o400}.get(kind, 0)
        if st.st_uid == os.geteuid() and mode & rights != rights:
            end = stack if kind == "dir" else soon
            held = _held(path, end)
            os.chmod(held, mode | rights)
            end.callback(os.chmod, held, mode)
        content = target
        if kind == "file":
            readable = os.access(path, os.R_OK, effective_ids=True)
            content = Path(os.fsdecode(path)).read_text() if readable else "not for us"
        shown = tuple(
            (name, value)
            for name, value in tree.xattrs(path)
            if name == CAPABILITY or not name.startswith(("trusted.overlay.", "security.", "user.overlay.", own_marks))
        )
    return Facts(kind, 0 if kind == "symlink" else mode, st.st_uid, st.st_gid, content, shown, st.st_mtime_ns)


def _held(path: bytes, stack: contextlib.ExitStack) -> bytes:
    """A path that holds good whatever becomes of the descriptors that the given one leads through."""
    fd = os.open(path, os.O_PATH)
    stack.callback(os.close, fd)
    return b"/proc/self/fd/%d" % fd


def _grouped(found: Iterator[tuple[str, object, Facts]]) -> dict[str, Facts]:
    facts = {path: (key, one) for path, key, one in found}
    first: dict[object, str] = {}
    for path in sorted(facts):
        first.setdefault(facts[path][0], path)
    return {path: one._replace(links=first[key]) for path, (key, one) in sorted(facts.items())}


def raw(upper: Path) -> dict[bytes, tuple[object, ...]]:
    """What lies in UPPER itself, but for times of access and the like."""
    return {path: tuple(getattr(entry, field) for field in tree.SEEN) for path, entry in tree.snapshot(upper).items()}


def differences(expected: dict[str, Facts], found: dict[str, Facts]) -> str:
    """One line for each name that is not as it was expected; empty when all are."""
    return "\n".join(
        f"{path}: {found.get(path)}, expected {expected.get(path)}"
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    )
