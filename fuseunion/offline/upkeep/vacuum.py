"""`fuseunion vacuum`: what is in an upper and changes nothing of what is shown.

    copies          equal to what the lowers show without them in everything but ctime and inode: data, owner, mode,
                    attributes, time of modification. With one name on both sides: hard links would show other counts
    directories     that were copied up, hold nothing any more, and are equal to the lower's
    whiteouts       of nothing

Each goes by one system call, after which the same is shown, so that a kill needs no cleaning up. Directories come after
what they hold.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from fuseunion.core.disk import wh_files
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.marks.contents import Content
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.offline.layers import changes
from fuseunion.offline.layers.opening import View
from fuseunion.offline.layers.reader import named

_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})


class Needless(NamedTuple):
    """One name.

    Attributes:
        path: in the upper.
        what: it is.
        size: in bytes, of a file.
        remove: takes it away.
    """

    path: bytes
    what: str
    size: int
    remove: partial[None]


class _Level(NamedTuple):
    directory: Directory
    was: Inode | None
    real: RealDir
    path: bytes
    contents: Iterator[Content]
    kept: list[bytes]
    """Names that stay."""


def needless(before: Union, view: View) -> Iterator[Needless]:
    """Everything that can go; a directory is told once what is in it was, whether that has been removed or not.

    Args:
        before: the lowers alone.
        view: an upper over them that nobody else uses.

    Raises:
        OSError: of the layers, with the path as its filename.
    """
    levels = [_level(view, view.union.root, before.root, view.upper.root, b"")]
    while levels:
        level = levels[-1]
        content = next(level.contents, None)
        if content is None:
            levels.pop()
            level.real.close()
            if levels:
                found = _directory(before, view, level)
                if found is None:
                    levels[-1].kept.append(level.path)
                else:
                    yield found
            continue
        path = level.path + b"/" + content.name if level.path else content.name
        with named(path):
            if content.is_directory:
                now = view.union.lookup(level.directory, content.name)
                was = _lookup(before, level.was, content.name)
                if isinstance(now, Directory):
                    real = level.real.child(content.name, content.st)
                    levels.append(_level(view, now, was if content.redirect is None else None, real, path))
                    continue
            found = _name(before, view, level, content, path)
        if found is None:
            level.kept.append(path)
        else:
            yield found


def _level(view: View, directory: Directory, was: Inode | None, real: RealDir, path: bytes) -> _Level:
    contents = iter(list(view.union.contents(directory, view.upper)))
    return _Level(directory, was, real, path, contents, [])


def _lookup(union: Union, directory: Inode | None, name: bytes) -> Inode | None:
    return union.lookup(directory, name) if isinstance(directory, Directory) else None


def _name(before: Union, view: View, level: _Level, content: Content, path: bytes) -> Needless | None:
    """A name that is no directory."""
    real, name = level.real, content.name
    if content.is_whiteout:
        if view.union.lower_stat(level.directory, name) is not None:
            return None
        return Needless(path, "whiteout of nothing", 0, partial(_uncover, real, name))
    if content.error is not None or content.lacks_data or real.hides(name) or content.st is None:
        return None
    if content.st.st_nlink > 1 or view.union.lower_stat(level.directory, name) is None:
        return None
    was, now = _lookup(before, level.was, name), view.union.lookup(level.directory, name)
    if not isinstance(was, File) or not isinstance(now, File) or now.group is not None:
        return None
    if before.stat(was)[1] > 1 or not changes.is_equal(before, view, was, now):
        return None
    return Needless(path, "copy equal to the lower", content.st.st_size, partial(_unlink, real, name))


def _directory(before: Union, view: View, level: _Level) -> Needless | None:
    """A directory, all of whose contents were looked at."""
    if level.kept or level.was is None or not level.directory.lowers or level.real.parent is None:
        return None
    if _hides_or_leads(view, level) or not isinstance(level.was, Directory):
        return None
    if not changes.is_equal(before, view, level.was, level.directory):
        return None
    return Needless(level.path, "empty copied directory", 0, partial(_rmdir, level.real.parent, level.real.name))


def _hides_or_leads(view: View, level: _Level) -> bool:
    parent = level.directory.parent
    if parent is None:
        return True
    for content in view.union.contents(parent, view.upper):
        if content.name == level.real.name:
            return content.hides or content.redirect is not None or content.error is not None
    return True


def _unlink(real: RealDir, name: bytes) -> None:
    with real.times_kept():
        real.unlink(name)


def _uncover(real: RealDir, name: bytes) -> None:
    with real.times_kept():
        for each in (name, wh_files.PREFIX + name):
            st = real.stat(each)
            if st is not None and not stat.S_ISDIR(st.st_mode):
                real.unlink(each)


def _rmdir(real: RealDir, name: bytes) -> None:
    with real.times_kept():
        try:
            real.rmdir(name)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            raise OSError(error.errno, os.strerror(error.errno), name) from None
