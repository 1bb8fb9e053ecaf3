"""A new ext image for an upper: `upper/` and `work/` in its root, as `apptainer overlay create` makes it
(internal/app/apptainer/overlay_create.go).

The features are written out, whatever /etc/mke2fs.conf says here: of ext3 those that Apptainer accepts and nothing
else. No block is reserved for root: the one user of the image fills it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from fuseunion.errors import UserError
from fuseunion.images.tools import programs
from fuseunion.images.tools.sizes import shown

BLOCK = 4096
"""Bytes."""

SMALLEST = 16 << 20
"""Bytes: with less there is little left beside the journal."""

_COMMON = ("none", "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "sparse_super", "large_file")
_EXT4 = ("extent", "flex_bg", "64bit", "huge_file", "dir_nlink", "extra_isize", "metadata_csum")

_TOO_LARGE_AN_ID = 65535
"""Beyond it Apptainer opens the directories to all, for ids that it cannot store (overlay_create.go)."""


class Type(Enum):
    """Which filesystem."""

    EXT3 = "ext3"
    EXT4 = "ext4"


class Profile(Enum):
    """How many bytes there are for each inode."""

    SMALL_FILES = "small-files"
    LARGE_FILES = "large-files"


_BYTES_PER_INODE = {Profile.SMALL_FILES: 4096, Profile.LARGE_FILES: 1 << 20}
_SMALL_IMAGE = 512 << 20
"""Bytes: below it mke2fs gives inodes as for small files (mke2fs.conf(5), `small`)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be made.

    Attributes:
        size: bytes.
        directories: paths to be made in `upper/`.
        owner: uid and gid of all that is in it.
        inodes: how many; None to let the profile say.
        profile: None for what ext has by default.
        is_sparse: whether blocks that hold nothing take no space in the file.
    """

    size: int
    type: Type = Type.EXT3
    directories: Sequence[str] = ()
    owner: tuple[int, int] = (0, 0)
    inodes: int | None = None
    profile: Profile | None = None
    is_sparse: bool = False


def whole_blocks(wish: Wish) -> Wish:
    """The wish with a size of whole blocks.

    Raises:
        UserError: USAGE: too small.
    """
    if wish.size < SMALLEST:
        raise UserError(f"--size: {shown(wish.size)} is too small; an image has {shown(SMALLEST)} or more")
    return replace(wish, size=wish.size - wish.size % BLOCK)


def make(fd: int, path: str, wish: Wish) -> None:
    """Make the filesystem in an empty file.

    Args:
        fd: of the file, O_RDWR.
        path: what it will be called, for messages.

    Raises:
        UserError: USAGE: a directory that cannot be; UNAVAILABLE, FAILURE of mke2fs.
        OSError: ENOSPC.
    """
    os.ftruncate(fd, wish.size)
    features = ",".join((*_COMMON, *_EXT4) if wish.type is Type.EXT4 else _COMMON)
    usual = 4096 if wish.size < _SMALL_IMAGE else 16384
    amount = (
        ["-N", str(wish.inodes)]
        if wish.inodes
        else ["-i", str(_BYTES_PER_INODE[wish.profile] if wish.profile else usual)]
    )
    layout = ["-q", "-F", "-t", wish.type.value, "-O", features, "-b", str(BLOCK), "-I", "256", "-m", "0", *amount]
    uid, gid = wish.owner
    extended = f"nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner={uid}:{gid}"
    target = programs.by_descriptor(fd)
    programs.run(f"make '{path}'", ["mke2fs", *layout, "-E", extended, target], fds=(fd,))
    programs.run(
        f"make the directories of '{path}'",
        ["debugfs", "-w", "-f", "-", target],
        fds=(fd,),
        commands="".join(f"{line}\n" for line in _directories(wish)),
        silent=True,
    )
    if not wish.is_sparse:
        # After mke2fs, which makes holes of what it finds empty.
        os.posix_fallocate(fd, 0, wish.size)


def _directories(wish: Wish) -> Iterator[str]:
    """What debugfs is told; each directory before what it holds."""
    mode = 0o040777 if max(wish.owner) > _TOO_LARGE_AN_ID else 0o040755
    fields = (("mode", f"{mode:#o}".replace("o", "")), ("uid", str(wish.owner[0])), ("gid", str(wish.owner[1])))
    made: set[str] = set()
    for path in ("upper", "work", *(f"upper/{each}" for each in map(checked_directory, wish.directories))):
        parts = path.split("/")
        for each in ("/".join(parts[: count + 1]) for count in range(len(parts))):
            if each not in made:
                made.add(each)
                yield f'mkdir "/{each}"'
                yield from (f'set_inode_field "/{each}" {name} {value}' for name, value in fields)


def checked_directory(text: str) -> str:
    """A path of --create-dir, relative to the root that it will be seen in.

    Raises:
        UserError: USAGE.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise UserError(f"--create-dir {text}: expected a path of a directory within the image, without '..'")
    if not text.isprintable() or '"' in text or max(map(len, map(os.fsencode, parts))) > 255:
        raise UserError(f"--create-dir {text}: a name like this cannot be made; make it when the image is mounted")
    return "/".join(parts)
