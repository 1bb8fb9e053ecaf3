"""The difference between two contents as text: a unified diff, as of diff(1) and git."""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import unified_diff

from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union

LONGEST = 1 << 20
"""Bytes of a file that is compared line by line: difflib needs time that grows with the square of the lines."""


def of_objects(path: str, before: Union, was: Inode | None, after: Union, now: Inode | None) -> Iterator[str]:
    """Lines without a line end; none where neither is a regular file or a link.

    Args:
        path: for the headings.
        was, now: None, or anything without text, stands for nothing.

    Raises:
        OSError: of the layers.
    """
    old, new = _content(before, was), _content(after, now)
    if old == new:
        return
    if old is _LONG or new is _LONG or any(b"\0" in side for side in (old, new) if isinstance(side, bytes)):
        yield f"Binary or long files a/{path} and b/{path} differ"
        return
    names = (f"a/{path}" if was is not None else "/dev/null", f"b/{path}" if now is not None else "/dev/null")
    for line in unified_diff(_lines(old), _lines(new), *names, lineterm="\n"):
        text = line.removesuffix("\n")
        yield text
        if text == line:
            yield "\\ No newline at end of file"


class _Long:
    """Stands for a content that is too long."""


_LONG = _Long()


def _content(union: Union, inode: Inode | None) -> bytes | _Long:
    if not isinstance(inode, File):
        return b""
    st = union.stat(inode)[0]
    if st.st_mode & 0o170000 == 0o120000:
        return union.readlink(inode)
    if st.st_mode & 0o170000 != 0o100000:
        return b""
    if st.st_size > LONGEST:
        return _LONG
    fd = union.open_for_a_moment(inode)
    try:
        return os.pread(fd, LONGEST, 0)
    finally:
        os.close(fd)


def _lines(content: bytes | _Long) -> list[str]:
    assert isinstance(content, bytes)
    # By \n alone: a form feed or a line separator is a character like others.
    pieces = content.decode("utf-8", "surrogateescape").split("\n")
    last = pieces.pop()
    return [f"{piece}\n" for piece in pieces] + ([last] if last else [])
