"""Operations from a seed, chosen with an eye on what is there.

A blind choice of names would mostly meet ENOENT. The generator therefore looks at the oracle's tree before each step
and prefers paths that exist, names that existed before (a name deleted and made again is where unions go wrong), and
open files. What it returns is plain data; looking at the tree again is not needed to repeat a sequence.
"""

from __future__ import annotations

import dataclasses
import os
import random
import stat
from collections.abc import Callable, Mapping

from tests.differential.operations import Call, Operation
from tests.differential.recipes import DIRECTORY_MODES, LONG_NAMES, MODES, NAMES, access_list, data
from tests.support import acl
from tests.support.layers import OLD
from tests.support.libc import RenameFlag
from tests.support.tree import walk

_TOO_LONG = LONG_NAMES[0]
_SLOTS = 4
_OPEN_FLAGS = (
    os.O_RDONLY,
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_TRUNC,
    os.O_RDWR | os.O_CREAT,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
)
_XATTR_NAMES = ("user.colour", "user.new", "trusted.note", "user.empty", "security.note")

_WEIGHTS: Mapping[Call, int] = {
    Call.CREATE: 8,
    Call.WRITE: 6,
    Call.APPEND: 3,
    Call.OPEN_TRUNCATE: 3,
    Call.TRUNCATE: 4,
    Call.READ: 5,
    Call.UNLINK: 10,
    Call.MKDIR: 8,
    Call.RMDIR: 8,
    Call.RENAME: 16,
    Call.LINK: 6,
    Call.SYMLINK: 3,
    Call.READLINK: 1,
    Call.MKNOD: 3,
    Call.CHMOD: 5,
    Call.CHOWN: 4,
    Call.UTIMENS: 4,
    Call.SETXATTR: 6,
    Call.GETXATTR: 3,
    Call.LISTXATTR: 3,
    Call.REMOVEXATTR: 3,
    Call.LISTDIR: 8,
    Call.STAT: 8,
    Call.ACCESS: 2,
    Call.STATVFS: 1,
    Call.OPEN: 10,
    Call.CLOSE: 3,
    Call.FD_READ: 4,
    Call.FD_WRITE: 6,
    Call.FD_TRUNCATE: 2,
    Call.FD_STAT: 4,
    Call.FD_CHMOD: 2,
    Call.FD_CHOWN: 1,
    Call.FD_UTIMENS: 1,
    Call.FD_SETXATTR: 1,
    Call.FD_SYNC: 1,
    Call.FD_LISTDIR: 3,
    Call.REMOUNT: 1,
}

_NOT_THE_ROOT = frozenset({Call.RENAME, Call.RMDIR, Call.UNLINK, Call.LINK})


class Generator:
    """Draws one operation after the other for the tree beneath `root`."""

    def __init__(self, seed: int, root: bytes) -> None:
        self._rng = random.Random(f"operations {seed}")
        self._root = root
        self._kinds: dict[bytes, int] = {}
        self._gone: set[bytes] = set()

    def draw(self) -> Operation:
        """The next operation."""
        self._look()
        rng = self._rng
        call = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        operation = self._arguments(call)
        if call in _NOT_THE_ROOT:
            # The root of a mount answers EBUSY or EXDEV, that of a copy what a directory answers.
            while b"." in (operation.path, operation.other):
                operation = self._arguments(call)
        # A caller without privilege now and then: permissions, and what writing takes away from a file.
        uid = rng.choice((0, 0, 0, 1000)) if call is not Call.REMOUNT else 0
        umask = rng.choice((0o022, 0o022, 0o000, 0o077, 0o027))
        return dataclasses.replace(operation, uid=uid, umask=umask)

    def _look(self) -> None:
        now = {path: stat.S_IFMT(status.st_mode) for path, status in walk(self._root)}
        self._gone = {path for path in self._gone | set(self._kinds) if path not in now}
        self._kinds = now

    def _pick(self, wanted: Callable[[int], bool] | None = None) -> bytes:
        """An existing path, of a wanted kind if there is one; b"." only when there is nothing else."""
        rng = self._rng
        if rng.random() < 0.05:
            return self._fresh()
        paths = sorted(path for path, kind in self._kinds.items() if path != b"." and (wanted is None or wanted(kind)))
        return rng.choice(paths) if paths else rng.choice(sorted(self._kinds))

    def _fresh(self) -> bytes:
        """A path that need not exist: one that is gone, or a name in some directory."""
        rng = self._rng
        if self._gone and rng.random() < 0.4:
            return rng.choice(sorted(self._gone))
        if rng.random() < 0.03:
            return _TOO_LONG
        parent = self._directory()
        name = rng.choice(NAMES)
        return name if parent == b"." else parent + b"/" + name

    def _directory(self) -> bytes:
        directories = sorted(
            path for path, kind in self._kinds.items() if kind == stat.S_IFDIR and path.count(b"/") < 4
        )
        return self._rng.choice(directories)

    def _file(self) -> bytes:
        return self._pick(stat.S_ISREG) if self._rng.random() < 0.9 else self._pick()

    def _arguments(self, call: Call) -> Operation:
        rng = self._rng
        slot = rng.randrange(_SLOTS)
        offset = rng.choice((0, 0, 3, 100, 4096, 100_000))
        length = rng.choice((0, 0, 1, 10, 4096, 6000, 200_000))
        when = OLD + rng.randrange(1000) * 1_000_000_007
        match call:
            case Call.CREATE:
                return Operation(call, self._fresh(), number=rng.choice(MODES), data=data(rng))
            case Call.WRITE | Call.APPEND | Call.OPEN_TRUNCATE:
                return Operation(call, self._file(), number=offset, data=data(rng) or b"w")
            case Call.TRUNCATE:
                return Operation(call, self._file(), number=length)
            case Call.READ:
                return Operation(call, self._file(), number=rng.choice((0, 0, 5)))
            case Call.UNLINK:
                return Operation(call, self._pick(lambda kind: kind != stat.S_IFDIR))
            case Call.MKDIR:
                return Operation(call, self._fresh(), number=rng.choice(DIRECTORY_MODES))
            case Call.RMDIR:
                return Operation(call, self._emptiest())
            case Call.RENAME:
                return self._rename()
            case Call.LINK:
                return Operation(call, self._pick(lambda kind: kind != stat.S_IFDIR), self._fresh())
            case Call.SYMLINK:
                return Operation(call, self._fresh(), data=rng.choice(NAMES))
            case Call.MKNOD:
                kind = rng.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR))
                return Operation(call, self._fresh(), number=kind | rng.choice(MODES), second=os.makedev(240, 77))
            case Call.CHMOD:
                return Operation(call, self._pick(), number=rng.choice((*MODES, *DIRECTORY_MODES)))
            case Call.CHOWN:
                return Operation(call, self._pick(), number=rng.choice((-1, 0, 1000)), second=rng.choice((-1, 0, 1001)))
            case Call.UTIMENS:
                return Operation(call, self._pick(), number=when)
            case Call.SETXATTR | Call.FD_SETXATTR:
                return self._setxattr(call, slot)
            case Call.GETXATTR | Call.REMOVEXATTR:
                return Operation(call, self._pick(), name=rng.choice((*_XATTR_NAMES, acl.ACCESS, acl.DEFAULT)))
            case Call.LISTXATTR | Call.STAT | Call.STATVFS:
                return Operation(call, self._pick())
            case Call.READLINK:
                return Operation(call, self._pick(stat.S_ISLNK))
            case Call.ACCESS:
                return Operation(call, self._pick(), number=rng.choice((os.R_OK, os.W_OK, os.X_OK)))
            case Call.LISTDIR:
                return Operation(call, self._directory())
            case Call.OPEN:
                return self._open(slot)
            case Call.FD_READ:
                return Operation(call, slot=slot)
            case Call.FD_WRITE:
                return Operation(call, slot=slot, number=offset, data=data(rng) or b"w")
            case Call.FD_TRUNCATE:
                return Operation(call, slot=slot, number=length)
            case Call.FD_CHMOD:
                return Operation(call, slot=slot, number=rng.choice(MODES))
            case Call.FD_CHOWN:
                return Operation(call, slot=slot, number=rng.choice((-1, 0, 1000)), second=rng.choice((-1, 0, 1001)))
            case Call.FD_UTIMENS:
                return Operation(call, slot=slot, number=when)
            case _:
                return Operation(call, slot=slot)

    def _emptiest(self) -> bytes:
        """A directory, an empty one if the dice say so and there is one."""
        directories = [path for path, kind in self._kinds.items() if kind == stat.S_IFDIR and path != b"."]
        inhabited = {os.path.dirname(path) for path in self._kinds}
        empty = sorted(path for path in directories if path not in inhabited)
        if empty and self._rng.random() < 0.8:
            return self._rng.choice(empty)
        return self._pick(stat.S_ISDIR)

    def _rename(self) -> Operation:
        rng = self._rng
        flags = rng.choice((RenameFlag.NONE,) * 6 + (RenameFlag.NOREPLACE, RenameFlag.EXCHANGE, RenameFlag.EXCHANGE))
        source = self._pick(stat.S_ISDIR) if rng.random() < 0.35 else self._pick()
        target = self._pick() if rng.random() < 0.4 or flags is RenameFlag.EXCHANGE else self._fresh()
        if rng.random() < 0.1:
            target = self._emptiest()
        return Operation(Call.RENAME, source, target, number=int(flags))

    def _setxattr(self, call: Call, slot: int) -> Operation:
        rng = self._rng
        flags = rng.choice((0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        if rng.random() < 0.25:
            name, value = rng.choice((acl.ACCESS, acl.DEFAULT)), access_list(rng)
        else:
            name, value = rng.choice(_XATTR_NAMES), rng.randbytes(rng.randrange(40))
        path = self._pick() if call is Call.SETXATTR else b""
        return Operation(call, path, slot=slot if call is Call.FD_SETXATTR else 0, name=name, data=value, number=flags)

    def _open(self, slot: int) -> Operation:
        flags = self._rng.choice(_OPEN_FLAGS)
        if flags & os.O_DIRECTORY:
            path = self._directory()
        elif flags & os.O_CREAT and self._rng.random() < 0.5:
            path = self._fresh()
        else:
            path = self._file()
        return Operation(Call.OPEN, path, slot=slot, number=flags)
