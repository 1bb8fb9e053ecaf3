"""Where the directories of a mount lie, and which arrangements are refused.

Two directories are the same when device and inode are; so "inside" is decided by looking up from a directory to the
root and comparing each step, whatever symbolic links lead there. A directory that is still
to be made is judged by its parent, so that nothing is created inside a lower, not even for a moment.

Refused, because the tree would contain itself or a write would change what another layer shows: upper or work inside
a lower, a lower inside upper or work, upper and work inside each other, merged inside upper or work. Merged may be a
lower or the upper itself, and may lie inside a lower: layers are opened before the mount covers anything.

`fuseunion exec` lets upper and work lie inside a lower, which shows them as empty directories, or an image that holds
them as a file that cannot be read (LayerAccess.hidden).

A layer ends where another filesystem is mounted in it (realdir.py): an upper on /dev/shm is not inside the lower `/`.
"""

import errno
import os
import stat
from enum import Enum
from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo, owned

Key = tuple[int, int]
"""st_dev and st_ino."""


class Part(Enum):
    """What a directory is in the mount; the value is how messages name it."""

    LOWER = "lower directory"
    UPPER = "upper directory"
    WORK = "work directory"
    MERGED = "merged directory"


class Place(NamedTuple):
    """One directory, existing or about to be made.

    Attributes:
        given: the path as the user wrote it.
        path: absolute, without symbolic links.
        above: the keys of the directory itself, if it exists, and of every directory above it, nearest first, each
            with the way down from there.
        key: of the directory itself, None while it does not exist.
        is_file: it is a regular file, which may be an image.
    """

    part: Part
    given: str
    path: str
    key: Key | None
    above: dict[Key, tuple[str, ...]]
    is_file: bool = False

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        return "file" if self.is_file else "directory"

    @property
    def what(self) -> str:
        """How messages name it: "upper directory", or "upper image"."""
        return self.part.value.replace("directory", "image") if self.is_file else self.part.value

    def inside(self, other: "Place") -> bool:
        """Whether this directory is the other one or lies anywhere below it."""
        return other.key is not None and other.key in self.above

    def way_from(self, other: "Place") -> tuple[bytes, ...]:
        """The names that lead down from the other directory to this one; empty when it is not below."""
        if other.key is None:
            return ()
        return tuple(map(os.fsencode, self.above.get(other.key, ())))


class Survey:
    """Finds places; remembers the directories that it has looked at, since layers mostly share their parents."""

    def __init__(self) -> None:
        self._keys: dict[str, Key | None] = {}
        self._files: set[Key] = set()

    def place(self, part: Part, given: str) -> Place:
        """Look at one directory.

        Raises:
            UserError: LAYERS, when it or what leads to it cannot be used.
        """
        path = os.path.realpath(given)
        names = [name for name in path.split("/") if name]
        above: dict[Key, tuple[str, ...]] = {}
        for depth in range(len(names), -1, -1):
            key = self._key("/" + "/".join(names[:depth]))
            if key is not None:
                above.setdefault(key, tuple(names[depth:]))
        own = self._key(path)
        return Place(part, given, path, own, above, own in self._files)

    def _key(self, path: str) -> Key | None:
        if path not in self._keys:
            try:
                st = os.stat(path)
                self._keys[path] = key = (st.st_dev, st.st_ino)
                if stat.S_ISREG(st.st_mode):
                    self._files.add(key)
            except OSError:
                self._keys[path] = None  # missing, or not to be looked at: then it is not one of our directories
        return self._keys[path]


def open_directory(place: Place, purpose: str = "") -> int:
    """An O_RDONLY descriptor of an existing directory.

    Raises:
        UserError: LAYERS, with the reason and the remedy.
    """
    try:
        return os.open(place.given, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(place.part, place.given, error, purpose) from None


def open_found(place: Place) -> int:
    """As `open_directory`, but the one that was looked at: its path had no symbolic link, and must have none now.

    For what is written: who may write the directory above could put another one there.

    Raises:
        UserError: LAYERS, with the reason and the remedy.
    """
    try:
        fd = owned.open_without_links(place.path)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise refusal(place.part, place.given, error) from None
        fd = _open_closed(place, error)
    st = os.fstat(fd)
    if place.key not in (None, (st.st_dev, st.st_ino)):
        os.close(fd)
        raise UserError(f"{place.part.value} '{place.given}' was exchanged just now; try again", ExitCode.LAYERS)
    return fd


def _open_closed(place: Place, error: OSError) -> int:
    """As `open_found`, where it is this user's, who has closed it to themselves: chmod(2) of MERGED does that."""
    from fuseunion.linux.objects.permission import opened_again  # most mounts have no such upper

    try:
        held = owned.open_without_links(place.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return opened_again(held)
        finally:
            os.close(held)
    except OSError:
        raise refusal(place.part, place.given, error) from None


def refusal(part: Part, path: str, error: OSError, purpose: str = "") -> UserError:
    """The message for a directory that cannot be opened."""
    reasons = {
        errno.ENOENT: "does not exist; check the path" + (f" or {purpose}" if purpose else ""),
        errno.ENOTDIR: "is not a directory",
        errno.EACCES: "may not be read by you; check its permissions",
        errno.ELOOP: "has too many symbolic links",
        errno.ENAMETOOLONG: "has a name that is too long",
        errno.EROFS: "is on a read-only filesystem; choose another or mount with --read-only",
        errno.ENOSPC: "is on a full filesystem",
    }
    reason = reasons.get(error.errno or 0, f"cannot be used: {error.strerror}")
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        reason = _dead(path)
    return UserError(f"{part.value} '{path}' {reason}", ExitCode.LAYERS)


def _dead(path: str) -> str:
    """What to say of a FUSE mount that nobody serves any more, at a path or above it."""
    entry = mountinfo.mount_above(os.path.realpath(path))
    if entry is None or entry.fstype == "fuse.fuseunion":
        return f"is a dead mount; remove it with: fuseunion umount '{entry.target if entry else path}'"
    return f"is a dead mount of '{entry.fstype}'; remove it with: fusermount3 -uz '{entry.target}'"


def refuse_twice(lowers: list[Place]) -> None:
    """Refuse a person's list of lowers that names one directory twice: another was meant.

    Raises:
        UserError: LAYERS, with both paths.
    """
    seen: dict[Key, Place] = {}
    for place in lowers:
        if place.key is None:
            continue
        first = seen.setdefault(place.key, place)
        if first is not place:
            raise UserError(
                f"{place.what} '{place.given}' is the same {place.kind} as the {first.what} '{first.given}'; name each "
                "once",
                ExitCode.LAYERS,
            )


def check(
    lowers: list[Place],
    upper: Place | None,
    work: Place | None,
    merged: Place | None,
    *,
    hides_upper: bool = False,
) -> None:
    """Refuse arrangements in which the tree would contain itself.

    Args:
        hides_upper: the lowers do not show what is in the upper and in the work directory: these may lie in a lower.

    Raises:
        UserError: LAYERS, with both directories.
    """
    for place in (upper, work):
        if place is None:
            continue
        for lower in lowers:
            everywhere = "choose one on another filesystem, or mount with --ephemeral"
            if not hides_upper or place.key == lower.key:
                _refuse_inside(place, lower, everywhere if lower.path == "/" else "choose one outside every lower")
            _refuse_inside(lower, place, "choose another upper and work directory")
        if merged is not None and merged.key != place.key:
            _refuse_inside(merged, place, "mount somewhere else")
    if upper is not None and work is not None:
        _refuse_inside(work, upper, "give a directory beside the upper with --work")
        _refuse_inside(upper, work, "give a directory beside the upper with --work")
    if work is not None and merged is not None and merged.key is not None and merged.key == work.key:
        raise UserError(f"work directory '{work.given}' is the merged directory too; give another", ExitCode.LAYERS)


def _is_cut_off(inner: Place, outer: Place) -> bool:
    """Whether another filesystem is mounted on the way down from one directory to the other.

    A change of st_dev alone is not enough: subvolumes of btrfs have their own without being mounts.
    """
    if outer.key is None:
        return False
    names = inner.path.strip("/").split("/")
    for depth in range(len(names) - len(inner.above[outer.key]) + 1, len(names) + 1):
        path = "/" + "/".join(names[:depth])
        if mountinfo.mount_at(path) is not None and os.stat(path).st_dev != outer.key[0]:
            return True
    return False


def _refuse_inside(inner: Place, outer: Place, remedy: str) -> None:
    if not inner.inside(outer) or _is_cut_off(inner, outer):
        return
    relation = f"is the same {inner.kind} as" if inner.key == outer.key else "lies inside"
    raise UserError(
        f"{inner.what} '{inner.given}' {relation} the {outer.what} '{outer.given}'; {remedy}",
        ExitCode.LAYERS,
    )
