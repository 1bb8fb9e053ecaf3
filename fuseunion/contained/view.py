"""What a command sees besides the union: /dev, /proc, /sys, /tmp, the names of hosts, and what is bound.

Everything is mounted over the union in a mount namespace of its own, before the old root goes. What is missing in the
tree as a place to mount at is made in the merged view, never in the lower, and goes when the command has ended; where
nothing can be made, because the view is read-only, the usual places are left out, and a bind is an error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
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

_NO_PLACE = frozenset(
    (
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EXDEV,
    )
)
"""Nothing can be made there, or something else is there."""

_BIND = syscalls.MS_BIND | syscalls.MS_REC


class View:
    """What lies over one union.

    Args:
        root: where the union is mounted.

    Attributes:
        made: the places that had to be made.
    """

    def __init__(self, root: str) -> None:
        self.made: list[places.Made] = []
        self._root = root
        self._root_fd = -1
        self._own: set[int] = set()
        """st_dev of the union and of /dev: here places may be made."""

    def build(self, wishes: Wishes, settings: Mapping[str, bytes], *, as_root: bool) -> None:
        """Mount everything over the union.

        Precondition: in a mount namespace of its own, which still has the machine's root.

        Args:
            wishes: the binds, and whose processes are seen.
            settings: files in /dev, by name.
            as_root: the command is to be the machine's root.

        Raises:
            UserError: a bind, or one of the usual mounts, that cannot be made.
        """
        namespaces.keep_mounts_private()
        self._root_fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._own.add(os.fstat(self._root_fd).st_dev)
            self._proc(own=wishes.own_pids, as_root=as_root)
            if os.path.isdir("/sys"):
                self._show(Bind("/sys", "/sys", read_only=True))
            self._dev(settings)
            self._new("/tmp", b"mode=1777")
            for path in _NAMES_OF_HOSTS:
                if os.path.exists(path):
                    self._show(Bind(path, path, read_only=True))
            for bind in wishes.binds:
                self._bind(bind)
        except OSError as error:
            where = f"'{os.fsdecode(error.filename)}': " if error.filename is not None else ""
            raise UserError(f"the view cannot be built: {where}{error.strerror}", ExitCode.FAILURE) from None
        finally:
            os.close(self._root_fd)

    def enter(self) -> None:
        """Make the union the root directory; nothing of the old root can be reached any more.

        Raises:
            OSError: of pivot_root(2).
        """
        os.chdir(self._root)
        # The old root comes to lie over the new one, and goes from there (pivot_root(2), "pivot_root(".", ".")").
        syscalls.pivot_root(b".", b".")
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        os.chdir("/")

    def _place(self, path: str, *, directory: bool) -> int | None:
        """Where to mount one of the usual things; None where there is no place and none can be made."""
        try:
            return places.find_or_make(self._root_fd, path, self.made, self._own, directory=directory)
        except OSError as error:
            if error.errno in _NO_PLACE:
                return None
            raise

    def _new(self, path: str, data: bytes) -> None:
        """A new tmpfs, where there is a place for it."""
        self._mount_at(path, b"tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, data)

    def _mount_at(self, path: str, fstype: bytes, flags: int, data: bytes = b"") -> bool:
        """Mount a new filesystem, where there is a place for it."""
        fd = self._place(path, directory=True)
        if fd is None:
            return False
        try:
            syscalls.mount(fstype, places.by_descriptor(fd), fstype, flags, data)
        finally:
            os.close(fd)
        return True

    def _show(self, bind: Bind) -> None:
        """Bind one of the usual things, where there is a place for it."""
        fd = self._place(bind.target, directory=os.path.isdir(bind.source))
        if fd is not None:
            self._bind_at(fd, bind)

    def _bind(self, bind: Bind) -> None:
        target = bind.target or os.path.abspath(bind.source)
        try:
            os.stat(bind.source)
        except OSError as error:
            raise UserError(f"--bind: '{bind.source}' cannot be shown: {error.strerror}", ExitCode.LAYERS) from None
        directory = os.path.isdir(bind.source)
        try:
            fd = places.find_or_make(self._root_fd, target, self.made, self._own, directory=directory)
            self._bind_at(fd, bind._replace(target=target))
        except OSError as error:
            kind = "directory" if directory else "file"
            raise UserError(
                f"--bind: '{bind.source}' cannot be shown at '{target}': {error.strerror}; the tree needs a {kind} "
                "there, or an UPPER in which it can be made",
                ExitCode.LAYERS,
            ) from None

    def _bind_at(self, place: int, bind: Bind) -> None:
        """Bind at a place, which is closed."""
        try:
            source = os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
            try:
                syscalls.mount(places.by_descriptor(source), places.by_descriptor(place), b"", _BIND, b"")
            finally:
                os.close(source)
        finally:
            os.close(place)
        if bind.read_only:
            # The same path again: what was mounted there lies on top now.
            mounted = places.find(self._root_fd, bind.target)
            try:
                syscalls.make_read_only(places.by_descriptor(mounted))
            finally:
                os.close(mounted)

    def _proc(self, *, own: bool, as_root: bool) -> None:
        if not own:
            self._show(Bind("/proc", "/proc"))
        else:
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            try:
                self._mount_at("/proc", b"proc", flags)
            except PermissionError:
                raise UserError(
                    "--pid: no /proc can be mounted here, because a part of the present one is hidden; leave --pid out",
                    ExitCode.UNAVAILABLE,
                ) from None
        if as_root:
            for name in _OF_THE_MACHINE:
                if os.path.exists(f"/proc/{name}"):
                    self._show(Bind(f"/proc/{name}", f"/proc/{name}", read_only=True))

    def _dev(self, settings: Mapping[str, bytes]) -> None:
        if not self._mount_at("/dev", b"tmpfs", syscalls.MS_NOSUID, b"mode=0755"):
            return
        kept, self.made = self.made, []  # what is made from here on goes with the tmpfs
        directory = places.find(self._root_fd, "/dev")
        try:
            self._own.add(os.fstat(directory).st_dev)
            for name, target in _LINKS:
                os.symlink(target, name, dir_fd=directory)
            for name, text in settings.items():
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                with open(os.open(name, flags, 0o644, dir_fd=directory), "wb") as file:
                    file.write(text)
        finally:
            os.close(directory)
        for name in _SAFE_DEVICES:
            if os.path.exists(f"/dev/{name}"):
                self._show(Bind(f"/dev/{name}", f"/dev/{name}"))
        self._new("/dev/shm", b"mode=1777")
        self._terminals()
        self.made = kept

    def _terminals(self) -> None:
        """Pseudo terminals of its own; the terminal that the command is started from is /dev/console."""
        flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
        for data in (b"newinstance,ptmxmode=0666,mode=0620,gid=5", b"newinstance,ptmxmode=0666,mode=0620"):
            try:
                self._mount_at("/dev/pts", b"devpts", flags, data)
                break
            except OSError:
                continue  # group 5 has no number in this user namespace; or there is no devpts here
        with suppress(OSError):  # no terminal
            self._show(Bind(os.ttyname(0), "/dev/console"))
