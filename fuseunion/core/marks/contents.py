"""What one directory of one layer says by itself: its objects, and what it hides of the layers below.

A lookup asks for one name down a stack (core/tree/lookup.py); this goes through one layer, for tools that read a layer
as data. What the marks mean is the same for both (marks.py, wh_files.py).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from os import stat_result
from typing import NamedTuple

from fuseunion.core.disk import wh_files
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.marks.marks import is_device, is_marked_whiteout, is_opaque, marks_of

_NONE: dict[bytes, bytes] = {}


class Content(NamedTuple):
    """One name in a directory of a layer.

    Attributes:
        real: the directory.
        name: never one that begins with `.wh.`.
        st: lstat of the object of that name; None where the layer has none, but hides those below.
        hides: nothing of the layers below shows under the name, or beneath it: a whiteout, a directory that is opaque,
            an object that is no directory, or one with a `.wh.` file beside it.
        marks: all that are on a directory or regular file, by suffix (xattr_names).
        opaque: of a directory: it is marked so.
        error: the marks cannot be understood: why the object cannot be used.
    """

    real: RealDir
    name: bytes
    st: stat_result | None
    hides: bool
    marks: dict[bytes, bytes] = _NONE
    opaque: bool = False
    error: OSError | None = None

    @property
    def redirect(self) -> bytes | None:
        """Where the layers below have the directory; None for its own place, and where none of them takes part."""
        return self.marks.get(xattr_names.REDIRECT) if self.is_directory and not self.opaque else None

    @property
    def lacks_data(self) -> bool:
        """Whether the data of a regular file is in a layer below (metacopy.py)."""
        return xattr_names.METACOPY in self.marks and not self.is_directory

    @property
    def is_whiteout(self) -> bool:
        """Whether the layer has nothing of that name but hides what is below."""
        return self.st is None

    @property
    def is_directory(self) -> bool:
        """Whether the object is a directory."""
        return self.st is not None and stat.S_ISDIR(self.st.st_mode)


def contents(real: RealDir) -> Iterator[Content]:
    """Every name of a directory of a layer, sorted by its bytes, one object looked at at a time.

    A name that comes or goes meanwhile may be among them or not.

    Raises:
        OSError: of the layer.
    """
    names, hidden = [], set()
    for name in real.names():
        if not wh_files.is_reserved(name):
            names.append(name)
        elif (below := wh_files.name_hidden_by(name)) is not None:
            hidden.add(below)
    for name in sorted({*names, *hidden}) if hidden else sorted(names):
        st = real.stat(name)
        if st is not None:
            yield _of_object(real, name, st, hidden=name in hidden)
        elif name in hidden:
            yield Content(real, name, None, True)


def _of_object(real: RealDir, name: bytes, st: stat_result, *, hidden: bool) -> Content:
    if is_device(st):
        return Content(real, name, None, True)
    is_directory = stat.S_ISDIR(st.st_mode)
    if not is_directory and not stat.S_ISREG(st.st_mode):
        return Content(real, name, st, True)
    try:
        marks = marks_of(real, name, st)
        if not is_directory:
            return Content(real, name, None if is_marked_whiteout(st, marks) else st, True, marks)
        opaque = is_opaque(real.child(name, st), marks)
        return Content(real, name, st, hidden or opaque, marks, opaque)
    except xattr_names.MalformedError as error:
        return Content(real, name, st, True, error=error)
