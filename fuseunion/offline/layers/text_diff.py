"""The difference between two contents as text: a unified diff, as of diff(1) and git."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import unified_diff

from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union

LONGEST = 1 << 20
"""Bytes of a file that is compared line by line: difflib needs time that grows with the square of the lines."""


_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""What no text has; a line end, a form feed or an escape sequence is in some."""

_QUOTED = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def of_objects(path: bytes, before: Union, was: Inode | None, after: Union, now: Inode | None) -> Iterator[str]:
    """Lines without a line end; none where neither is a regular file or a link.

    Bytes that are no UTF-8 are surrogates (PEP 383), so that a patch can be made of the lines.

    Args:
        path: for the headings.
        was, now: None, or anything without text, stands for nothing.

    Raises:
        OSError: of the layers.
    """
    old, new = _content(before, was), _content(after, now)
    if old == new:
        return
    names = (_heading(b"a/" + path), _heading(b"b/" + path))
    if old is _LONG or new is _LONG or any(_is_binary(side) for side in (old, new) if isinstance(side, bytes)):
        yield f"Binary or long files {names[0].rstrip()} and {names[1].rstrip()} differ"
        return
    names = (names[0] if was is not None else "/dev/null", names[1] if now is not None else "/dev/null")
    for line in unified_diff(_lines(old), _lines(new), *names, lineterm="\n"):
        text = line.removesuffix("\n")
        yield text
        if text == line:
            yield "\\ No newline at end of file"


def _heading(name: bytes) -> str:
    """A name as git writes it and patch(1) reads it: quoted as in C where it has to be; with a tab after spaces."""
    text = os.fsdecode(name)
    if text.isprintable() and not {'"', "\\"} & {*text}:
        return text + "\t" * (" " in text)
    return (
        '"' + "".join(_QUOTED.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in name) + '"'
    )


def _is_binary(content: bytes) -> bool:
    if b"\0" in content:
        return True
    try:
        content.decode()
    except UnicodeDecodeError:
        return _CONTROL.search(content) is not None
    return False


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
