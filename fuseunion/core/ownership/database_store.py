"""The ownership store for an upper without user xattrs: one SQLite file in the work area.

Facts are keyed by inode number, so that rename and link carry them along without a word to the database. A number
can be used again by another object, after a deletion that the database did not see: a crash between the deletion and
`forget`, or changes made while nothing was mounted. So each row carries a *witness*, something that the filesystem
never gives to two objects: the file handle (with the inode's generation), else the time of birth. A row whose
witness is another object's does not count.

Crash safety: every `store` is one transaction of a write-ahead log, made before the object is published under its
name. What a crash leaves is at most a row of an object that is gone, harmless as said. `sync` puts the log on disk.

One process uses the file, as holder of the upper's lock, so SQLite needs no locks of its own (VFS "unix-none",
exclusive mode). That also makes the log work on network filesystems, keeps its index in memory, and lets the
connection survive a fork, as long as only one side goes on using it. It is opened once, before anything is mounted:
SQLite resolves its path component by component, which must not lead into the daemon's own mount.

What it says is believed: so the file, and what SQLite keeps beside it, must be this user's alone (linux/owned.py), and
is looked at before SQLite opens anything. SQLite never makes the file, and what it has opened must be what was looked
at: who may rename the directories above could lead it elsewhere in between. SQLite itself opens the log without
following a link at its end.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fuseunion.core.ownership.facts import DATABASE_FILE, Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.linux import owned
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_log = logging.getLogger("fuseunion.ownership")

_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (
    ino INTEGER PRIMARY KEY,
    witness BLOB NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    rdev INTEGER NOT NULL
)
"""

_NAME = DATABASE_FILE.decode()

_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite appends to the name for its own files (sqlite.org/tempfiles.html); it reads them at the opening."""

_ERRNOS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}


class DatabaseStore(OwnershipStore):
    """Facts in the database of a work area.

    Args:
        work_fd: a descriptor of the directory that holds the file; used only here.
        volatile: never wait for the disk.

    Raises:
        OSError: EIO where the file is no database of ours; EPERM where it, or a file that SQLite keeps beside it, is
            not this user's alone; as open(2). A file that was made for this is gone again.
    """

    needs_paths = True
    """SQLite removes the files beside the database by their paths, taken from /proc/self/fd in the beginning."""

    def __init__(self, work_fd: int, *, volatile: bool = False) -> None:
        self.label = f"database {_NAME}"
        self._work_fd = os.dup(work_fd)
        self._dirty = False
        # A copy-up stores from a worker thread.
        self._lock = threading.Lock()
        made = False
        try:
            expected, made = _look_or_make(self._work_fd)
            with _translated():
                self._connection = sqlite3.connect(
                    f"file:/proc/self/fd/{self._work_fd}/{_NAME}?vfs=unix-none&mode=rw",
                    uri=True,
                    isolation_level=None,
                    check_same_thread=False,
                )
                try:
                    if not _has_open(expected):
                        raise os_error(errno.ESTALE, DATABASE_FILE)
                    self._prepare("OFF" if volatile else "NORMAL")
                except BaseException:
                    self._connection.close()
                    raise
        except BaseException:
            if made:
                os.unlink(DATABASE_FILE, dir_fd=self._work_fd)
            os.close(self._work_fd)
            raise

    def _prepare(self, synchronous: str) -> None:
        run = self._connection.execute
        # Exclusive before the log is first touched: its index then lives in memory (sqlite.org/wal.html, 8).
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {synchronous}")
        (version,) = run("PRAGMA user_version").fetchone()
        if version not in (0, _FORMAT):
            _log.error("the ownership database has format %d, not %d", version, _FORMAT)
            raise os_error(errno.EIO)
        # Also when nothing is new: the first write to a log syncs its directory, by path. That must happen now, and
        # not when the mount may cover the path.
        run("BEGIN")
        run(_SCHEMA)
        run(f"PRAGMA user_version = {_FORMAT}")
        run("COMMIT")

    def find(self, where: RealObject, st: os.stat_result) -> Facts | None:
        with self._lock, _translated():
            row = self._connection.execute(
                "SELECT witness, uid, gid, mode, kind, rdev FROM facts WHERE ino = ?", (_key(st),)
            ).fetchone()
        if row is None or row[0] != witness(where):
            return None
        return Facts(*row[1:])

    def store(self, where: RealObject, st: os.stat_result, facts: Facts) -> None:
        with self._lock, _translated():
            self._connection.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?, ?)", (_key(st), witness(where), *facts)
            )
        self._dirty = True

    def forget(self, st: os.stat_result) -> None:
        with self._lock, _translated():
            self._connection.execute("DELETE FROM facts WHERE ino = ?", (_key(st),))
        self._dirty = True

    def numbers(self) -> list[int]:
        """The inode numbers of all objects of which something is stored.

        Raises:
            OSError: EIO.
        """
        with self._lock, _translated():
            rows = self._connection.execute("SELECT ino FROM facts").fetchall()
        return [ino if ino >= 0 else ino + 2**64 for (ino,) in rows]

    def of_number(self, number: int) -> Facts | None:
        """What is stored of an object that may be gone: no witness tells whether it is the same one.

        Raises:
            OSError: EIO.
        """
        key = number if number < 2**63 else number - 2**64
        with self._lock, _translated():
            row = self._connection.execute(
                "SELECT uid, gid, mode, kind, rdev FROM facts WHERE ino = ?", (key,)
            ).fetchone()
        return None if row is None else Facts(*row)

    def forget_numbers(self, numbers: Iterable[int]) -> None:
        """Forget objects that are gone, in one transaction.

        Raises:
            OSError: EIO, ENOSPC.
        """
        with self._lock, _translated():
            self._connection.execute("BEGIN")
            keys = ((ino if ino < 2**63 else ino - 2**64,) for ino in numbers)
            self._connection.executemany("DELETE FROM facts WHERE ino = ?", keys)
            self._connection.execute("COMMIT")
        self._dirty = True

    def is_empty(self) -> bool:
        """True when nothing is stored, so that the file need not outlive the mount."""
        with _translated():
            return self._connection.execute("SELECT 1 FROM facts LIMIT 1").fetchone() is None

    def sync(self) -> None:
        if self._dirty:
            self._dirty = False  # before the work: what another thread stores meanwhile counts again
            with self._lock, _translated():
                self._connection.execute("PRAGMA wal_checkpoint(FULL)")

    def close(self) -> None:
        """Close the file, and remove it when nothing is stored."""
        try:
            unused = self.is_empty()
            with _translated():
                self._connection.close()
            if unused:
                os.unlink(DATABASE_FILE, dir_fd=self._work_fd)
        finally:
            os.close(self._work_fd)


def _look_or_make(work_fd: int) -> tuple[os.stat_result, bool]:
    """Look at what SQLite will open; an empty file is a new database.

    Returns:
        fstat of the database, and whether it was made.
    Raises:
        OSError: EPERM, with the reason as its text.
    """
    for suffix in _BESIDE:
        _look(work_fd, _NAME + suffix)
    found = _look(work_fd, _NAME)
    if found is not None:
        return found, False
    fd = os.open(_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=work_fd)
    try:
        return os.fstat(fd), True
    finally:
        os.close(fd)


def _look(work_fd: int, name: str) -> os.stat_result | None:
    try:
        fd = owned.open_file(name, work_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise OSError(errno.EPERM, f"'{name}' in the work directory {reason}", name) from None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _has_open(expected: os.stat_result) -> bool:
    """Whether this process has a descriptor of a file: SQLite does not tell what it opened."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), expected):
                return True
        except OSError:
            continue  # that of the listing itself
    return False


def witness(where: RealObject) -> bytes:
    """Bytes that no other object of the filesystem has, now or later; empty where it can tell nothing.

    Raises:
        OSError: ENOENT, EACCES, as any access by name.
    """
    try:
        kind, handle = where.handle()
        return b"handle %d " % kind + handle
    except OSError as error:
        # EOPNOTSUPP: the filesystem has no handles. EPERM: a sandbox forbids the call. EOVERFLOW: a long one.
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EOVERFLOW, errno.ENOSYS):
            raise
    birth = where.birth_time_ns()
    return b"" if birth is None else b"birth %d" % birth


def _key(st: os.stat_result) -> int:
    """An inode number as SQLite's signed 64 bits."""
    return st.st_ino if st.st_ino < 2**63 else st.st_ino - 2**64


@contextmanager
def _translated() -> Iterator[None]:
    """SQLite's errors as errnos: the core raises nothing else."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        _log.error("ownership database: %s", error)
        number = _ERRNOS.get(code, errno.EIO)
        raise os_error(number) from error
