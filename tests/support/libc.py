"""The few system calls that Python 3.11 does not offer, for the tests only.

The product has its own wrappers in `fuseunion.syscalls`; the tests do not use them, so that a mistake there cannot
hide itself. Every function raises OSError with the errno of the call.
"""

from __future__ import annotations

import ctypes
import enum
import os

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MNT_DETACH = 2
MS_REMOUNT = 32
MS_BIND = 4096
MS_NOSUID = 2
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


class RenameFlag(enum.IntFlag):
    """Flags of renameat2(2)."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename(old: bytes, new: bytes, flags: RenameFlag = RenameFlag.NONE) -> None:
    """renameat2(2) with paths relative to the working directory."""
    _check(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, int(flags)))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags))


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode(),
            ctypes.c_ulong(flags),
            os.fsencode(data),
        )
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags))


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _check(_libc.syncfs(fd))


def become_dumpable() -> None:
    """Let this process read its own /proc entries again after it changed its user id (prctl(2))."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))


def forbid_new_privileges() -> None:
    """No program that is started from here gains anything from set-user-id bits (prctl(2))."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ERRNO = 0x00050000
_SECCOMP_RET_ALLOW = 0x7FFF0000
# BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K (include/uapi/linux/bpf_common.h)
_LOAD, _IS, _RETURN = 0x20, 0x15, 0x06


class _Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter)))


def answer_system_call(number: int, error: int) -> None:
    """This process, and what it starts, gets an errno from a system call, as from an old kernel or in a container."""
    forbid_new_privileges()
    filters = (_Filter * 4)(
        _Filter(_LOAD, 0, 0, 0),  # struct seccomp_data begins with the number
        _Filter(_IS, 0, 1, number),
        _Filter(_RETURN, 0, 0, _SECCOMP_RET_ERRNO | error),
        _Filter(_RETURN, 0, 0, _SECCOMP_RET_ALLOW),
    )
    program = _Program(len(filters), filters)
    _check(_libc.prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


_CAPABILITY_VERSION_3 = 0x20080522


def drop_capabilities() -> None:
    """Give up every capability (capset(2))."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()))
