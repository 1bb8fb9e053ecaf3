"""An ext image of another size.

resize2fs moves what is in the image, and one that is cut off halfway is none any more. So it works on a copy, which
takes the name of the image when it is whole, checked and on disk: until then the image is what it was, whatever
happens. Where the filesystem can share blocks the copy costs nothing; else it needs as much space as the image holds.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.sif import writer
from fuseunion.images.tools import cloning, programs
from fuseunion.images.tools.ext import checking, facts
from fuseunion.images.tools.ext.creating import SMALLEST
from fuseunion.images.tools.new_file import NewFile, beside
from fuseunion.images.tools.opened import Opened
from fuseunion.images.tools.sizes import shown

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def resize(image: Opened, size: int, report: Callable[[int], None] = lambda done: None) -> int:
    """Give an image another size.

    Args:
        image: opened to be written.
        size: of the filesystem, in bytes; the rest of a block is left out.
        report: told how many bytes were copied.

    Returns:
        The size that it has now, in bytes.
    Raises:
        UserError: LAYERS: too small for what is in it, or not the last in its SIF; FAILURE of e2fsprogs, or no space
            for the copy.
        OSError: EACCES, EIO.
    """
    before = facts.read(image.fd, image.path, image.offset)
    size -= size % max(before.block, 4096)
    if size < SMALLEST:
        raise UserError(f"{shown(size)} is too small; an image has {shown(SMALLEST)} or more")
    if size == image.size == before.size:
        return size
    path = os.path.realpath(image.path)
    st = os.fstat(image.fd)
    if not os.path.samestat(st, os.stat(path)):
        raise UserError(f"'{image.path}' was replaced by something else meanwhile; try again", ExitCode.BUSY)
    if st.st_nlink > 1:
        raise UserError(
            f"'{image.path}' has {st.st_nlink} hard links, and would be replaced under one of them only; copy it first:"
            f" fuseunion image clone {image.path} NEW",
            ExitCode.LAYERS,
        )
    if image.partition is not None:
        _require_last(image)
    try:
        with beside(path, replaces=True) as new:
            if not cloning.share(image.fd, new.fd):
                cloning.copy(image.fd, new.fd, report=report)
            if image.partition is None:
                _resize(new.fd, image.path, size)
            else:
                _resize_partition(new.fd, image, size)
            _dress(new, image, st, dense=st.st_blocks * 512 >= st.st_size)
            new.replace()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"cannot resize '{image.path}': {error.strerror}; resize works on a copy beside it, which needs"
            f" {shown(st.st_blocks * 512)} and what it grows by; nothing was changed",
            ExitCode.FAILURE,
        ) from None
    return size


def _require_last(image: Opened) -> None:
    assert image.sif is not None and image.partition is not None
    writer.refuse(image.sif, image.path)
    # One without data too: it would lie beyond the end of a smaller file, which then is damaged.
    behind = [each for each in image.sif.descriptors if each.offset > image.partition.offset]
    if behind:
        raise UserError(
            f"the overlay of '{image.path}' cannot change its size: partition {behind[0].number} lies behind it",
            ExitCode.LAYERS,
        )


def _resize_partition(fd: int, image: Opened, size: int) -> None:
    """Resize the last filesystem in the copy of a SIF.

    In a file of its own: resize2fs cuts the file at the size of the filesystem, without its offset.
    """
    assert image.sif is not None and image.partition is not None
    with beside(os.path.realpath(image.path), replaces=True) as part:
        cloning.copy(fd, part.fd, begin=image.offset, size=image.size)
        _resize(part.fd, image.path, size)
        os.ftruncate(fd, image.offset)
        cloning.copy(part.fd, fd, at=image.offset)
    writer.resize_last(fd, image.sif, image.partition, size)


def _resize(fd: int, path: str, size: int) -> None:
    """Resize the filesystem that a file is."""
    checking.require_clean(fd, path)
    least = _least(fd, path)
    if size < least:
        raise UserError(
            f"'{path}' cannot be made smaller than {-(-least // (1 << 20))}M: that is what its files and tables need;"
            " remove some of them first",
            ExitCode.LAYERS,
        )
    if size > os.fstat(fd).st_size:
        os.ftruncate(fd, size)
    programs.run(f"resize '{path}'", ["resize2fs", "-f", programs.by_descriptor(fd), f"{size // 1024}K"], fds=(fd,))
    os.ftruncate(fd, size)
    if checking.check_file(fd, path, 0, checking.Care.NOTHING).outcome is not checking.Outcome.CLEAN:
        raise UserError(
            f"cannot resize '{path}': e2fsck finds errors in the result; nothing was changed", ExitCode.FAILURE
        )


def _least(fd: int, path: str) -> int:
    """Bytes that the filesystem needs for what is in it (resize2fs(8), -P)."""
    block = facts.read(fd, path).block
    _, printed = programs.run(f"measure '{path}'", ["resize2fs", "-f", "-P", programs.by_descriptor(fd)], fds=(fd,))
    number = printed.rpartition(":")[2].strip()
    if not number.isdigit():
        raise UserError(f"cannot measure '{path}': resize2fs says: {printed.strip()}", ExitCode.FAILURE)
    return int(number) * block


def _dress(new: NewFile, image: Opened, st: os.stat_result, *, dense: bool) -> None:
    """What a copy has to have of the file whose place it takes.

    Raises:
        UserError: LAYERS: it would belong to somebody else.
    """
    made = os.fstat(new.fd)
    if (made.st_uid, made.st_gid) != (st.st_uid, st.st_gid):
        try:
            os.fchown(new.fd, st.st_uid, st.st_gid)
        except PermissionError:
            raise UserError(
                f"'{image.path}' belongs to {st.st_uid}:{st.st_gid}, and what replaces it would not; its owner can "
                "resize it",
                ExitCode.LAYERS,
            ) from None
    os.fchmod(new.fd, st.st_mode & 0o7777)
    for name in os.listxattr(image.fd):
        try:
            os.setxattr(new.fd, name, os.getxattr(image.fd, name))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENODATA):
                raise
            # The system's own, such as a label that the new file has by itself.
    if dense:
        os.posix_fallocate(new.fd, 0, os.fstat(new.fd).st_size)
