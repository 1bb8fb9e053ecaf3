"""Whole trees of one layer: going through them, and removing them.

Both go one name at a time from directory descriptors (realdir.py): a tree may be deeper than PATH_MAX and than Python's
recursion limit, no symbolic link is followed, and nothing that is mounted in a tree is entered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.steps import Steps, in_one_piece

_ALL_RIGHTS = 0o700


class Entry(NamedTuple):
    """One object of a tree.

    Attributes:
        directory, name: where it lies.
        path: its path below the top of the tree.
        st: its lstat.
    """

    directory: RealDir
    name: bytes
    path: bytes
    st: os.stat_result

    @property
    def is_directory(self) -> bool:
        """True for a directory, which has entries of its own."""
        return stat.S_ISDIR(self.st.st_mode)


def walk(
    top: RealDir, *, enters: Callable[[Entry], bool] = lambda entry: True, pass_over_closed: bool = False
) -> Iterator[Entry]:
    """Every object below a directory: all that one directory holds, then what lies in its subdirectories.

    Args:
        enters: whether to go through a subdirectory.
        pass_over_closed: leave out what lies in a directory that may not be read.

    Raises:
        OSError: of the layer; EACCES for a directory that may not be read.
    """
    waiting = [(top, b"")]
    while waiting:
        directory, path = waiting.pop()
        try:
            names = directory.names()
        except PermissionError:
            if not pass_over_closed:
                raise
            continue
        for name in names:
            st = directory.stat(name)
            if st is None:
                continue  # gone since the directory was listed
            entry = Entry(directory, name, path + b"/" + name if path else name, st)
            yield entry
            if entry.is_directory and enters(entry):
                waiting.append((directory.child(name, st), entry.path))


def remove(directory: RealDir, name: bytes) -> None:
    """As `removal`, in one piece."""
    in_one_piece(removal(directory, name))


def removal(directory: RealDir, name: bytes) -> Steps[None]:
    """Remove one object with all that is in it; one that is not there is removed already.

    Raises:
        OSError: EXDEV where something is mounted in it; EBUSY, EPERM, EROFS.
    """
    if not _unlinked(directory, name):
        below = directory.child(name)
        yield from _emptying(below, ())
        below.close()
        directory.rmdir(name)


def empty(top: RealDir, keep: Container[bytes] = ()) -> None:
    """Remove everything in a directory, not the directory itself.

    Args:
        keep: names in it that stay.

    Raises:
        OSError: as `remove`.
    """
    in_one_piece(_emptying(top, keep))


def _emptying(top: RealDir, keep: Container[bytes]) -> Steps[None]:
    levels = [(yield from _Level.entered(top, keep))]
    while levels:
        yield
        level = levels[-1]
        if level.names:
            name = level.names.pop()
            if not _unlinked(level.directory, name):
                levels.append((yield from _Level.entered(level.directory.child(name))))
            continue
        levels.pop()
        if level.closed_mode is not None:
            # It may be open to somebody, who sees the mode.
            level.directory.itself().chmod(level.closed_mode)
        if levels:
            level.directory.close()
            levels[-1].directory.rmdir(level.directory.name)


class _Level(NamedTuple):
    """A directory that is being emptied.

    Attributes:
        names: what is still in it.
        closed_mode: the mode that it had, if that denied its owner something.
    """

    directory: RealDir
    names: list[bytes]
    closed_mode: int | None

    @classmethod
    def entered(cls, directory: RealDir, keep: Container[bytes] = ()) -> Steps[_Level]:
        mode = stat.S_IMODE(directory.itself().stat().st_mode)
        open_up(directory)
        names: list[bytes] = []
        for some in directory.scan():
            names += [name for name in some if name not in keep]
            yield
        return cls(directory, names, mode if mode & _ALL_RIGHTS != _ALL_RIGHTS else None)


def _unlinked(directory: RealDir, name: bytes) -> bool:
    """Remove an object that is no directory; False for a directory."""
    try:
        directory.unlink(name)
    except FileNotFoundError:
        pass  # somebody else removed it, which is as good
    except (IsADirectoryError, PermissionError):
        # Linux says EISDIR, POSIX allows EPERM.
        st = directory.stat(name)
        if st is None or not stat.S_ISDIR(st.st_mode):
            raise
        return False
    return True


def open_up(directory: RealDir) -> None:
    """Give the owner of a directory all rights on it, for good; one of mode 000 may not even be searched.

    Raises:
        OSError: EPERM for a directory of another user.
    """
    itself = directory.itself()
    mode = stat.S_IMODE(itself.stat().st_mode)
    if mode & _ALL_RIGHTS != _ALL_RIGHTS:
        itself.chmod(mode | _ALL_RIGHTS)
