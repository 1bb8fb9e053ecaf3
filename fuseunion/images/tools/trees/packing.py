"""An upper directory into an ext image, and out of one.

The image holds what a mount of the upper needs: `upper/`, and in `work/` the hard-link index, which is part of what the
upper means. It is filled through a mount of the new image, by the program that will mount it later, so that all that
this user may set there is set.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from fuseunion.core.ownership.facts import DATABASE_FILE
from fuseunion.errors import ExitCode, UserError
from fuseunion.images.layers import trust
from fuseunion.images.recognise import Kind
from fuseunion.images.tools.ext import creating
from fuseunion.images.tools.new_file import beside, exists
from fuseunion.images.tools.opened import Opened, inside
from fuseunion.images.tools.sizes import shown
from fuseunion.images.tools.trees.transplant import Lost, Transplant
from fuseunion.linux import syscalls
from fuseunion.offline.upkeep.holding import HeldUpper
from fuseunion.offline.walk import walk

_BLOCK = 4096
_INDEX = b"links"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def measure(upper: HeldUpper) -> tuple[int, int]:
    """How many objects an upper has, and how many bytes an image for it should have, with some room to go on."""
    objects = room = 0
    for found in walk(upper.root_fd):
        objects += 1
        room += -(-found.st.st_size // _BLOCK) * _BLOCK if stat.S_ISREG(found.st.st_mode) else _BLOCK
    # Block maps are a 512th of the data; each object has an inode of 256 bytes; the journal is a 64th at most.
    size = room + room // 20 + _inodes(objects) * 256 + (64 << 20)
    return objects, -(-size // (1 << 20)) * (1 << 20)


def _inodes(objects: int) -> int:
    return objects + objects // 4 + 1024


def pack(
    upper: HeldUpper, path: str, size: int, type_: creating.Type, report: Callable[[int], None], objects: int
) -> Lost:
    """Make an image of an upper.

    Args:
        upper: opened, so that nothing is mounted on it.
        path: of the new image.
        size: of it in bytes.
        report: told how many objects were copied.
        objects: how many there are about.

    Raises:
        UserError: LAYERS: the path is taken; owners are kept in a database. FAILURE: it does not fit; a file cannot be
            read.
    """
    if upper.work_fd is not None and _has(upper.work_fd, DATABASE_FILE):
        raise UserError(
            f"the owners of '{upper.path}' are kept in a database of its work directory, which is of no use in an"
            " image; an upper on a filesystem with user attributes keeps them in the files",
            ExitCode.LAYERS,
        )
    st = os.fstat(upper.root_fd)
    wish = creating.Wish(size, type_, owner=(st.st_uid, st.st_gid), inodes=_inodes(objects), is_sparse=True)
    with beside(path) as new, ExitStack() as stack:
        creating.make(new.fd, path, wish)
        image = Opened(new.fd, path, Kind.EXT, None, None, 0, size, Kind.EXT, trust.of_user())
        with _one_line(upper.path, size), _written(path), inside(image, writable=True) as root_fd:
            transplant = Transplant(root_fd, report)
            transplant.add(upper.root_fd, b"upper")
            if upper.work_fd is not None and _has(upper.work_fd, _INDEX):
                index = os.open(_INDEX, _DIRECTORY, dir_fd=upper.work_fd)
                stack.callback(os.close, index)
                transplant.add(index, b"work/" + _INDEX)
        new.publish()
    return transplant.lost


def unpack(image: Opened, path: str, work: str, report: Callable[[int], None]) -> Lost:
    """Make an upper directory of what an image holds.

    Args:
        image: opened to be read.
        path: of the new directory.
        work: of its work directory, which is made when the image has a hard-link index.
        report: told how many objects were copied.

    Raises:
        UserError: LAYERS: one of the paths is taken; the image has no `upper/`. FAILURE: no space.
    """
    for each in (path, work):
        if os.path.lexists(each):
            raise exists(each)
    with inside(image) as root_fd, ExitStack() as stack:
        try:
            upper_fd = os.open(b"upper", _DIRECTORY, dir_fd=root_fd)
        except OSError:
            raise UserError(f"'{image.path}' has no directory upper/, so it is no upper", ExitCode.LAYERS) from None
        stack.callback(os.close, upper_fd)
        with _new_directory(path) as (parent_fd, hidden_fd), _one_line(image.path, None):
            transplant = Transplant(hidden_fd, report)
            transplant.add(upper_fd, b"upper")
            index = _open_index(root_fd)
            if index is not None:
                stack.callback(os.close, index)
                os.mkdir(b"work", 0o700, dir_fd=hidden_fd)
                transplant.add(index, b"work/" + _INDEX)
            syscalls.syncfs(hidden_fd)
            if index is not None:
                _place(hidden_fd, b"work", parent_fd, work)
            _place(hidden_fd, b"upper", parent_fd, path)
            os.fsync(parent_fd)
    return transplant.lost


def _open_index(root_fd: int) -> int | None:
    try:
        return os.open(b"work/" + _INDEX, _DIRECTORY, dir_fd=root_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _has(directory_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _place(hidden_fd: int, made: bytes, parent_fd: int, path: str) -> None:
    """Give a finished directory its name, the last part of the path."""
    name = os.path.basename(os.fsencode(path.rstrip("/")))
    try:
        syscalls.renameat2(hidden_fd, made, parent_fd, name, syscalls.RENAME_NOREPLACE)
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Without the flag (NFS): onto an empty directory at most, which rename(2) itself sees to.
        os.rename(made, name, src_dir_fd=hidden_fd, dst_dir_fd=parent_fd)


@contextmanager
def _new_directory(path: str) -> Iterator[tuple[int, int]]:
    """A directory beside a path, closed to everybody else; what is left in it goes at the end.

    Yields:
        A descriptor of its parent, and one of it.
    """
    parent = os.path.dirname(path.rstrip("/")) or "."
    try:
        parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no directory '{parent}' for '{path}'", ExitCode.LAYERS) from None
    with ExitStack() as stack:
        stack.callback(os.close, parent_fd)
        base = os.path.basename(os.fsencode(path.rstrip("/")))
        name = b".%s.fuseunion-%s" % (base[:200], secrets.token_hex(4).encode())
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        stack.callback(shutil.rmtree, name, True, None, dir_fd=parent_fd)
        hidden_fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        stack.callback(os.close, hidden_fd)
        yield parent_fd, hidden_fd


@contextmanager
def _written(path: str) -> Iterator[None]:
    """An image that could not be written to its end is not there yet, so it cannot be repaired."""
    try:
        yield
    except UserError as error:
        if error.exit_code != ExitCode.FAILURE:
            raise
        raise UserError(
            f"'{path}' could not be written to its end; is there space for it? Nothing was made", ExitCode.FAILURE
        ) from None


@contextmanager
def _one_line(source: str, size: int | None) -> Iterator[None]:
    """What goes wrong with one object, or with the space for all."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and size is not None:
            raise UserError(
                f"'{source}' does not fit into {shown(size)}, or there is no space for it; nothing was made",
                ExitCode.FAILURE,
            ) from None
        name = os.path.join(source, os.fsdecode(error.filename)) if error.filename else source
        raise UserError(f"cannot copy '{name}': {error.strerror}; nothing was made", ExitCode.FAILURE) from None
