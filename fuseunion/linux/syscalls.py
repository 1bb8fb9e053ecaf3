"""System calls that Python's os module does not offer.

This is the only module that uses ctypes. Every function raises OSError with the errno of the call and
takes and returns plain integers and bytes, so that a caller cannot tell it from a function of os.

The numbers of the newer calls are the same on every architecture (they came after the tables were unified,
include/uapi/asm-generic/unistd.h); the older ones are reached through their wrappers in the C library.
"""

import ctypes
import errno
import fcntl
import os
import struct
import sys

from fuseunion.linux import f_types

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_POSIXACL = 1 << 16
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2

CAP_SYS_ADMIN = 21

# <linux/capability.h>: _LINUX_CAPABILITY_VERSION_3, this process; then two words each of effective, permitted,
# inheritable, the low word of all three first.
_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0)
_SECCOMP_MODE_FILTER = 2

_IN_MEMORY = frozenset({f_types.TMPFS, f_types.RAMFS})

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

# _IOW(0x94, 9, int), include/uapi/linux/fs.h
_FICLONE = 0x40049409

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, path: bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def renameat2(olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int) -> None:
    """renameat2(2): rename with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT.

    Raises:
        OSError: EINVAL where the filesystem does not know the flag.
    """
    _check(_libc.renameat2(olddirfd, old, newdirfd, new, ctypes.c_uint(flags)), new)


def openat2(dirfd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open with limits on how the path may be resolved; the descriptor is close-on-exec.

    Raises:
        OSError: EXDEV where the path leaves the mount and RESOLVE_NO_XDEV is given, ELOOP at a symbolic
            link with RESOLVE_NO_SYMLINKS, ENOSYS before Linux 5.6.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _check(_libc.syscall(_SYS_OPENAT2, dirfd, path, how, ctypes.c_size_t(len(how))), path)


def ficlone(target_fd: int, source_fd: int) -> None:
    """FICLONE: make the target share the source's blocks (ioctl_ficlonerange(2)).

    Raises:
        OSError: EOPNOTSUPP, EXDEV, EINVAL or ENOTTY where the filesystems cannot.
    """
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def syncfs(fd: int) -> None:
    """syncfs(2): write the filesystem of the descriptor to disk."""
    _check(_libc.syncfs(fd))


def filesystem_type(fd: int) -> int:
    """fstatfs(2): the f_type of the filesystem of a descriptor, one of f_types; UNKNOWN where it does not say, as
    FUSE filesystems that do not know how much space there is."""
    buffer = ctypes.create_string_buffer(256)
    try:
        _check(_libc.fstatfs(fd, buffer))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return f_types.UNKNOWN
    # A long on most architectures, where the value may be negative; 32 bits are what all the numbers have.
    return int(struct.unpack_from("=I" if sys.byteorder == "little" else "@l", buffer)[0]) & 0xFFFFFFFF


def is_in_memory(fd: int) -> bool:
    """Whether a file lies on a filesystem that has no disk, where nothing waits for one (statfs(2), f_type).

    Raises:
        OSError: as fstatfs(2).
    """
    return filesystem_type(fd) in _IN_MEMORY


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2).

    Args:
        mode: FALLOC_FL_KEEP_SIZE and so on; 0 allocates and makes the file longer.
        offset, length: in bytes.
    Raises:
        OSError: EOPNOTSUPP where the filesystem does not know the mode; ENOSPC, EINVAL, EFBIG.
    """
    _check(_libc.fallocate64(fd, ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)))


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    _check(_libc.mount(source, target, fstype, ctypes.c_ulong(flags), data), target)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target, flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2): enter the namespace of a descriptor of /proc/PID/ns.

    Raises:
        OSError: EPERM; EINVAL for a mount namespace where other threads share this one's root and directory.
    """
    _check(_libc.setns(fd, flags))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """pivot_root(2)."""
    _check(_libc.pivot_root(new_root, put_old), new_root)


def make_read_only(path: bytes) -> None:
    """mount_setattr(2): make a mount and everything that is mounted beneath it read-only, here and nowhere else.

    Raises:
        OSError: ENOSYS before Linux 5.12; EINVAL where nothing is mounted at the path.
    """
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            AT_FDCWD,
            path,
            ctypes.c_uint(_AT_RECURSIVE),
            attributes,
            ctypes.c_size_t(len(attributes)),
        ),
        path,
    )


def _prctl(option: int, argument: int | ctypes.c_void_p = 0, second: ctypes.c_void_p | int = 0) -> None:
    values = [value if isinstance(value, ctypes.c_void_p) else ctypes.c_ulong(value) for value in (argument, second)]
    _check(_libc.prctl(option, *values, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def end_with_parent(number: int) -> None:
    """PR_SET_PDEATHSIG (prctl(2)): get this signal when the parent ends. A change of credentials takes it back."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """PR_SET_CHILD_SUBREAPER (prctl(2)): descendants whose parent ends become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """PR_SET_DUMPABLE off (prctl(2)): who is not privileged where this program was started may not trace it, nor look
    at its descriptors and its root."""
    _prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """The opposite of `hide_memory`: /proc/PID belongs to the user of the process again."""
    _prctl(_PR_SET_DUMPABLE, 1)


def drop_from_bounding_set(capability: int) -> None:
    """PR_CAPBSET_DROP (capabilities(7)).

    Raises:
        OSError: EINVAL for a capability that this kernel does not know.
    """
    _prctl(_PR_CAPBSET_DROP, capability)


def keep_over_exec(capability: int) -> None:
    """Give a capability to programs that are started from here, also where this process is not root (capabilities(7)).

    Args:
        capability: below 32.

    Raises:
        OSError: EPERM where this process does not have it.
    """
    header, data = ctypes.create_string_buffer(_CAPABILITIES), ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data))
    words = list(struct.unpack("=6I", data.raw))
    words[2] |= 1 << capability
    _check(_libc.capset(header, struct.pack("=6I", *words)))
    unused = ctypes.c_ulong(0)
    _check(
        _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE), ctypes.c_ulong(capability), unused, unused)
    )


def forbid_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS (prctl(2)): set-ID bits and file capabilities give nothing any more."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def filter_system_calls(program: bytes) -> None:
    """PR_SET_SECCOMP (seccomp(2)): run a filter before each system call, of programs started from here too.

    Args:
        program: struct sock_filter, one after another.
    Raises:
        OSError: EACCES without privileges in the user namespace and without PR_SET_NO_NEW_PRIVS; EINVAL.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: an unsigned short, then a pointer at its natural place.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    kept = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(kept)))


def fsopen(fstype: bytes, flags: int = 1) -> int:
    """fsopen(2): begin a new filesystem; flag 1 is FSOPEN_CLOEXEC."""
    return _check(_libc.syscall(_SYS_FSOPEN, fstype, ctypes.c_uint(flags)))


def fsconfig_set_string(fd: int, key: bytes, value: bytes) -> None:
    """fsconfig(2) FSCONFIG_SET_STRING."""
    _check(_libc.syscall(_SYS_FSCONFIG, fd, _FSCONFIG_SET_STRING, key, value, 0))


def fsconfig_set_flag(fd: int, key: bytes) -> None:
    """fsconfig(2) FSCONFIG_SET_FLAG."""
    _check(_libc.syscall(_SYS_FSCONFIG, fd, _FSCONFIG_SET_FLAG, key, None, 0))


def fsconfig_create(fd: int) -> None:
    """fsconfig(2) FSCONFIG_CMD_CREATE."""
    _check(_libc.syscall(_SYS_FSCONFIG, fd, _FSCONFIG_CMD_CREATE, None, None, 0))


def fsmount(fd: int, attributes: int = 0, flags: int = 1) -> int:
    """fsmount(2): a descriptor of a detached mount, gone with its last descriptor; flag 1 is FSMOUNT_CLOEXEC."""
    return _check(_libc.syscall(_SYS_FSMOUNT, fd, ctypes.c_uint(flags), ctypes.c_uint(attributes)))


def open_tree(path: bytes) -> int:
    """open_tree(2) OPEN_TREE_CLONE: a descriptor of a copy of a mount, which is detached as that of `fsmount`."""
    return _check(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, path, ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)), path)


def move_mount(fd: int, target: bytes) -> None:
    """move_mount(2): put a detached mount where it can be seen."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, target, flags), target)


_AT_STATX_DONT_SYNC = 0x4000
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000


def mount_id(path: bytes, dirfd: int = AT_FDCWD) -> int:
    """statx(2): which mount a path lies on, without asking the filesystem for anything.

    The number is never used again while the machine runs (STATX_MNT_ID_UNIQUE, Linux 6.8); before that it is the one
    of /proc/self/mountinfo (Linux 5.8).

    Raises:
        OSError: ENOSYS where the kernel reports neither.
    """
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_STATX_DONT_SYNC | _AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
    for mask in (_STATX_MNT_ID_UNIQUE, _STATX_MNT_ID):
        _check(_libc.statx(dirfd, path, flags, mask, buffer), path)
        (seen,) = struct.unpack_from("=I", buffer, 0)
        if seen & mask:
            return int(struct.unpack_from("=Q", buffer, 144)[0])
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)


def device(fd: int, path: bytes = b"") -> int:
    """statx(2): st_dev of an open object, or of what a path leads to, without asking its filesystem for anything.

    stat(2) waits for it where it is another machine's, or a program's, when a time has to be asked for anew.
    """
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(fd, path, _AT_STATX_DONT_SYNC | AT_EMPTY_PATH, 0, buffer), path)
    return os.makedev(*struct.unpack_from("=II", buffer, 136))


_MAX_HANDLE_SZ = 128


def name_to_handle_at(dirfd: int, path: bytes, flags: int) -> tuple[int, bytes]:
    """name_to_handle_at(2): the type and the bytes of the handle, which outlives renames and never names two objects.

    Does not follow a link at the end unless flags say so.

    Raises:
        OSError: EOPNOTSUPP where the filesystem has no handles.
    """
    handle = ctypes.create_string_buffer(struct.pack("=Ii", _MAX_HANDLE_SZ, 0), 8 + _MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    _check(_libc.name_to_handle_at(dirfd, path, handle, ctypes.byref(mount_id), flags), path)
    size, kind = struct.unpack_from("=Ii", handle)
    return kind, handle.raw[8 : 8 + size]


_STATX_BTIME = 0x800


def birth_time_ns(dirfd: int, path: bytes, flags: int) -> int | None:
    """statx(2): when an object was made, in nanoseconds, or None where the filesystem does not know.

    Never follows a link at the end.
    """
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(dirfd, path, flags | _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer), path)
    (mask,) = struct.unpack_from("=I", buffer)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
