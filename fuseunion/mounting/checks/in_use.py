"""Keeping two live mounts off one upper or work directory.

Two writers with their own idea of what is in a directory destroy it. So each mount holds flock(2) on three directories
for as long as it lives: on UPPER and on WORK, where older versions look, and on WORK/work. A lock belongs to the open
descriptor: the daemon inherits it over fork, and it goes with the daemon however that ends, so that no stale lock is
possible. A daemon whose mount was just unmounted needs a moment to finish; so a taken lock is tried again for a while
before it counts as taken.

Whoever can open a directory for reading can lock it. WORK/work is closed to everybody but its owner (mode 0700), so a
lock there is a mount's. UPPER and WORK may be open to all. A lock there counts when somebody holds it who could write
there, as far as that can be seen (linux/proc/locks.py). Where it is somebody else's, nobody who matters holds it, since
all of ours are exclusive. Where its holder cannot be seen (an ordinary user sees the own processes only), a mark tells:

    trusted. or user.overlay.fuseunion.mounted on UPPER, "WORK" or "WORK unlocked"

WORK is "default", or the inode number of the work directory, with which UPPER was last mounted. Only who may write to
UPPER can set it. It stays, since a remount may change no time of UPPER.

    no mark                     never mounted by us: the lock is ignored
    the mark, with our WORK     that mount has ended, because the lock on WORK/work is ours: ignored
    the mark, with another      perhaps a live mount: in use
    "unlocked", with another    that mount could not have the lock on UPPER: in use, whoever has it now

The kernel's overlayfs takes no flock. Its live mounts are found in mountinfo by their upperdir= and workdir=.
"""

import errno
import fcntl
import logging
import os
import time
from contextlib import ExitStack
from enum import Enum

from fuseunion.core.disk.work import open_inner
from fuseunion.core.format import xattr_names
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.mountinfo import mounts
from fuseunion.linux.proc import locks, processes
from fuseunion.mounting.checks.placement import Place
from fuseunion.mounting.options.grammar import unescape

_log = logging.getLogger("fuseunion.in_use")

PATIENCE = 1.5
"""Seconds that an unmounted daemon may take to let go of its directories."""

_PAUSE = 0.01

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS)
"""NFS turns flock into a record lock, which a directory cannot have (flock(2), NOTES)."""

_MARKS = tuple(os.fsdecode(prefix + xattr_names.MOUNTED) for prefix in xattr_names.PREFIXES)
"""`trusted.` for root's own directories, where overlayfs does not show it; `user.` else, so that the owner of UPPER
sees the mark of root too."""

_NO_MARK = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})

_UNLOCKED = b" unlocked"


class _Lock(Enum):
    """Who holds the lock on a directory."""

    OURS = "this mount"
    ANOTHERS = "somebody who cannot write there"
    UNKNOWN = "somebody who may not be looked at"


class Occupancy:
    """An UPPER that one mount, or one command, has for itself; the locks last until `close`, or until the process ends.

    Args:
        upper: to lock.
        upper_fd: of it.

    Attributes:
        ignored: what to tell of locks that did not count, one line each.

    Raises:
        UserError: BUSY, when another mount is known to hold it.
    """

    def __init__(self, upper: Place, upper_fd: int) -> None:
        self.ignored: list[str] = []
        self._upper = upper
        # One for all: a daemon that is ending lets go of everything at once.
        self._deadline = time.monotonic() + PATIENCE
        self._stack = ExitStack()
        self._work = b"none"
        self._lock = self._locked(upper, upper_fd)
        self._upper_fd = self._own(upper_fd)

    def close(self) -> None:
        """Let go of all."""
        self._stack.close()

    def add_work(self, work: Place, work_fd: int, *, default: bool) -> None:
        """Lock the work directory as well, WORK/work not included.

        Args:
            work: to lock.
            work_fd: of it.
            default: it is the default one of UPPER, which is made anew for each mount.

        Raises:
            UserError: BUSY.
        """
        self._locked(work, work_fd)
        self._own(work_fd)
        self._work = b"default" if default else b"%d" % os.fstat(work_fd).st_ino

    def add_inner(self, work: Place, work_fd: int) -> None:
        """Lock WORK/work: after this no other mount has this work directory.

        Raises:
            UserError: BUSY.
            OSError: ENOENT, as `open_inner`.
        """
        while True:
            fd = open_inner(work_fd)
            try:
                taken = not _try(fd, work)
                # Not that of a mount that has just removed it.
                same = os.path.samestat(os.fstat(fd), os.stat("work", dir_fd=work_fd, follow_symlinks=False))
                if same and not taken:
                    self._own(fd)
                    return
                if taken and time.monotonic() >= self._deadline:
                    raise _in_use(work, "fuseunion", locks.holders(os.fstat(fd)))
            finally:
                os.close(fd)
            time.sleep(_PAUSE)

    def enter(self, *, mark: bool = True) -> None:
        """Judge whether somebody else may be mounted on UPPER after all, and mark it with our work directory.

        Args:
            mark: False changes nothing.

        Raises:
            UserError: BUSY.
        """
        name, found = self._found_mark()
        anothers = found is not None and found.removesuffix(_UNLOCKED) != self._work
        if anothers and (self._lock is _Lock.UNKNOWN or (found or b"").endswith(_UNLOCKED)):
            raise self._may_be_in_use(name)
        wanted = self._work + (b"" if self._lock is _Lock.OURS else _UNLOCKED)
        if not mark or found == wanted:
            return
        for own in (name,) if found is not None else self._own_marks():
            try:
                # CREATE lets only one of two win who come at the same time.
                os.setxattr(self._upper_fd, own, wanted, os.XATTR_CREATE if found is None else 0)
            except FileExistsError:
                raise self._may_be_in_use(own) from None
            except OSError as error:
                # No attributes here, no space, or not ours: then a lock whose holder cannot be seen counts.
                _log.debug("%s cannot be set: %s", own, error)
                continue
            if self._lock is not _Lock.OURS:
                self._stack.callback(self._set_locked, own)
            return

    def _set_locked(self, name: str) -> None:
        """This mount has ended: nobody need ask any more who had the lock."""
        try:
            os.setxattr(self._upper_fd, name, self._work, os.XATTR_REPLACE)
        except OSError as error:
            _log.warning("%s cannot be set: %s", name, error)

    def _may_be_in_use(self, name: str) -> UserError:
        return UserError(
            f"upper directory '{self._upper.given}' may be in use by another live mount with another work directory; "
            f"use that one with --work, or, when nothing is mounted on it: setfattr -x {name} '{self._upper.given}'",
            ExitCode.BUSY,
        )

    def _own_marks(self) -> tuple[str, ...]:
        """What the mark may be called that this mount sets."""
        own = os.geteuid() == 0 and os.fstat(self._upper_fd).st_uid == 0
        return _MARKS if own else _MARKS[1:]

    def _found_mark(self) -> tuple[str, bytes | None]:
        """The mark on UPPER; where there are no attributes, one that says nothing about the work directory."""
        for name in _MARKS:
            try:
                return name, os.getxattr(self._upper_fd, name)
            except OSError as error:
                if error.errno not in _NO_MARK or (error.errno != errno.ENODATA and name == _MARKS[-1]):
                    return name, b"?"
        return _MARKS[-1], None

    def _own(self, fd: int) -> int:
        own = os.dup(fd)
        self._stack.callback(os.close, own)
        return own

    def _locked(self, place: Place, fd: int) -> _Lock:
        while not _try(fd, place):
            if time.monotonic() >= self._deadline:
                return self._judge(place, fd)
            time.sleep(_PAUSE)
        return _Lock.OURS

    def _judge(self, place: Place, fd: int) -> _Lock:
        """Who holds the lock that we could not have.

        Raises:
            UserError: BUSY, when one of the holders could write there.
        """
        st = os.fstat(fd)
        seen = locks.holders(st)
        writers = [pid for pid in seen if _may_write(pid, st.st_uid)]
        if writers:
            raise _in_use(place, "fuseunion", writers)
        who = f"process {seen[0]}, whose user cannot write there" if seen else "a process that may not be looked at"
        self.ignored.append(f"a lock on '{place.path}' is ignored: it is held by {who}")
        return _Lock.ANOTHERS if seen else _Lock.UNKNOWN


def _try(fd: int, place: Place) -> bool:
    """Take a lock, if nobody has it; True also where there are none."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        _log.warning("%s cannot be locked here (%s): nothing else may mount it", place.path, error.strerror)
    return True


def _may_write(pid: int, owner: int) -> bool:
    try:
        return processes.may_write_as(pid, owner)
    except OSError:
        return False  # ended meanwhile


def refuse_kernel_overlays(*places: Place) -> None:
    """Refuse directories that a live kernel overlay writes to.

    Raises:
        UserError: BUSY.
    """
    keys = {place.key: place for place in places if place.key is not None}
    for path, target in _overlay_directories():
        try:
            st = os.stat(path)
        except OSError:
            continue  # a path of another namespace, or hidden by now
        if (st.st_dev, st.st_ino) in keys:
            raise _in_use(keys[st.st_dev, st.st_ino], "kernel overlayfs", at=target)


def _overlay_directories() -> list[tuple[str, str]]:
    """What each overlay writes to, with where it is mounted."""
    try:
        overlays = [mount for mount in mounts() if mount.fstype == "overlay"]
    except OSError:
        return []  # without /proc there is nothing to look in
    given = [(overlay.option(name), overlay.target) for overlay in overlays for name in ("upperdir", "workdir")]
    return [(unescape(path), target) for path, target in given if path]


def _in_use(place: Place, by: str, pids: list[int] | None = None, at: str | None = None) -> UserError:
    from fuseunion.linux.runtime.served import mounted_by  # only for the message

    merged = next(filter(None, map(mounted_by, pids or ())), at)
    where = f" at '{merged}'" if merged else ""
    who = f" (process {pids[0]}, {processes.name(pids[0])})" if pids else ""
    return UserError(
        f"{place.part.value} '{place.given}' is in use by another live {by} mount{where}{who}; unmount that one or use "
        "another",
        ExitCode.BUSY,
    )
