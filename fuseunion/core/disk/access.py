"""What every directory of a layer has to know of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping, Sequence

from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.format import xattr_names
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_SEARCHED_BY_ALL = 0o111

TrueNames = Callable[[Sequence[bytes]], Mapping[bytes, Sequence[bytes]]]
"""squashfuse_xattrs.names, which most layers do not need."""


class LayerAccess:
    """How the objects of one layer are reached.

    Args:
        root_fd: an O_RDONLY|O_DIRECTORY descriptor of its root.
        writable: True for the upper.
        label: how messages name it, usually its path.
        covered: where the union itself is mounted, as names from this root, when that lies strictly inside.
        descriptors: the budget.
        hidden: st_dev and st_ino of what is shown without what is in it, wherever it is met below the root: the upper
            and the work directory as empty directories, where they lie in a lower; the image in which they are as a
            file that cannot be read.
        closed_is_empty: so are directories that the daemon may not search: nothing in them can be used.

    Attributes:
        ownership: where owners and modes are stored, or None where they are what stat(2) says.
        true_names: tells of what is listed of an object which attributes it has, and by which names each is to be asked
            for; None where they are what they are called.
        noatime: it can be read without touching access times.
        covered_stat: lstat of the place where the union is mounted, from before the mount.
        remote: it may not answer (remote.py).
        close_file: closes a descriptor of a file. A remote filesystem may be told of it (fs/fuse/file.c fuse_flush).
        keeps_removed: what was removed can be used by an O_PATH descriptor. Filesystems of paths (fuse2fs, NFS) keep
            only what is open.
    """

    def __init__(
        self,
        root_fd: int,
        *,
        writable: bool,
        label: str,
        covered: tuple[bytes, ...],
        descriptors: Descriptors,
        hidden: frozenset[tuple[int, int]],
        closed_is_empty: bool,
    ) -> None:
        self.root_fd = root_fd
        self.writable = writable
        self.label = label
        self.ownership: OwnershipStore | None = None
        self.true_names: TrueNames | None = None
        self.remote = False
        self.close_file: Callable[[int], None] = os.close
        self.keeps_removed = True
        self.st_dev = os.fstat(root_fd).st_dev
        self.descriptors = descriptors
        self.hidden = hidden
        self.closed_is_empty = closed_is_empty
        self.noatime = _may_open_noatime(root_fd)
        self.covered_stat = _stat_below(root_fd, covered)

    def withholds(self, device: int, number: int) -> bool:
        """Whether nobody may read a file.

        Args:
            device, number: its st_dev and st_ino.
        """
        return (device, number) in self.hidden

    def shows_empty(self, fd: int, st: os.stat_result) -> bool:
        """Whether a directory below the root is shown without what is in it.

        Args:
            fd: an O_PATH descriptor of it.
            st: its fstat.
        """
        if (st.st_dev, st.st_ino) in self.hidden:
            return True
        if not self.closed_is_empty or st.st_mode & _SEARCHED_BY_ALL == _SEARCHED_BY_ALL:
            return False
        return not os.access(f"/proc/self/fd/{fd}", os.X_OK)

    def listxattr(self, held: RealObject) -> Collection[bytes]:
        """The names of the attributes of an object, as they are on disk; none where the filesystem has no attributes.

        Raises:
            OSError: of listxattr(2).
        """
        names = held.listxattr()
        return names if self.true_names is None or not names else self.true_names(names).keys()

    def getxattr(self, held: RealObject, name: bytes) -> bytes:
        """The value of an attribute.

        Raises:
            OSError: of getxattr(2): ENODATA for one that is not there.
        """
        if self.true_names is None:
            return held.getxattr(name)
        for word in self.true_names(held.listxattr()).get(name, ()):
            try:
                return held.getxattr(word)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
        raise os_error(errno.ENODATA)

    def xattr_to_disk(self, name: bytes) -> bytes:
        """The name under which a user's attribute is kept in this layer.

        Raises:
            OSError: EPERM for names that a user may not set.
        """
        return xattr_names.to_disk(name) if self.ownership is None else self.ownership.xattr_to_disk(name)

    def xattr_names(self, name: bytes) -> tuple[bytes, ...]:
        """The names under which a user's attribute may lie in this layer, the one that counts first.

        containers/storage unpacks file capabilities as they are, beside stored owners (force_mask).

        Raises:
            OSError: as `xattr_to_disk`.
        """
        disk = self.xattr_to_disk(name)
        return (disk, name) if name == xattr_names.CAPABILITY and disk != name else (disk,)

    def xattr_to_shown(self, disk: bytes) -> bytes | None:
        """The name a user sees for one on disk in this layer, or None when it is hidden."""
        return xattr_names.to_shown(disk) if self.ownership is None else self.ownership.xattr_to_shown(disk)


def _may_open_noatime(root_fd: int) -> bool:
    """open(2): O_NOATIME is for the owner or CAP_FOWNER; a layer owned by somebody else is read without it."""
    try:
        os.close(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME, dir_fd=root_fd))
    except OSError:
        return False
    return True


def _stat_below(root_fd: int, names: tuple[bytes, ...]) -> os.stat_result | None:
    """lstat of a path given as names, before the union is mounted there; None where there is no such path."""
    if not names:
        return None
    fd = os.dup(root_fd)
    try:
        for name in names[:-1]:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        return os.stat(names[-1], dir_fd=fd, follow_symlinks=False)
    except OSError:
        return None
    finally:
        os.close(fd)
