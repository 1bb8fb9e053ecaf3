"""The single changes that collecting makes in UPPER.

Each shows the state before or after it, whenever it is cut off: how that is done, with whiteouts, opaque marks and
copies in the work directory, is the union's business (core/ops/entries.py). Here is only what becomes of an object of
the farm, or of a layer: it is linked, or copied.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.portable import match_xattrs
from fuseunion.engines.ranch.farm.private import Owner
from fuseunion.engines.ranch.record import lending, marker
from fuseunion.engines.ranch.record.ledger import Ledger

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class Changes:
    """Brings single objects into the upper of a union.

    Args:
        farm: the farm's root; its files may be linked instead of copied.
        ledger: keeps what has to be lent in the farm.
        keep: the farm lives on, so that nothing may be linked.
    """

    def __init__(self, union: Union, farm: RealDir, ledger: Ledger, *, keep: bool) -> None:
        self._union = union
        self._farm = farm.layer
        self._ledger = ledger
        self._keep = keep

    def put(
        self, directory: Directory, name: bytes, source: RealDir, source_name: bytes, st: os.stat_result, owner: Owner
    ) -> None:
        """Put an object that is no directory in the place of whatever file is there.

        Args:
            st: lstat of the object.
            owner: the user and group that get it.

        Raises:
            OSError: ENOSPC, EDQUOT; EPERM for a device that the user may not make.
        """
        movable = source.layer is self._farm and not self._keep
        ours = movable and not marker.has_copy_mark(source.object(source_name))

        def make(target: RealDir, temporary: bytes) -> None:
            if not (ours and _link(source, source_name, target, temporary)):
                self._copy(source, source_name, st, owner, target, temporary)

        self._union.put(directory, name, make)

    def link(self, file: File, directory: Directory, name: bytes) -> bool:
        """Make a name lead to a file of the union, which is copied up if it lies in a lower.

        Returns:
            False where that cannot be: no more links to the file are possible.

        Raises:
            OSError: ENOSPC, EDQUOT, EACCES.
        """
        self._union.copy_up(file)
        place = file.location()
        assert place is not None, "it has a name in the upper"
        try:
            with lending.legible(place[0]):
                self._union.link_over(file, directory, name)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        return True

    def _copy(
        self, source: RealDir, name: bytes, st: os.stat_result, owner: Owner, target: RealDir, temporary: bytes
    ) -> None:
        if stat.S_ISREG(st.st_mode):
            self._copy_data(source, name, st, owner, target, temporary)
            return
        if stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(name, dir_fd=source.fd()), temporary, dir_fd=target.fd())
        else:
            os.mknod(temporary, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=target.fd())
        match_xattrs(source.object(name), target.object(temporary))
        private.dress(target.object(temporary), st, owner)

    def _copy_data(
        self, source: RealDir, name: bytes, st: os.stat_result, owner: Owner, target: RealDir, temporary: bytes
    ) -> None:
        with private.reading(source, name, self._ledger.legible) as reader:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            writer = os.open(temporary, flags, 0o600, dir_fd=target.fd())
            try:
                private.copy_file(reader, writer, st, owner)
                if not self._union.settings.volatile:
                    os.fsync(writer)
            finally:
                os.close(writer)


def _link(source: RealDir, name: bytes, target: RealDir, temporary: bytes) -> bool:
    try:
        source.object(name).link(target.fd(), temporary)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True
