"""Loop devices: files that the kernel has as disks (loop(4)).

A device is taken with LO_FLAGS_AUTOCLEAR: the kernel frees it when nobody has it open any more, be that the last mount
of it or a process that was killed before it could mount. So nothing has to be taken down, and nothing is left behind.

The device keeps the open file that it was given, and with it the locks that belong to that (fcntl(2), F_OFD_SETLK),
until it has let go of the file.

What is known of the devices of others is what /sys/block says: the path of the file, as this process would write it.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

# include/uapi/linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4

_CONFIG = struct.Struct("=II QQQQQ IIII 64s 64s 32s QQ 8Q")
"""struct loop_config: file, block size, struct loop_info64, and what is reserved."""

_INFO = struct.Struct("=QQQQQ IIII 64s 64s 32s QQ")
"""struct loop_info64."""

_CONTROL = "/dev/loop-control"
_BLOCK_DEVICES = "/sys/block"
_TRIES = 16
_PAUSE = 0.002

SECTOR = 512
"""Bytes: where a file begins on a device, and how much of it there is, are multiples of this."""


class Loop(NamedTuple):
    """A device that was taken.

    Attributes:
        name: "loop3".
        fd: of the device; it is freed with the last one.
        about_fd: of what /sys/block says of it.
        turn: which of the uses of the device this is, where the kernel counts them (Linux 5.15).
    """

    name: str
    fd: int
    about_fd: int
    turn: bytes


class Use(NamedTuple):
    """What a device shows.

    Attributes:
        name: "loop3".
        path: of the file.
        offset: where in the file it begins, in bytes.
        size: how much of the file; 0 for all.
        writable: it may be written.
    """

    name: str
    path: str
    offset: int
    size: int
    writable: bool


def take(file_fd: int, offset: int, size: int, *, writable: bool) -> Loop:
    """Have a free device show a file.

    Args:
        file_fd: of the file; O_RDWR where it is to be written.
        offset, size: of the part that is meant, in bytes, multiples of SECTOR; 0 as size for all.
        writable: else nothing can be written through it.

    Returns:
        The device; the caller closes both descriptors.

    Raises:
        OSError: ENOENT, EACCES, EPERM where this process may have none; EINVAL, ENOTTY before Linux 5.8; EBUSY.
    """
    flags = _LO_FLAGS_AUTOCLEAR | (0 if writable else _LO_FLAGS_READ_ONLY)
    config = _CONFIG.pack(
        file_fd, 0, 0, 0, 0, offset, size, 0, 0, 0, flags, b"", b"", b"", 0, 0, *[0] * 8
    )  # fmt: skip
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name = f"loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(f"/dev/{name}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                about_fd = os.open(place(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EBUSY:
                    continue  # somebody else was faster
                raise
            return Loop(name, fd, about_fd, _read("diskseq", about_fd))
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every free loop device was taken by somebody else")


def place(name: str) -> str:
    """Where /sys tells of a device."""
    return f"{_BLOCK_DEVICES}/{name}"


def look_at(name: str) -> Loop | None:
    """A device that another process has taken, to wait for its end; `fd` is -1. None where there is none."""
    try:
        about_fd = os.open(place(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    return Loop(name, -1, about_fd, _read("diskseq", about_fd))


def is_gone(loop: Loop) -> bool:
    """Whether a device has been freed, perhaps to be used by somebody else."""
    return not _read("loop/backing_file", loop.about_fd) or _read("diskseq", loop.about_fd) != loop.turn


def wait_for_end(loop: Loop, seconds: float) -> bool:
    """Wait until a device has been freed; False when it has not in that time."""
    deadline = time.monotonic() + seconds
    while not is_gone(loop):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True


def uses_of(file_fd: int) -> Iterator[Use]:
    """The devices that show a file, as far as its path is seen from here."""
    wanted = os.fstat(file_fd)
    try:
        names = sorted(name for name in os.listdir(_BLOCK_DEVICES) if name.startswith("loop"))
    except OSError:
        return  # no /sys here: then there is nothing to look in
    for name in names:
        use = use_of(name)
        try:
            if use is not None and os.path.samestat(os.stat(use.path), wanted):
                yield use
        except OSError:
            continue  # the path of another mount namespace, or not to be looked at


def use_of(name: str) -> Use | None:
    """What a device shows; None where it is free."""
    loop = look_at(name)
    if loop is None:
        return None
    try:
        path = _read("loop/backing_file", loop.about_fd)
        offset, size, read_only = (
            int(_read(word, loop.about_fd) or 0) for word in ("loop/offset", "loop/sizelimit", "ro")
        )
    finally:
        os.close(loop.about_fd)
    return Use(name, os.fsdecode(path), offset, size, not read_only) if path else None


def is_of(name: str, file_fd: int) -> bool:
    """Whether a device shows this file, by the kernel's word, whatever its path means by now.

    Args:
        name: of the device.
        file_fd: of the file.

    Raises:
        OSError: ENXIO, it shows nothing; EACCES, only root may ask.
    """
    buffer = bytearray(_INFO.size)
    fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, buffer)
    finally:
        os.close(fd)
    device, number, *_ = _INFO.unpack(buffer)
    # include/linux/kdev_t.h, new_encode_dev
    major, minor = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
    st = os.fstat(file_fd)
    return (os.makedev(major, minor), number) == (st.st_dev, st.st_ino)


def _read(name: str, about_fd: int) -> bytes:
    """One attribute of a device; nothing where it has none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=about_fd)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 16).rstrip(b"\n")
    except OSError:
        return b""  # freed between the two calls
    finally:
        os.close(fd)
