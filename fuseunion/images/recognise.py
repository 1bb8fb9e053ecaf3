"""What kind of image a file is, told by its content and never by its name.

An image may be anybody's: it is opened once, it has to be a regular file, a bounded number of bytes is read, and what
stands in them is only compared. The path is the user's, so its links are followed; what it leads to is opened only when
it is known to be a regular file, since opening a device or a FIFO has effects and may wait.

    offset  bytes                       kind
    0       "hsqs"                      squashfs, version 4 (fs/squashfs/squashfs_fs.h, SQUASHFS_MAGIC)
    1080    0x53 0xEF                   ext2, ext3, ext4 (fs/ext4/ext4.h, s_magic at 56 of the superblock at 1024)
    32      "SIF_MAGIC" 0               SIF (github.com/apptainer/sif, pkg/sif/sif.go)
    257     "ustar"                     tar (POSIX.1, pax, ustar interchange format); the older form of GNU too
    0       of gzip, bzip2, xz, zstd    a compressed tar: whether there is one in it shows when it is read
"""

import errno
import os
import stat
import struct
from enum import Enum

from fuseunion.errors import ExitCode, UserError

HEAD = 2048
"""Bytes at the beginning that tell the kind: up to the end of an ext superblock."""

_SUPERBLOCK = 1024
_EXT_MAGIC_AT = _SUPERBLOCK + 56
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_OPEN = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Kind(Enum):
    """What an image is; the value is how messages name it."""

    SQUASHFS = "squashfs image"
    EXT = "ext image"
    SIF = "SIF image"
    TAR = "tar archive"


def open_file(path: str, *, writable: bool = False) -> int:
    """A descriptor of a regular file, opened without an effect on anything else and without waiting.

    Args:
        path: as the user wrote it; links in it are followed.
        writable: O_RDWR instead of O_RDONLY.

    Raises:
        OSError: ENOTDIR for what is neither a regular file nor a directory, as for a path that leads on from there;
            EISDIR; EAGAIN while somebody has a lease on it; as open(2).
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(found).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return open_again(found, writable=writable)
    finally:
        os.close(found)


def open_again(fd: int, *, writable: bool) -> int:
    """Another open file of a regular file: what is held cannot be exchanged for something else.

    Args:
        fd: of it, perhaps O_PATH.
        writable: O_RDWR instead of O_RDONLY.

    Raises:
        OSError: as open(2).
    """
    return os.open(f"/proc/self/fd/{fd}", _OPEN | (os.O_RDWR if writable else os.O_RDONLY))


def kind_of(fd: int, offset: int = 0) -> Kind | None:
    """What kind of image begins at a place in a file; None for none that is known.

    Args:
        fd: of the file, readable.
        offset: bytes; beyond the end there is no image.

    Raises:
        OSError: EIO and the like of the file.
    """
    return kind_of_head(read_head(fd, offset))


def read_head(fd: int, offset: int = 0, size: int = HEAD) -> bytes:
    """The first bytes of an image; fewer where the file ends, none beyond the largest offset that a file can have."""
    return os.pread(fd, size, offset) if 0 <= offset < 1 << 63 else b""


def kind_of_head(head: bytes) -> Kind | None:
    """The same as `kind_of`, of bytes that were read."""
    if head.startswith(b"hsqs"):
        return Kind.SQUASHFS
    if head[32:42] == b"SIF_MAGIC\0":
        return Kind.SIF
    # Before ext: the first file of an archive may be an image.
    if head[257:262] == b"ustar" or head.startswith(_COMPRESSED):
        return Kind.TAR
    if head[_EXT_MAGIC_AT : _EXT_MAGIC_AT + 2] == b"\x53\xef":
        return Kind.EXT
    return None


def check_whole(path: str, kind: Kind, fd: int, offset: int = 0, size: int | None = None) -> None:
    """Refuse a filesystem that says that it is longer than the room it has: one that was cut short, or was forged.

    Args:
        path: for the message.
        kind: of the image.
        fd: of the file.
        offset: where in it the filesystem begins, in bytes.
        size: bytes that it may have; None for all up to the end of the file.

    Raises:
        UserError: LAYERS.
        OSError: EIO and the like of the file.
    """
    said = size_of(path, kind, fd, offset)
    there = os.fstat(fd).st_size - offset if size is None else size
    if said > there:
        raise UserError(
            f"{kind.value} '{path}' is cut short: it should have {said} bytes, and {max(there, 0)} are there; copy it "
            "again",
            ExitCode.LAYERS,
        )


def size_of(path: str, kind: Kind, fd: int, offset: int = 0) -> int:
    """How long a filesystem says that it is, in bytes; 0 for what does not say.

    Args:
        path: for the message.
        kind: of the image.
        fd: of the file.
        offset: where in it the filesystem begins, in bytes.

    Raises:
        UserError: LAYERS: its beginning makes no sense.
        OSError: EIO and the like of the file.
    """
    head = read_head(fd, offset)
    return _squashfs_size(path, head) if kind is Kind.SQUASHFS else _ext_size(path, head) if kind is Kind.EXT else 0


def _squashfs_size(path: str, head: bytes) -> int:
    """bytes_used of the superblock (fs/squashfs/squashfs_fs.h, struct squashfs_super_block)."""
    if len(head) < 96:
        raise _damaged(path, Kind.SQUASHFS)
    major, _, _, size = struct.unpack_from("<HHQQ", head, 28)
    if major != 4:
        raise UserError(
            f"squashfs image '{path}' is of version {major}, and only version 4 can be read; make it anew with "
            "mksquashfs",
            ExitCode.LAYERS,
        )
    return int(size)


def _ext_size(path: str, head: bytes) -> int:
    """Blocks times their size (fs/ext4/ext4.h, struct ext4_super_block)."""
    if len(head) < HEAD:
        raise _damaged(path, Kind.EXT)
    blocks, log_size, incompatible, more_blocks = (_number(head, at) for at in (4, 24, 96, 336))
    if incompatible & 0x80:  # EXT4_FEATURE_INCOMPAT_64BIT
        blocks |= more_blocks << 32
    if log_size > 6 or not blocks:  # EXT4_MAX_BLOCK_LOG_SIZE is 16, of which 1024 << 6 is 64 KiB
        raise _damaged(path, Kind.EXT)
    return blocks * (1024 << log_size)


def _number(head: bytes, offset: int) -> int:
    """A field of the ext superblock."""
    return int.from_bytes(head[_SUPERBLOCK + offset : _SUPERBLOCK + offset + 4], "little")


def _damaged(path: str, kind: Kind) -> UserError:
    return UserError(f"{kind.value} '{path}' is damaged: its beginning makes no sense", ExitCode.LAYERS)
