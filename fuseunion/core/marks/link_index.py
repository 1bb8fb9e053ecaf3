"""The hard-link index: names of one lower file stay one file, while mounted and after a remount.

Overlayfs copies up one name of a lower file and leaves the others behind; with its option `index` it keeps a link to
the copy in WORK/index, named by the lower file's handle (Documentation/filesystems/overlayfs.rst "Inode index"). This
is the same idea with names that an unprivileged reader can check. KEY is a lower file's number, mtime (ns) and size in
hex, COUNT its own count of links (core/format/link_entries.py). Each fact is one name in one directory, made or removed
by one system call:

    WORK/links/KEY-COUNT            a hard link of its copy in the upper, once there is one
    WORK/links/KEY-COUNT-TOKEN      one lower name that no longer shows the lower file, because it was removed or is a
                                    link of the copy now; TOKEN is a hash of (directory, name), the file holds the path
                                    in the lower
    WORK/links/dirty                the index is in use; a mount that finds it follows one that was killed

What is in there is believed, so the directory must be this user's alone (linux/owned.py), even where WORK belongs to
somebody else, and is used by a descriptor from the first look on. What nothing of ours can have left in it is logged
and is in nobody's way but of the file that it names.

Every entry is made before what it describes. So all that a killed mount can leave is an entry for a name that is still
there, and `repair`, which then looks each name up, makes the counts right again.

An index of an older version, which had a directory for each lower file, is brought into this form when it is loaded
(link_migration.py).

A lower file may have names outside of the lowers, which never go. Groups that may have come to their end all the same
are `suspects`: core/ops/copy_up/unshown_links.py finds out.

Also kept here: copies that cannot hold xattrs (links, devices, sockets of an unprivileged user), or get a second name
while there is no space for their whole origin mark (origin_paths.py), and would otherwise lose the inode number of the
lower file at a remount.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format import link_entries
from fuseunion.core.format.numbers import Ino
from fuseunion.core.marks.link_migration import listed, migrate
from fuseunion.linux import owned
from fuseunion.linux.objects.real_object import RealObject

log = logging.getLogger("fuseunion.links")

_DIRTY = b"dirty"
_MODE = 0o700


class LinkGroup:
    """One lower file with several names, or a copy whose number is kept here.

    Attributes:
        number: the lower file's number, which all its names show.
        covered: tokens of the lower names that do not show the lower file any more.
        lower_nlink: st_nlink of the lower file; 0 for a group that only keeps a number.
        copy_ino: real inode number of the copy in the upper, or None before the copy-up.
    """

    __slots__ = ("_index", "copy_ino", "covered", "key", "lower_nlink", "number")

    def __init__(self, index: LinkIndex, key: bytes, number: Ino, lower_nlink: int) -> None:
        self._index = index
        self.key = key
        self.number = number
        self.lower_nlink = lower_nlink
        self.covered: set[bytes] = set()
        self.copy_ino: int | None = None

    @property
    def copy(self) -> tuple[RealDir, bytes]:
        """Where the link of the copy lies, or is to lie."""
        return self._index.root, self._entry(None)

    def _entry(self, token: bytes | None) -> bytes:
        return link_entries.entry_name(self.key, self.lower_nlink, token)

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
            _write_new(self._index.root, self._entry(token), path)
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
        fd, _ = self._index.root.open_regular(self._entry(token), os.O_RDONLY)
        try:
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)

    def uncover(self, token: bytes) -> None:
        """The lower name is there after all; what cannot be written stays as it is on disk, and is logged."""
        try:
            self._index.root.unlink(self._entry(token))
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
            self._index.root.unlink(self._entry(None))
        except OSError as error:
            log.error("a copy of inode %d that came to nothing stays in the link index: %s", self.number, error)
            return
        self._index.discard_if_empty(self)

    def remove(self) -> None:
        """Forget the file: no name of it is left. What resists is garbage in the index, and is logged.

        The copy goes first: it may be large, and the names that are left say nothing untrue.
        """
        entries = [self._entry(None)] if self.copy_ino is not None else []
        entries += [self._entry(token) for token in self.covered]
        self._index.forget(self)
        for entry in entries:
            try:
                self._index.root.unlink(entry)
            except FileNotFoundError:
                pass  # removed by hand
            except OSError as error:
                log.warning("cannot remove %r from the link index: %s", entry, error)

    def end(self) -> None:
        """As `remove`, of a file that still has names, but none in the union."""
        self.remove()
        self.lower_nlink = len(self.covered)  # who has it open sees that it has no name any more


class LinkIndex:
    """All link groups of one work directory, loaded at mount.

    Attributes:
        root: the directory of the index; it need not exist.
        by_copy: groups by the real inode number of their copy.
        was_killed: the mount before did not end in order.
        suspects: keys of groups that may be shown by no name any more.
        is_suspicious: one came to be suspected in this mount and was not looked at.
        suspected: called for each suspect.

    Raises:
        OSError: EPERM, with the reason as its text, where the directory is not this user's alone; ENOTDIR; ENOSPC,
            where an older form cannot be brought into this one.
    """

    def __init__(self, work: WorkDirectory) -> None:
        self._work = work
        self.root = work.links
        self._groups: dict[bytes, LinkGroup] = {}
        self.by_copy: dict[int, LinkGroup] = {}
        self.was_killed = False
        self.suspects: set[bytes] = set()
        self.is_suspicious = False
        self.suspected: Callable[[], None] = lambda: None
        self._in_use = False
        self._load()

    def _load(self) -> None:
        if self._work.layer.root.stat(b"links") is None:
            return
        self._judge()
        names = listed(self.root)
        if any(is_directory for _, is_directory in names):
            migrate(self.root)
            names = listed(self.root)
        for name, is_directory in names:
            if is_directory:
                log.warning("ignoring %r in the link index of %s", name, self._work.layer.label)
            elif name == _DIRTY:
                self.was_killed = self._in_use = True
            elif not self._load_entry(name):
                log.warning("ignoring %r in the link index of %s", name, self._work.layer.label)
        self.suspects = {key for key, group in self._groups.items() if not self._has_copy_in_use(group)}

    def _judge(self) -> None:
        """Refuse an index that is not this user's alone; from here on it is recognised (RealDir)."""
        reason = owned.objection(os.fstat(self.root.fd()))
        if reason is not None:
            raise OSError(errno.EPERM, f"'links' in the work directory {reason}", b"links")

    def _load_entry(self, name: bytes) -> bool:
        """Take in one fact; False for what none is."""
        entry = link_entries.parse(name)
        if entry is None:
            return False
        key, number, lower_nlink, token = entry
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = LinkGroup(self, key, number, lower_nlink)
        if group.lower_nlink != lower_nlink:
            return False
        if token is not None:
            group.covered.add(token)
            return True
        st = self.root.stat(name)
        if st is not None:
            group.copy_ino = st.st_ino
            self.by_copy[st.st_ino] = group
        return True

    def _has_copy_in_use(self, group: LinkGroup) -> bool:
        """True when the copy has a name in the upper."""
        st = self.root.stat(group.copy[1]) if group.copy_ino is not None else None
        return st is not None and st.st_nlink > 1

    def groups(self) -> list[LinkGroup]:
        """Every group with a fact on disk."""
        return list(self._groups.values())

    def close(self) -> None:
        """The mount ends in order: everything in the index is true."""
        if self._in_use:
            self.root.unlink(_DIRTY)
            self._in_use = False

    def get(self, key: bytes) -> LinkGroup | None:
        """The group of a lower file, or None when nothing of it ever changed."""
        return self._groups.get(key)

    def get_or_new(self, key: bytes, number: Ino, lower_nlink: int) -> LinkGroup:
        """The group of a lower file; a new one is in the index from its first fact on."""
        return self._groups.get(key) or LinkGroup(self, key, number, lower_nlink)

    def suspect(self, group: LinkGroup) -> None:
        """No name of the file is known any more."""
        self.suspects.add(group.key)
        self.is_suspicious = True
        self.suspected()

    def trusted(self, key: bytes) -> None:
        """A suspect was looked at."""
        self.suspects.discard(key)
        self.is_suspicious = bool(self.suspects)

    def unshown(self, key: bytes, tokens: set[bytes]) -> LinkGroup | None:
        """The group of a suspect that no name shows any more; None where one may, or where it has gone.

        Args:
            tokens: of all the names that the lower file has in the lowers.
        """
        self.trusted(key)
        group = self._groups.get(key)
        if group is None or self._has_copy_in_use(group):
            return None
        # Lowers in which the names that went are not to be found are not those that the group is about.
        is_judged = tokens == group.covered and (tokens or not group.lower_nlink)
        return group if is_judged else None

    def make(self, group: LinkGroup) -> None:
        """Take in a group that is about to get its first fact."""
        if not self._in_use:
            _mkdir(self._work.layer.root, b"links")
            self._judge()
            os.close(os.open(_DIRTY, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600, dir_fd=self.root.fd()))
            self._in_use = True
        self._groups[group.key] = group

    def keep_link(self, copy: RealObject, group: LinkGroup) -> None:
        """Link a copy into the index, in place of what is there."""
        tmp = self._work.tmp
        second = self._work.new_name()
        copy.link(tmp.fd(), second)
        try:
            tmp.rename(second, *group.copy)
        except BaseException:
            self._work.unlink(second)
            raise

    def discard_if_empty(self, group: LinkGroup) -> None:
        """Forget a group that tells nothing."""
        if group.is_empty:
            self.forget(group)

    def forget(self, group: LinkGroup) -> None:
        """Remove a group from memory."""
        self._groups.pop(group.key, None)
        self.suspects.discard(group.key)
        if group.copy_ino is not None:
            self.by_copy.pop(group.copy_ino, None)
            group.copy_ino = None


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
