"""What a sequence can do, and how one operation is done beneath a root.

An operation is plain data, so that a sequence can be printed, cut and run again. It names files by path relative to
the root and open files by slot number; an operation on a slot that holds nothing answers EBADF on every side, so any
part of a sequence is itself a sequence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from tests.support import libc
from tests.support.identity import acting_as
from tests.support.libc import RenameFlag
from tests.support.tree import KINDS


class Call(Enum):
    """The operations; those of the second group use an open file."""

    CREATE = auto()
    WRITE = auto()
    APPEND = auto()
    OPEN_TRUNCATE = auto()
    TRUNCATE = auto()
    READ = auto()
    UNLINK = auto()
    MKDIR = auto()
    RMDIR = auto()
    RENAME = auto()
    LINK = auto()
    SYMLINK = auto()
    READLINK = auto()
    MKNOD = auto()
    CHMOD = auto()
    CHOWN = auto()
    UTIMENS = auto()
    SETXATTR = auto()
    GETXATTR = auto()
    LISTXATTR = auto()
    REMOVEXATTR = auto()
    LISTDIR = auto()
    STAT = auto()
    ACCESS = auto()
    STATVFS = auto()

    OPEN = auto()
    CLOSE = auto()
    FD_READ = auto()
    FD_WRITE = auto()
    FD_TRUNCATE = auto()
    FD_STAT = auto()
    FD_CHMOD = auto()
    FD_CHOWN = auto()
    FD_UTIMENS = auto()
    FD_SETXATTR = auto()
    FD_SYNC = auto()
    FD_LISTDIR = auto()

    REMOUNT = auto()
    """Done by the runner, to both sides; open files are closed first."""


IN_PLACE = frozenset(
    {
        Call.WRITE,
        Call.APPEND,
        Call.OPEN_TRUNCATE,
        Call.TRUNCATE,
        Call.CHMOD,
        Call.CHOWN,
        Call.UTIMENS,
        Call.SETXATTR,
        Call.REMOVEXATTR,
        Call.LINK,
    }
)
"""Operations that change an object and leave it the same object, so that its st_ino must stay."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a sequence. What `number` and `second` mean is up to the call: mode, offset, length, ids, time."""

    call: Call
    path: bytes = b""
    other: bytes = b""
    slot: int = 0
    number: int = 0
    second: int = 0
    data: bytes = b""
    name: str = ""
    uid: int = 0
    groups: tuple[int, ...] = ()
    umask: int = 0o022

    def __str__(self) -> str:
        parts = [str(self.call)]
        for item in dataclasses.fields(self)[1:]:
            value = getattr(self, item.name)
            if value != item.default:
                octal = item.name == "umask" or (item.name == "number" and self.call in _MODES)
                parts.append(f"{item.name}={oct(value) if octal else repr(value)}")
        return f"Operation({', '.join(parts)})"


_MODES = frozenset({Call.CREATE, Call.MKDIR, Call.MKNOD, Call.CHMOD, Call.FD_CHMOD})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation answered: an errno's name, or a value."""

    error: str | None = None
    value: Any = None

    def __str__(self) -> str:
        return self.error if self.error else f"ok {self.value!r}"


def _digest(data: bytes) -> str:
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


def _status(status: os.stat_result) -> tuple[object, ...]:
    directory = stat.S_ISDIR(status.st_mode)
    return (
        KINDS[stat.S_IFMT(status.st_mode)],
        oct(stat.S_IMODE(status.st_mode)),
        status.st_uid,
        status.st_gid,
        # Sizes and link counts of directories belong to the filesystem (design: merged directories).
        None if directory else status.st_size,
        None if directory else status.st_nlink,
        status.st_rdev,
    )


@dataclass(slots=True)
class World:
    """A root that operations are done beneath, and its open files."""

    root: bytes
    slots: dict[int, int] = field(default_factory=dict)

    def perform(self, operation: Operation) -> Outcome:
        """Do one operation; whatever the system answers is the outcome."""
        try:
            with acting_as(operation.uid, operation.umask, operation.groups):
                return Outcome(value=self._do(operation))
        except OSError as error:
            return Outcome(error=errno.errorcode[error.errno or 0])

    def close_all(self) -> None:
        """Close every open file."""
        for fd in self.slots.values():
            os.close(fd)
        self.slots.clear()

    def is_removed_directory(self, slot: int) -> bool:
        """Whether an open directory has no name any more."""
        if slot not in self.slots:
            return False
        status = os.fstat(self.slots[slot])
        return stat.S_ISDIR(status.st_mode) and status.st_nlink == 0

    def at(self, path: bytes) -> bytes:
        """The full path of a relative one."""
        return self.root if path == b"." else os.path.join(self.root, path)

    def _fd(self, slot: int) -> int:
        if slot not in self.slots:
            raise OSError(errno.EBADF, "no such slot")
        return self.slots[slot]

    @contextlib.contextmanager
    def _opened(self, path: bytes, flags: int, mode: int = 0) -> Iterator[int]:
        # Nobody reads from the other end of a fifo here, and nothing may wait.
        fd = os.open(self.at(path), flags | os.O_NONBLOCK, mode)
        try:
            yield fd
        finally:
            os.close(fd)

    def _do(self, op: Operation) -> object:
        path, other = self.at(op.path), self.at(op.other)
        match op.call:
            case Call.CREATE:
                with self._opened(op.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, op.number) as fd:
                    return os.write(fd, op.data)
            case Call.WRITE:
                with self._opened(op.path, os.O_WRONLY) as fd:
                    return os.pwrite(fd, op.data, op.number)
            case Call.APPEND:
                with self._opened(op.path, os.O_WRONLY | os.O_APPEND) as fd:
                    return os.write(fd, op.data)
            case Call.OPEN_TRUNCATE:
                with self._opened(op.path, os.O_WRONLY | os.O_TRUNC) as fd:
                    return os.write(fd, op.data)
            case Call.TRUNCATE:
                os.truncate(path, op.number)
            case Call.READ:
                with self._opened(op.path, os.O_RDONLY) as fd:
                    return _digest(os.pread(fd, 1 << 22, op.number))
            case Call.UNLINK:
                os.unlink(path)
            case Call.MKDIR:
                os.mkdir(path, op.number)
            case Call.RMDIR:
                os.rmdir(path)
            case Call.RENAME:
                libc.rename(path, other, RenameFlag(op.number))
            case Call.LINK:
                os.link(path, other, follow_symlinks=False)
            case Call.SYMLINK:
                os.symlink(op.data, path)
            case Call.READLINK:
                return os.readlink(path)
            case Call.MKNOD:
                os.mknod(path, op.number, op.second)
            case Call.CHMOD:
                os.chmod(path, op.number)
            case Call.CHOWN:
                os.lchown(path, op.number, op.second)
            case Call.UTIMENS:
                os.utime(path, ns=(op.number, op.number), follow_symlinks=False)
            case Call.SETXATTR:
                os.setxattr(path, op.name, op.data, op.number, follow_symlinks=False)
            case Call.GETXATTR:
                return os.getxattr(path, op.name, follow_symlinks=False)
            case Call.LISTXATTR:
                return sorted(os.listxattr(path, follow_symlinks=False))
            case Call.REMOVEXATTR:
                os.removexattr(path, op.name, follow_symlinks=False)
            case Call.LISTDIR:
                with os.scandir(path) as entries:
                    return sorted((entry.name, _kind(entry)) for entry in entries)
            case Call.STAT:
                return _status(os.lstat(path))
            case Call.ACCESS:
                return os.access(path, op.number, effective_ids=True)
            case Call.STATVFS:
                status = os.statvfs(path)
                return status.f_bsize, status.f_frsize, status.f_blocks, status.f_files, status.f_namemax
            case _:
                return self._do_open_file(op)
        return None

    def _do_open_file(self, op: Operation) -> object:
        if op.call is Call.OPEN:
            fd = os.open(self.at(op.path), op.number | os.O_NONBLOCK, 0o640)
            if op.slot in self.slots:
                os.close(self.slots[op.slot])
            self.slots[op.slot] = fd
            return None
        fd = self._fd(op.slot)
        match op.call:
            case Call.CLOSE:
                del self.slots[op.slot]
                os.close(fd)
            case Call.FD_READ:
                return _digest(os.pread(fd, 1 << 22, op.number))
            case Call.FD_WRITE:
                return os.pwrite(fd, op.data, op.number)
            case Call.FD_TRUNCATE:
                os.ftruncate(fd, op.number)
            case Call.FD_STAT:
                return _status(os.fstat(fd))
            case Call.FD_CHMOD:
                os.fchmod(fd, op.number)
            case Call.FD_CHOWN:
                os.fchown(fd, op.number, op.second)
            case Call.FD_UTIMENS:
                os.utime(fd, ns=(op.number, op.number))
            case Call.FD_SETXATTR:
                os.setxattr(fd, op.name, op.data, op.number)
            case Call.FD_SYNC:
                os.fsync(fd)
            case Call.FD_LISTDIR:
                return sorted(os.fsencode(name) for name in os.listdir(fd))
            case _:
                raise AssertionError(f"{op.call} is not an operation on a root")
        return None


def _kind(entry: os.DirEntry[bytes]) -> str:
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return "dir"
    return "file" if entry.is_file(follow_symlinks=False) else "special"
