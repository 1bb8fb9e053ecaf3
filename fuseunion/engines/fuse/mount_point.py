"""Making and taking away the kernel's side of a FUSE mount, without libfuse.

Two ways lead to a mounted /dev/fuse descriptor, tried in this order:

* mount(2) by ourselves: as root, and as root of a user namespace. Only this way can pass MS_POSIXACL, after which
  the kernel leaves the umask to the daemon (fs/fuse/inode.c: dont_mask), which default ACLs need.
* fusermount3, set-user-id root, as an ordinary user: it mounts and sends the descriptor over the socket that
  _FUSE_COMMFD names (libfuse lib/mount.c, receive_fd).

A third kind of target, `/dev/fd/N`, is a descriptor that somebody else (Apptainer) has mounted already.

pyfuse3 is given `/dev/fd/N` in each case. libfuse then mounts nothing and, above all, unmounts nothing: its own
unmount goes by path, and after "umount M; fuseunion L U M" it would take away the new mount in place of the old.
Who may do what is checked by the kernel (default_permissions). The one exception is `MountFlags.own_root`: an ordinary
user whose tree has stored owners must be able to give files away and to write to files of others, as root of it. The
kernel would refuse that before we are asked (fs/attr.c setattr_prepare), so it is told not to check. It still lets
nobody in but processes with exactly the user's ids (fs/fuse/dir.c fuse_allow_current_process), for whom the daemon
can do nothing that they could not do themselves.

`MountPoint.unmount` acts only while the mount at the path is the one that was made here.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.linux.namespaces.apart import Namespace
from fuseunion.mounting.options.grammar import escape

DEVICE = "/dev/fuse"
_NUMBERS = (10, 229)
"""Major and minor (Documentation/admin-guide/devices.txt)."""

MTAB = "/etc/mtab"
"""Without it fusermount3 mounts for an ordinary user, and does not unmount (libfuse util/fusermount.c)."""

TYPE = "fuse.fuseunion"

_MOST_OF_A_SOURCE = 4000
_MUCH_OF_A_SOURCE = 400
"""Bytes of one lower, and of several."""

_FD_TARGET = re.compile(r"/dev/fd/([0-9]+)", re.ASCII)


class MountFlags(NamedTuple):
    """How the kernel is to mount; None is decided by whether the effective user is root, as in fuse-overlayfs."""

    read_only: bool = False
    allow_other: bool | None = None
    suid: bool | None = None
    dev: bool | None = None
    exec: bool = True
    posix_acl: bool = False
    """Ask for modes without the umask applied; only mount(2) can."""
    own_root: bool = False
    """An ordinary user who mounts through fusermount3, for nobody else, is root in the mount."""
    source: str = "fuseunion"
    """What /proc/mounts shows in the place of a device."""


class MountPoint(NamedTuple):
    """A live FUSE mount and the descriptor that serves it.

    Attributes:
        fd: the /dev/fuse descriptor.
        path: absolute path of the mount point; None for a descriptor that somebody else mounted.
        mount_id: which mount is ours, as long as anything is at the path.
        posix_acl: MS_POSIXACL is in force.
        own_root: the kernel checks no permissions, and nobody but the mounting user gets in.
        namespace: the mount namespace that it was made in; None where somebody else mounted.
    """

    fd: int
    path: str | None
    mount_id: int | None
    posix_acl: bool
    own_root: bool = False
    namespace: Namespace | None = None

    def is_ours(self) -> bool:
        """Whether the mount that the path shows is still this one."""
        if self.path is None or self.mount_id is None:
            return False
        try:
            return syscalls.mount_id(os.fsencode(self.path)) == self.mount_id
        except OSError:
            return False  # the path has gone, or lies under something that does not answer

    def unmount(self) -> None:
        """Unmount, lazily when busy; nothing if the mount is no longer ours."""
        if self.namespace is None or not self.namespace.left:
            self._unmount()
            return
        # Where nobody is left there is no mount either.
        with contextlib.suppress(FileNotFoundError):
            self.namespace.enter_and(self._unmount)

    def _unmount(self) -> None:
        if self.path is None or not self.is_ours():
            return
        try:
            unmount(self.path)
        except OSError as error:
            if error.errno == errno.EBUSY and self.is_ours():
                unmount(self.path, lazy=True)


def source_of(lowers: Sequence[str]) -> str:
    """The lowers, topmost first and written as LOWER is, for what /proc/mounts shows in the place of a device.

    As many as fit: mount(2) takes no more than a page, and df(1) shows it in a column.
    """
    named, *others = map(escape, lowers)
    if len(os.fsencode(named)) > _MOST_OF_A_SOURCE:
        return TYPE.removeprefix("fuse.")
    for other in others:
        if len(os.fsencode(f"{named}:{other}")) > _MUCH_OF_A_SOURCE:
            return f"{named}:..."
        named = f"{named}:{other}"
    return named


def descriptor_of(target: str) -> int | None:
    """N where the target is written /dev/fd/N and the descriptor is a mounted /dev/fuse, None for a directory.

    Raises:
        UserError: LAYERS, the descriptor is not open or is something else.
    """
    named = _FD_TARGET.fullmatch(target)
    if not named:
        return None
    fd = int(named[1])
    try:
        st = os.fstat(fd)
    except (OSError, OverflowError):
        raise UserError(f"{target}: no such open descriptor", ExitCode.LAYERS) from None
    if not _is_device(st):
        raise UserError(f"{target} is not a /dev/fuse descriptor", ExitCode.LAYERS)
    return fd


def make(target: str, flags: MountFlags) -> MountPoint:
    """Mount at a directory, or take over the descriptor that /dev/fd/N names.

    Args:
        target: absolute path of an existing directory, or /dev/fd/N.
    Raises:
        UserError: UNAVAILABLE without FUSE, FAILURE where the kernel or fusermount3 refuses.
    """
    fd = descriptor_of(target)
    if fd is not None:
        return MountPoint(fd, None, None, False)
    try:
        fd = _mount_directly(target, flags)
        posix_acl, own_root = flags.posix_acl, False
    except PermissionError:
        own_root = flags.own_root and not flags.allow_other
        fd = _mount_through_helper(target, flags, own_root=own_root)
        posix_acl = False
    try:
        mount_id = syscalls.mount_id(os.fsencode(target))
    except OSError:
        mount_id = None  # a kernel before 5.8: this mount is left for others to unmount
    return MountPoint(fd, target, mount_id, posix_acl, own_root, Namespace())


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount by umount2(2), else through fusermount3.

    Args:
        lazy: take the mount out of the tree now, even while it is used.
    Raises:
        OSError: EBUSY while in use, EPERM for somebody else's mount.
    """
    try:
        syscalls.umount2(os.fsencode(path), syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
    except PermissionError:
        import subprocess  # only users who are not root need it

        command = [_helper(), "-u", *(["-z"] if lazy else []), "--", path]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            busy = "busy" in done.stderr
            code = errno.EBUSY if busy else errno.EPERM
            raise OSError(code, _one_line(done.stderr) or os.strerror(code), path) from None


def open_device() -> int:
    """A new descriptor of /dev/fuse, with no mount yet.

    Raises:
        UserError: UNAVAILABLE, with the remedy.
    """
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedies = {
            errno.ENOENT: "load it with: modprobe fuse (in a container, pass --device /dev/fuse)",
            errno.ENODEV: "load it with: modprobe fuse",
            errno.EACCES: "let users open it: chmod 666 /dev/fuse",
            errno.EPERM: "the container forbids it; pass --device /dev/fuse",
        }
        remedy = remedies.get(error.errno or 0, "FUSE cannot be used here")
        raise UserError(f"cannot open {DEVICE}: {error.strerror}; {remedy}", ExitCode.UNAVAILABLE) from None
    if not _is_device(os.fstat(fd)):
        os.close(fd)
        raise UserError(
            f"{DEVICE} is not the device of FUSE; make it again: rm {DEVICE} && mknod -m 666 {DEVICE} c 10 229",
            ExitCode.UNAVAILABLE,
        )
    return fd


def _is_device(st: os.stat_result) -> bool:
    return stat.S_ISCHR(st.st_mode) and (os.major(st.st_rdev), os.minor(st.st_rdev)) == _NUMBERS


def _mount_directly(target: str, flags: MountFlags) -> int:
    """mount(2). Raises PermissionError where only fusermount3 can mount."""
    as_root = os.geteuid() == 0
    bits = (
        (syscalls.MS_RDONLY if flags.read_only else 0)
        | (0 if _default(flags.suid, as_root) else syscalls.MS_NOSUID)
        | (0 if flags.dev else syscalls.MS_NODEV)
        | (0 if flags.exec else syscalls.MS_NOEXEC)
        | syscalls.MS_NOATIME  # a read would make the kernel forget the attributes (fs/fuse/dir.c)
        | (syscalls.MS_POSIXACL if flags.posix_acl else 0)
    )
    fd = open_device()
    try:
        data = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
        if _default(flags.allow_other, as_root):
            data += ",allow_other"
        syscalls.mount(os.fsencode(flags.source), os.fsencode(target), TYPE.encode(), bits, data.encode())
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EPERM, errno.EACCES):
            raise
        if error.errno == errno.ENODEV:
            raise UserError("this kernel has no FUSE; load it with: modprobe fuse", ExitCode.UNAVAILABLE) from None
        raise UserError(f"cannot mount at '{target}': {error.strerror}", ExitCode.FAILURE) from None
    return fd


def _mount_through_helper(target: str, flags: MountFlags, *, own_root: bool) -> int:
    if not os.access(MTAB, os.R_OK):
        # Nobody but root could take the mount away again.
        raise UserError(
            f"fusermount3 cannot unmount without {MTAB}; make it with: ln -s /proc/self/mounts {MTAB}",
            ExitCode.UNAVAILABLE,
        )
    # fusermount3 takes a backslash before any character (libfuse util/fusermount.c get_string_opt).
    source = flags.source.replace("\\", "\\\\").replace(",", "\\,")
    options = [f"fsname={source}", f"subtype={TYPE.removeprefix('fuse.')}"]
    if not own_root:
        options.append("default_permissions")
    options.append("ro" if flags.read_only else "rw")
    # fusermount3 forces nosuid and nodev on an ordinary user; to ask for the opposite is an error there.
    options += ["nosuid", "nodev", "noatime"]
    if not flags.exec:
        options.append("noexec")
    if flags.allow_other:
        options.append("allow_other")
    import socket
    import subprocess

    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [_helper(), "-o", ",".join(options), "--", target],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        theirs.close()
        fds: list[int] = []
        if done.returncode == 0:
            with contextlib.suppress(OSError):
                fds = socket.recv_fds(ours, 1, 1)[1]
    if not fds:
        raise _refused(target, _one_line(done.stderr))
    os.set_inheritable(fds[0], False)
    return fds[0]


def _refused(target: str, said: str) -> UserError:
    if "user_allow_other" in said:
        return UserError(f"{said}; add that line to /etc/fuse.conf, or leave allow_other out", ExitCode.FAILURE)
    if "No such device" in said or "not found" in said:
        return UserError(f"{said}; FUSE cannot be used here (load it with: modprobe fuse)", ExitCode.UNAVAILABLE)
    if "mount failed: Operation not permitted" in said:
        # Its set-user-id bit had no effect: no_new_privs, a nosuid mount, a user namespace without the host's root.
        return UserError(f"{said}; fusermount3 has no privilege to mount here", ExitCode.UNAVAILABLE)
    return UserError(f"cannot mount at '{target}': {said or 'fusermount3 sent no descriptor'}", ExitCode.FAILURE)


def _helper() -> str:
    import shutil

    for name in ("fusermount3", "fusermount"):
        found = shutil.which(name)
        if found:
            return found
    raise UserError(
        "an ordinary user mounts through fusermount3, which is not installed; install the package fuse3",
        ExitCode.UNAVAILABLE,
    )


def _default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
