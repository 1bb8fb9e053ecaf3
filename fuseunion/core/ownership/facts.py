"""What an ownership store knows of one object, and its text form: the override_stat attribute.

The grammar, from containers/storage (pkg/idtools, parseOverrideXattr) and fuse-overlayfs (utils.c, override_mode):

    value = UID ":" GID ":" MODE [":" TYPE]          UID, GID decimal; MODE octal
    TYPE  = "file" | "dir" | "symlink" | "pipe" | "socket"
          | "block-" MAJOR "-" MINOR | "char-" MAJOR "-" MINOR

Writers differ: fuse-overlayfs 1.x puts the whole st_mode into MODE and writes no TYPE, older containers/storage
writes no TYPE and no set-id bits, fuse-overlayfs 2.0 separates device numbers by colons, and readers tolerate text
after a TYPE. All of these are read. One form is written, that of containers/storage: four octal digits and a TYPE.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, NamedTuple, cast

from fuseunion.core.format.xattr_names import malformed

DATABASE_FILE = b"fuseunion.db"
"""The name of the database in a work area; here, so that asking for it does not import sqlite3."""

_VALUE = re.compile(rb"(\d{1,10}):(\d{1,10}):([0-7]{1,11})(?::(.*))?", re.ASCII | re.DOTALL)
_DEVICE = re.compile(rb"(block|char)[-:](\d{1,8})[-:](\d{1,8})(?:\D.*)?", re.ASCII | re.DOTALL)

_Reduced = tuple[Any, tuple[tuple[int, ...], dict[str, Any]]]

_ID_LIMIT = 2**32 - 1

# In the order in which a prefix is looked for: the words are told apart by how they begin.
_KINDS = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_WORDS = {kind: word for word, kind in _KINDS.items()}
DEVICES = (stat.S_IFBLK, stat.S_IFCHR)
"""The types that have a device number."""


class Facts(NamedTuple):
    """What a store says of an object.

    Attributes:
        uid, gid: the owner, in disk ids.
        mode: the permission, set-id and sticky bits, without a type.
        kind: the file type (S_IFMT bits), or 0 for "what the real object is".
        rdev: the device number; 0 unless kind is a device.
    """

    uid: int
    gid: int
    mode: int
    kind: int = 0
    rdev: int = 0

    @classmethod
    def of(cls, st: os.stat_result) -> Facts:
        """What a stat result says."""
        kind = stat.S_IFMT(st.st_mode)
        return cls(st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode), kind, st.st_rdev if kind in DEVICES else 0)

    def apply(self, st: os.stat_result) -> os.stat_result:
        """The stat result of the real object, with these facts in place of its own; times and sizes stay exact.

        Only a regular file can stand for something else (and not for a directory): whatever an attribute says, a
        directory stays one, and so does a link.
        """
        # The sequence holds whole seconds only; the dictionary that pickling uses has all the rest.
        _, (fields, extra) = cast(_Reduced, st.__reduce__())
        kind, rdev = stat.S_IFMT(st.st_mode), st.st_rdev
        if kind == stat.S_IFREG and self.kind not in (0, stat.S_IFDIR):
            kind, rdev = self.kind, self.rdev
        extra["st_rdev"] = rdev
        return os.stat_result((kind | self.mode, *fields[1:4], self.uid, self.gid, *fields[6:]), extra)


def parse(value: bytes) -> Facts:
    """Read an attribute in any of its grammars.

    Raises:
        OSError: EINVAL for anything else, as fuse-overlayfs answers.
    """
    match = _VALUE.fullmatch(value.rstrip(b"\0"))
    if match is None:
        raise malformed()
    uid, gid, mode = int(match[1]), int(match[2]), int(match[3], 8)
    if uid >= _ID_LIMIT or gid >= _ID_LIMIT:
        raise malformed()
    kind, rdev = _parse_type(match[4]) if match[4] else (0, 0)
    return Facts(uid, gid, mode & 0o7777, kind, rdev)


def _parse_type(text: bytes) -> tuple[int, int]:
    for word, kind in _KINDS.items():
        if text.startswith(word):
            if kind not in DEVICES:
                return kind, 0
            device = _DEVICE.fullmatch(text)
            # MKDEV's fields, include/linux/kdev_t.h: 12 and 20 bits.
            if device and int(device[2]) < 2**12 and int(device[3]) < 2**20:
                return kind, os.makedev(int(device[2]), int(device[3]))
    raise malformed()


def unparse(facts: Facts) -> bytes:
    """The one form that is written; without a TYPE where the kind is not known."""
    text = b"%d:%d:%04o" % (facts.uid, facts.gid, facts.mode)
    if not facts.kind:
        return text
    text += b":" + _WORDS[facts.kind]
    if facts.kind in DEVICES:
        text += b"-%d-%d" % (os.major(facts.rdev), os.minor(facts.rdev))
    return text


def backing_mode(mode: int) -> int:
    """The type and permissions of the real object that stands for one of this type and these permissions.

    The owner may always read and write it (and search it, if a directory): that is the daemon's user, and access is
    decided by the stored mode before the daemon is asked. For everybody else it is no more open than it looks
    inside, and it is never set-id. (fuse-overlayfs makes it at least 0755, which shows every private file of the tree
    to the other users of the machine.)
    """
    if stat.S_ISLNK(mode):
        return mode
    if stat.S_ISDIR(mode):
        return stat.S_IFDIR | 0o700 | mode & 0o777
    return stat.S_IFREG | 0o600 | mode & 0o777
