"""The upper of an ephemeral mount: a directory that cannot outlive the daemon.

By preference a tmpfs that is mounted nowhere: fsopen(2) and fsmount(2) give a descriptor of a detached mount, which
the kernel takes away with the last descriptor, after kill -9 too. Root makes it directly. An ordinary user may not,
but root of a user namespace may: a short-lived child enters a new one, makes the mount and sends the descriptor back.

Where neither works (user namespaces switched off, Linux before 5.2) a directory under /dev/shm or TMPDIR serves. It is
locked while in use and removed at unmount; one left by a killed daemon is removed by the next ephemeral mount.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import namespaces, owned, syscalls

_log = logging.getLogger("fuseunion.scratch")


class Scratch(NamedTuple):
    """A private directory.

    Attributes:
        root_fd: keeps it alive; holds nothing yet.
        label: how messages name it.
        remove: takes it away once nothing uses it.
    """

    root_fd: int
    label: str
    remove: Callable[[], None]


def make(size: str | None) -> Scratch:
    """Make the directory.

    Args:
        size: limit as tmpfs writes it, or None for the tmpfs default (half of the memory).
    Raises:
        UserError: FAILURE, when no directory can be had, or UNAVAILABLE, when none with a limit can.
    """
    reasons: list[str] = []
    for attempt in (_tmpfs, _tmpfs_from_namespace):
        try:
            fd = attempt(size)
        except OSError as error:
            reasons.append(error.strerror or str(error))
            _log.debug("%s: %s", attempt.__name__, error)
        else:
            return Scratch(fd, "(private tmpfs)", partial(os.close, fd))
    if size is not None:
        raise UserError(
            f"--size {size} needs a private tmpfs, which cannot be made here ({', '.join(reasons)}); leave it out",
            ExitCode.UNAVAILABLE,
        )
    return _directory()


def _tmpfs(size: str | None) -> int:
    context = syscalls.fsopen(b"tmpfs")
    try:
        syscalls.fsconfig_set_string(context, b"mode", b"0700")
        if size is not None:
            syscalls.fsconfig_set_string(context, b"size", size.encode())
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)


def _tmpfs_from_namespace(size: str | None) -> int:
    """The same, made by a child in a user namespace of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                namespaces.enter_user_namespace()
                socket.send_fds(theirs, [b"\0"], [_tmpfs(size)])
            finally:
                # Never back into the parent's code: its undo steps are not the child's. The parent sees no descriptor.
                os._exit(0)
        theirs.close()
        fds = socket.recv_fds(ours, 1, 1)[1]
        os.waitpid(pid, 0)
    if not fds:
        raise PermissionError(errno.EPERM, "no user namespace can be made")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _directory() -> Scratch:
    prefix = f"fuseunion-{os.geteuid()}-"
    for parent in _parents():
        _sweep(parent, prefix)
        try:
            path = tempfile.mkdtemp(prefix=prefix, dir=parent)
        except OSError as error:
            _log.debug("no directory in %s: %s", parent, error)
            continue
        fd = _locked(path)
        if fd is None:
            return _directory()
        return Scratch(fd, path, partial(_remove, path, fd))
    raise UserError("no private tmpfs and no directory in /dev/shm or TMPDIR can be made", ExitCode.FAILURE)


def _locked(path: str) -> int | None:
    """A descriptor of a new directory, with its lock; None where another mount has swept it away before."""
    try:
        fd = owned.open_directory(os.path.realpath(path))
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_EX)
    if os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    return None


def _parents() -> list[str]:
    return ["/dev/shm", tempfile.gettempdir()]


def _sweep(parent: str, prefix: str) -> None:
    """Remove the directories of this user whose daemon has gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            path = os.path.join(os.path.realpath(parent), name)
            if not name.startswith(prefix):
                continue
            try:
                fd = owned.open_directory(path)
            except OSError as error:
                _log.debug("%s is not ours to remove: %s", path, error)
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                _remove(path, fd)


def _remove(path: str, fd: int) -> None:
    """Remove the directory, then let go of its lock. What resists is logged, and tried again by the next mount."""
    layer = Layer(fd, writable=True, label=path)
    try:
        trees.empty(layer.root)
        os.rmdir(path)
    except OSError as error:
        _log.warning("cannot remove '%s': %s", path, error.strerror)
    finally:
        layer.close()
