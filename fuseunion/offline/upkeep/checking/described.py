"""What is at a name, in words that JSON has, so that it can be made again, or at least be known, once it is gone.

Of a whiteout, a mark or an empty file that is everything. The data of a file is kept where it is short; of a directory
so many entries are named as one record of a journal may hold.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable
from functools import partial

from fuseunion.core.disk import trees
from fuseunion.core.disk.realdir import RealDir
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject

Had = dict[str, object]
"""What was there, for json.dumps."""

_SHORT = 4096
"""Bytes of data of one file."""
_MOST_BYTES, _MOST_OBJECTS = 1 << 16, 500
"""Of all values, and objects, in one description."""


def attribute(name: bytes, value: bytes) -> Had:
    """Describe one attribute."""
    return {"attribute": text(name), "value": encoded(value)}


def at_name(directory: RealDir, name: bytes) -> Had:
    """Describe what is at a name, with all that is in it. Changes nothing, follows no link, waits for nobody.

    Raises:
        OSError: of the layer; EXDEV where something is mounted in it.
    """
    return at_names(directory, (name,))


def at_names(directory: RealDir, names: Iterable[bytes]) -> Had:
    """Describe what is at some names of one directory. Raises as `at_name`."""
    account = _Account()
    objects: list[Had] = []
    for name in names:
        st = directory.stat(name)
        if st is None:
            continue
        if not account.has_room():
            return {"objects": objects, "more": True}
        objects.append(account.described(trees.Entry(directory, name, name, st)))
        if stat.S_ISDIR(st.st_mode):
            for entry in trees.walk(directory.child(name, st), pass_over_closed=True):
                if not account.has_room():
                    return {"objects": objects, "more": True}
                objects.append(account.described(entry._replace(path=name + b"/" + entry.path)))
    return {"objects": objects}


def text(name: bytes) -> str:
    """A name, with what is no UTF-8 in surrogates (PEP 383)."""
    return os.fsdecode(name)


def encoded(value: bytes) -> str:
    """Bytes in Base64."""
    return base64.b64encode(value).decode()


class _Account:
    """What still fits into one description."""

    def __init__(self) -> None:
        self._bytes = _MOST_BYTES
        self._objects = _MOST_OBJECTS

    def has_room(self) -> bool:
        return self._objects > 0 and self._bytes > 0

    def described(self, entry: trees.Entry) -> Had:
        st = entry.st
        self._objects -= 1
        self._bytes -= len(entry.path)
        had: Had = {
            "path": text(entry.path),
            "mode": f"{st.st_mode:o}",
            "uid": st.st_uid,
            "gid": st.st_gid,
            "mtime_ns": st.st_mtime_ns,
            "links": st.st_nlink,
        }
        if stat.S_ISREG(st.st_mode):
            had["size"] = st.st_size
        if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            had["device"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
        try:
            self._add_content(entry, had)
        except OSError as error:
            had["unread"] = error.strerror  # what can be taken away can be closed to who takes it
        return had

    def _add_content(self, entry: trees.Entry, had: Had) -> None:
        with entry.directory.held(entry.name) as held:
            xattrs = as_owner_of(held, partial(_xattrs, held))
            if xattrs:
                had["xattrs"] = {text(name): self._spent(value) for name, value in xattrs.items()}
            if stat.S_ISLNK(entry.st.st_mode):
                had["target"] = self._spent(os.readlink(b"", dir_fd=held.fd))
            if stat.S_ISREG(entry.st.st_mode) and 0 < entry.st.st_size <= min(_SHORT, self._bytes):
                had["data"] = self._spent(as_owner_of(held, partial(_data, held)))

    def _spent(self, value: bytes) -> str:
        self._bytes -= len(value)
        return encoded(value)


def _xattrs(held: RealObject) -> dict[bytes, bytes]:
    return {name: held.getxattr(name) for name in held.listxattr()}


def _data(held: RealObject) -> bytes:
    fd, _ = held.open_regular(os.O_RDONLY)
    with open(fd, "rb", buffering=0) as file:
        return file.read(_SHORT)
