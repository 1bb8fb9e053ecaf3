"""The hard-link index: names of one lower file stay one file, while mounted and after a remount.

Overlayfs copies up one name of a lower file and leaves the others behind; with its option `index` it keeps a link to
the copy in WORK/index, named by the lower file's handle (Documentation/filesystems/overlayfs.rst "Inode index"). This
is the same idea with names that an unprivileged reader can check:

    WORK/links/<number>-<mtime>-<size>/    a lower file that matters: its number, mtime (ns) and size in hex
        inode                              a hard link of its copy in the upper, once there is one
        l-<count>                          the lower file's own count of links
        c-<token>                          one lower name that no longer shows the lower file, because it was removed
                                           or is a link of the copy now; the token is a hash of (directory, name),
                                           the file holds the path in the lower
    WORK/links/dirty                       the index is in use; a mount that finds it follows one that was killed

What is in there is believed, so the directory must be this user's alone (linux/owned.py), even where WORK belongs to
somebody else, and is used by a descriptor from the first look on. What nothing of ours can have left in it is logged
and is in nobody's way but of the file that it names.

Every entry is made before what it describes. So all that a killed mount can leave is an entry for a name that is still
there, and `repair`, which then looks each name up, makes the counts right again.

Also kept here: copies that cannot hold xattrs (links, devices, sockets of an unprivileged user), or get a second name
while there is no space for their whole origin mark (origin_paths.py), and would otherwise lose the inode number of the
lower file at a remount.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format.digest import blake2b
from fuseunion.core.format.numbers import Ino
from fuseunion.linux import owned
from fuseunion.linux.real_object import RealObject

log = logging.getLogger("fuseunion.links")

INODE = b"inode"
_COVERED = b"c-"
_COUNT = b"l-"
_DIRTY = b"dirty"
_MODE = 0o700

# What this module writes, and no more: a count of links has 32 bits (statx(2), stx_nlink), a number 63 (numbers.py).
_KEY = re.compile(rb"([0-9a-f]{1,16})-[0-9a-f]{1,16}-[0-9a-f]{1,16}")
_COUNT_ENTRY = re.compile(re.escape(_COUNT) + rb"[0-9]{1,10}")
_NUMBERS = range(1, 1 << 63)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def key_of(number: Ino, st: os.stat_result) -> bytes:
    """The name of a lower file's entry. Size and mtime guard against a lower that was replaced between two mounts."""
    return b"%x-%x-%x" % (number, st.st_mtime_ns & 0xFFFFFFFFFFFFFFFF, st.st_size)


def key_of_number(number: Ino) -> bytes:
    """The name of the entry of a copy that only needs its number kept; no lower file with several names has it."""
    return b"%x-0-0" % number


def token_of(directory: Ino, name: bytes) -> bytes:
    """The name of the mark for one lower name, `directory` being the number of the lower directory that holds it."""
    return _COVERED + blake2b(b"%d/%s" % (directory, name), digest_size=12).hexdigest().encode()


class LinkGroup:
    """One lower file with several names, or a copy whose number is kept here.

    Attributes:
        number: the lower file's number, which all its names show.
        covered: tokens of the lower names that do not show the lower file any more.
        lower_nlink: st_nlink of the lower file; 0 for a group that only keeps a number.
        copy_ino: real inode number of the copy in the upper, or None before the copy-up.
    """

    __slots__ = ("_index", "copy_ino", "covered", "directory", "key", "lower_nlink", "number")

    def __init__(self, index: LinkIndex, key: bytes, number: Ino, lower_nlink: int) -> None:
        self._index = index
        self.key = key
        self.number = number
        self.lower_nlink = lower_nlink
        self.covered: set[bytes] = set()
        self.copy_ino: int | None = None
        self.directory = index.directory(key)

    @property
    def is_empty(self) -> bool:
        """True when nothing is known of the file that the layers do not tell."""
        return self.copy_ino is None and not self.covered

    def nlink(self, copy_nlink: int | None) -> int:
        """The count of links to show; `copy_nlink` is the real count of the copy, index included, if there is one."""
        lower_names = max(self.lower_nlink - len(self.covered), 0)
        return lower_names + (copy_nlink - 1 if copy_nlink else 0)

    @contextmanager
    def covering(self, token: bytes, path: bytes) -> Iterator[None]:
        """Count one lower name as gone while it is removed in the block; if that fails, it counts again.

        Args:
            path: of the name, from the root of its lower.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO.
        """
        if token in self.covered:
            yield
            return
        self._index.make(self)
        try:
            _write_new(self.directory, token, path)
        except BaseException:
            self._index.discard_if_empty(self)
            raise
        self.covered.add(token)
        try:
            yield
        except BaseException:
            self.uncover(token)
            raise

    def covered_path(self, token: bytes) -> bytes:
        """The path that was given with a covered name; incomplete if the process was killed while it was written."""
        fd, _ = self.directory.open_regular(token, os.O_RDONLY)
        try:
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)

    def uncover(self, token: bytes) -> None:
        """The lower name is there after all; what cannot be written stays as it is on disk, and is logged."""
        try:
            os.unlink(token, dir_fd=self.directory.fd())
        except FileNotFoundError:
            pass  # uncovered in another way
        except OSError as error:
            log.warning("a name of inode %d goes on counting as removed: %s", self.number, error)
            return
        self.covered.discard(token)
        self._index.discard_if_empty(self)

    def add_copy(self, copy: RealObject, st: os.stat_result) -> None:
        """Keep a link to the finished copy; `st` is its lstat.

        A copy that is there already is one that a crash left before it had a name: the new one takes its place.

        Raises:
            OSError: ENOSPC, EDQUOT, EMLINK, EIO; nothing is kept then.
        """
        self._index.make(self)
        try:
            self._index.keep_link(copy, self)
        except BaseException:
            self._index.discard_if_empty(self)
            raise
        self.copy_ino = st.st_ino
        self._index.by_copy[st.st_ino] = self

    def drop_copy(self) -> None:
        """Undo `add_copy`: the copy was not published."""
        if self.copy_ino is not None:
            self._index.by_copy.pop(self.copy_ino, None)
            self.copy_ino = None
        try:
            os.unlink(INODE, dir_fd=self.directory.fd())
        except OSError as error:
            log.error("a copy of inode %d that came to nothing stays in the link index: %s", self.number, error)
            return
        self._index.discard_if_empty(self)

    def remove(self) -> None:
        """Forget the file: no name of it is left. What resists is garbage in the index, and is logged."""
        self._index.remove(self)


class LinkIndex:
    """All link groups of one work directory, loaded at mount.

    Raises:
        OSError: EPERM, with the reason as its text, where the directory is not this user's alone; ENOTDIR.
    """

    def __init__(self, work: WorkDirectory) -> None:
        self._work = work
        self._root = work.links
        self._groups: dict[bytes, LinkGroup] = {}
        self.by_copy: dict[int, LinkGroup] = {}
        self.was_killed = False
        self._in_use = False
        self._load()

    def _load(self) -> None:
        if self._work.layer.root.stat(b"links") is None:
            return
        self._judge()
        for key, is_directory in _listed(self._root):
            if key == _DIRTY and not is_directory:
                self.was_killed = self._in_use = True
                continue
            number = _number_of(key)
            if number is not None and is_directory:
                self._load_group(key, number)
            else:
                log.warning("ignoring %r in the link index of %s", key, self._work.layer.label)

    def _judge(self) -> None:
        """Refuse an index that is not this user's alone; from here on it is recognised (RealDir)."""
        reason = owned.objection(os.fstat(self._root.fd()))
        if reason is not None:
            raise OSError(errno.EPERM, f"'links' in the work directory {reason}", b"links")

    def _load_group(self, key: bytes, number: Ino) -> None:
        group = LinkGroup(self, key, number, 0)
        complete = False
        for entry, is_directory in _listed(group.directory):
            if is_directory:
                log.warning("ignoring %r in %r in the link index of %s", entry, key, self._work.layer.label)
            elif entry == INODE:
                st = group.directory.stat(INODE)
                if st is not None:
                    group.copy_ino = st.st_ino
                    self.by_copy[st.st_ino] = group
            elif entry.startswith(_COVERED):
                group.covered.add(entry)
            elif _COUNT_ENTRY.fullmatch(entry):
                group.lower_nlink = int(entry[len(_COUNT) :])
                complete = True
        if complete:  # else the mount was killed before it wrote the first fact
            self._groups[key] = group

    def groups(self) -> list[LinkGroup]:
        """Every group with a fact on disk."""
        return list(self._groups.values())

    def close(self) -> None:
        """The mount ends in order: everything in the index is true."""
        if self._in_use:
            os.unlink(_DIRTY, dir_fd=self._root.fd())
            self._in_use = False

    def directory(self, key: bytes) -> RealDir:
        """The real directory of one entry; it need not exist."""
        return self._root.child(key)

    def get(self, key: bytes) -> LinkGroup | None:
        """The group of a lower file, or None when nothing of it ever changed."""
        return self._groups.get(key)

    def get_or_new(self, key: bytes, number: Ino, lower_nlink: int) -> LinkGroup:
        """The group of a lower file; a new one is in the index from its first fact on."""
        return self._groups.get(key) or LinkGroup(self, key, number, lower_nlink)

    def make(self, group: LinkGroup) -> None:
        """Make the directory of a group."""
        if not self._in_use:
            _mkdir(self._work.layer.root, b"links")
            self._judge()
            os.close(os.open(_DIRTY, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600, dir_fd=self._root.fd()))
            self._in_use = True
        if group.key in self._groups:
            return  # made for an earlier fact
        _mkdir(self._root, group.key)
        try:
            _write_new(group.directory, _COUNT + b"%d" % group.lower_nlink, b"")
        except BaseException:
            self.discard_if_empty(group)
            raise
        self._groups[group.key] = group

    def keep_link(self, copy: RealObject, group: LinkGroup) -> None:
        """Link a copy into the directory of its group, in place of what is there."""
        tmp = self._work.tmp
        second = self._work.new_name()
        copy.link(tmp.fd(), second)
        try:
            os.rename(second, INODE, src_dir_fd=tmp.fd(), dst_dir_fd=group.directory.fd())
        except BaseException:
            self._work.unlink(second)
            raise

    def discard_if_empty(self, group: LinkGroup) -> None:
        """Remove a group that tells nothing; what resists is garbage, and is logged."""
        if group.is_empty:
            self.remove(group)

    def remove(self, group: LinkGroup) -> None:
        """Remove a group from memory and disk."""
        self._groups.pop(group.key, None)
        if group.copy_ino is not None:
            self.by_copy.pop(group.copy_ino, None)
            group.copy_ino = None
        try:
            self._work.remove_tree(self._work.take(self._root, group.key))
        except FileNotFoundError:
            pass  # nothing was ever written
        except OSError as error:
            log.warning("cannot remove %r from the link index: %s", group.key, error)
        group.directory.renew()


def _listed(directory: RealDir) -> list[tuple[bytes, bool]]:
    """Every name in a directory, and whether it is that of a directory: what readdir(3) tells, so no stat for each."""
    fd = directory.open_itself()
    try:
        with os.scandir(fd) as entries:
            return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    finally:
        os.close(fd)


def _write_new(directory: RealDir, name: bytes, data: bytes) -> None:
    """Make a small file whole; one that a killed mount left is replaced.

    Raises:
        OSError: ENOSPC, EDQUOT, EIO; the file is gone then.
    """
    fd = owned.new_file(name, directory.fd())
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BaseException:
        os.unlink(name, dir_fd=directory.fd())
        raise
    finally:
        os.close(fd)


def _mkdir(parent: RealDir, name: bytes) -> None:
    try:
        os.mkdir(name, _MODE, dir_fd=parent.fd())
    except FileExistsError:
        pass  # of another group, or made just before the process was killed


def _number_of(key: bytes) -> Ino | None:
    """The number in the name of an entry; None for a name that `key_of` does not give."""
    match = _KEY.fullmatch(key)
    number = int(match[1], 16) if match else 0
    return Ino(number) if number in _NUMBERS else None
