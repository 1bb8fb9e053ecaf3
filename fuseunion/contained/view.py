"""What a command sees besides the union: /dev, /proc, /sys, /tmp, the names of hosts, and what is bound.

Everything is mounted over the union in a mount namespace of its own, before the old root goes. What is missing in the
tree as a place to mount at is made in the merged view, never in the lower; where nothing can be made, because the view
is read-only, the usual places are left out, and a bind is an error.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from fuseunion.contained import places
from fuseunion.contained.wishes import Bind, Wishes
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import namespaces, syscalls

_SAFE_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)

_OF_THE_MACHINE = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi")
"""In /proc, for root: what changes the machine and not a process."""

_NAMES_OF_HOSTS = ("/etc/resolv.conf", "/etc/hosts")

_CANNOT_BE_MADE = frozenset((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT))

_BIND = syscalls.MS_BIND | syscalls.MS_REC
_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV


def build(root: str, wishes: Wishes, *, as_root: bool) -> None:
    """Mount everything over the union.

    Precondition: in a mount namespace of its own, which still has the machine's root.

    Args:
        root: where the union is mounted.
        wishes: the binds, and whose processes are seen.
        as_root: the command is to be the machine's root.

    Raises:
        UserError: a bind, or one of the usual mounts, that cannot be made.
    """
    namespaces.keep_mounts_private()
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _proc(root_fd, own=wishes.own_pids, as_root=as_root)
        _sys(root_fd)
        _dev(root_fd)
        _new(root_fd, "/tmp", b"mode=1777")
        for path in _NAMES_OF_HOSTS:
            if os.path.exists(path):
                _show(root_fd, Bind(path, path, read_only=True))
        for bind in wishes.binds:
            _bind(root_fd, bind)
    except OSError as error:
        where = f"'{os.fsdecode(error.filename)}': " if error.filename is not None else ""
        raise UserError(f"the view cannot be built: {where}{error.strerror}", ExitCode.FAILURE) from None
    finally:
        os.close(root_fd)


def enter(root: str) -> None:
    """Make the union the root directory; nothing of the old root can be reached any more.

    Raises:
        OSError: of pivot_root(2).
    """
    os.chdir(root)
    # The old root comes to lie over the new one, and goes from there (pivot_root(2), "pivot_root(".", ".")").
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")


def _place(root_fd: int, path: str, *, directory: bool) -> int | None:
    """Where to mount one of the usual things; None where there is no place and none can be made."""
    try:
        return places.find_or_make(root_fd, path, directory=directory)
    except OSError as error:
        if error.errno in _CANNOT_BE_MADE or error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            return None
        raise


def _mount(source: bytes, fd: int, fstype: bytes, flags: int, data: bytes = b"") -> None:
    syscalls.mount(source, places.by_descriptor(fd), fstype, flags, data)


def _new(root_fd: int, path: str, data: bytes) -> None:
    """A new tmpfs, where there is a place for it."""
    fd = _place(root_fd, path, directory=True)
    if fd is not None:
        try:
            _mount(b"tmpfs", fd, b"tmpfs", _PLAIN, data)
        finally:
            os.close(fd)


def _show(root_fd: int, bind: Bind) -> None:
    """Bind one of the usual things, where there is a place for it."""
    fd = _place(root_fd, bind.target, directory=os.path.isdir(bind.source))
    if fd is None:
        return
    os.close(fd)
    _bind_at(root_fd, bind)


def _bind(root_fd: int, bind: Bind) -> None:
    target = bind.target or os.path.abspath(bind.source)
    try:
        directory = os.path.isdir(bind.source)
        os.stat(bind.source)
    except OSError as error:
        raise UserError(f"--bind: '{bind.source}' cannot be shown: {error.strerror}", ExitCode.LAYERS) from None
    try:
        os.close(places.find_or_make(root_fd, target, directory=directory))
        _bind_at(root_fd, bind._replace(target=target))
    except OSError as error:
        kind = "directory" if directory else "file"
        raise UserError(
            f"--bind: '{bind.source}' cannot be shown at '{target}': {error.strerror}; the tree needs a {kind} there, "
            "or an UPPER in which it can be made",
            ExitCode.LAYERS,
        ) from None


def _bind_at(root_fd: int, bind: Bind) -> None:
    source = os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
    try:
        target = places.find(root_fd, bind.target)
        try:
            _mount(places.by_descriptor(source), target, b"", _BIND)
        finally:
            os.close(target)
    finally:
        os.close(source)
    if bind.read_only:
        # The same path again: what was mounted there lies on top now.
        mounted = places.find(root_fd, bind.target)
        try:
            syscalls.make_read_only(places.by_descriptor(mounted))
        finally:
            os.close(mounted)


def _proc(root_fd: int, *, own: bool, as_root: bool) -> None:
    if not own:
        _show(root_fd, Bind("/proc", "/proc"))
    else:
        fd = _place(root_fd, "/proc", directory=True)
        if fd is None:
            return
        try:
            _mount(b"proc", fd, b"proc", _PLAIN | syscalls.MS_NOEXEC)
        except PermissionError:
            raise UserError(
                "--pid: no /proc can be mounted here, because a part of the present one is hidden; leave --pid out",
                ExitCode.UNAVAILABLE,
            ) from None
        finally:
            os.close(fd)
    if as_root:
        for name in _OF_THE_MACHINE:
            if os.path.exists(f"/proc/{name}"):
                _show(root_fd, Bind(f"/proc/{name}", f"/proc/{name}", read_only=True))


def _sys(root_fd: int) -> None:
    if os.path.isdir("/sys"):
        _show(root_fd, Bind("/sys", "/sys", read_only=True))


def _dev(root_fd: int) -> None:
    place = _place(root_fd, "/dev", directory=True)
    if place is None:
        return
    try:
        _mount(b"tmpfs", place, b"tmpfs", syscalls.MS_NOSUID, b"mode=0755")
    finally:
        os.close(place)
    for name in _SAFE_DEVICES:
        if os.path.exists(f"/dev/{name}"):
            _show(root_fd, Bind(f"/dev/{name}", f"/dev/{name}"))
    _new(root_fd, "/dev/shm", b"mode=1777")
    _terminals(root_fd)
    directory = places.find(root_fd, "/dev")
    try:
        for name, target in _LINKS:
            os.symlink(target, name, dir_fd=directory)
    finally:
        os.close(directory)


def _terminals(root_fd: int) -> None:
    """Pseudo terminals of its own; the terminal that the command is started from is /dev/console."""
    fd = _place(root_fd, "/dev/pts", directory=True)
    if fd is not None:
        try:
            for data in (b"newinstance,ptmxmode=0666,mode=0620,gid=5", b"newinstance,ptmxmode=0666,mode=0620"):
                try:
                    _mount(b"devpts", fd, b"devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, data)
                    break
                except OSError:
                    continue  # group 5 has no number in this user namespace; or there is no devpts here
        finally:
            os.close(fd)
    with suppress(OSError):  # no terminal
        _show(root_fd, Bind(os.ttyname(0), "/dev/console"))
