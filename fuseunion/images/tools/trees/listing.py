"""What lies in a directory of an image."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator

from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.images.tools.opened import Opened, inside
from fuseunion.linux import syscalls

_WITHIN = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV


def listing(image: Opened, path: str, *, is_long: bool) -> Iterator[str]:
    """A line for each object, by name.

    Args:
        image: opened to be read.
        path: in the image; links in it stay within.
        is_long: with mode, links, owner, size and time, as `ls -ln`.

    Raises:
        UserError: LAYERS: there is no such path.
    """
    with inside(image) as root_fd:
        try:
            fd = syscalls.openat2(root_fd, os.fsencode(path) or b"/", os.O_PATH, _WITHIN)
        except OSError as error:
            raise UserError(f"'{path}' in '{image.path}': {error.strerror}", ExitCode.LAYERS) from None
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                yield from _directory(fd, is_long=is_long)
            else:
                yield _line(fd, b"", os.fsencode(path)) if is_long else one_line(path)
        finally:
            os.close(fd)


def _directory(fd: int, *, is_long: bool) -> Iterator[str]:
    readable = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    try:
        names = sorted(map(os.fsencode, os.listdir(readable)))
    finally:
        os.close(readable)
    for name in names:
        yield _line(fd, name, name) if is_long else one_line(os.fsdecode(name))


def _line(fd: int, name: bytes, shown: bytes) -> str:
    try:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.fstat(fd)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise
        return f"?????????? {one_line(os.fsdecode(shown))}: {error.strerror}"
    is_device = stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode)
    size = f"{os.major(st.st_rdev)}, {os.minor(st.st_rdev)}" if is_device else str(st.st_size)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(st.st_mtime))
    words = f"{stat.filemode(st.st_mode)} {st.st_nlink:>3} {st.st_uid:>6} {st.st_gid:>6} {size:>11} {when}"
    line = f"{words} {one_line(os.fsdecode(shown))}"
    if stat.S_ISLNK(st.st_mode):
        line += f" -> {one_line(os.fsdecode(os.readlink(name, dir_fd=fd)))}"
    return line
