"""The single changes that collecting makes in UPPER; each shows the state before or after it, whenever it is cut off.

Whiteouts and opaque marks are the core's (core/whiteout.py), and so are the removals.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core.copy_up import copy_up_directory
from fuseunion.core.inode import Directory, File, Inode
from fuseunion.core.lookup import lower_is_positive
from fuseunion.core.realdir import RealDir
from fuseunion.core.remove import covering_lower_name, directory_gone
from fuseunion.core.union import Union
from fuseunion.core.whiteout import is_whiteout
from fuseunion.engines.ranch import private

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class Publisher:
    """Puts objects of a farm, or of a layer, into the upper of a union.

    Args:
        farm: the farm's root; its files may be linked instead of copied.
        keep: the farm lives on, so that nothing may be linked.
    """

    def __init__(self, union: Union, farm: RealDir, *, keep: bool) -> None:
        self._union = union
        self._state = union.state
        self._side = union.state.writable()
        self._farm = farm.layer
        self._keep = keep
        # Files with several names that had to be copied: where the first name went.
        self._copied: dict[tuple[int, int], tuple[RealDir, bytes]] = {}

    def remove(self, directory: Directory, name: bytes, inode: Inode) -> None:
        """Remove a name with all that is beneath it: a whiteout where a lower shows it."""
        if isinstance(inode, File):
            self._union.unlink(directory, name)
            return
        assert isinstance(inode, Directory)
        upper = copy_up_directory(self._state, directory)
        positive = lower_is_positive(self._state, directory, name)
        if inode.upper is None:
            self._side.whiteouts.cover(upper, name)
        else:
            removed = (
                self._side.whiteouts.replace_directory(upper, name) if positive else self._side.work.take(upper, name)
            )
            inode.upper = None
            self._side.work.remove_tree(removed)
        directory_gone(self._state, inode, directory, name)
        self._state.table.drop_if_unused(inode)

    def put(self, directory: Directory, name: bytes, source: RealDir, source_name: bytes, st: os.stat_result) -> None:
        """Put an object that is no directory in the place of whatever file is there.

        Raises:
            OSError: ENOSPC, EDQUOT; EPERM for a device that the user may not make.
        """
        work = self._side.work
        temporary = work.new_name()
        linked = source.layer is self._farm and not self._keep and self._link(source, source_name, temporary)
        if not linked:
            first = self._copied.get((st.st_dev, st.st_ino)) if st.st_nlink > 1 else None
            if first is not None:
                os.link(first[1], temporary, src_dir_fd=first[0].fd(), dst_dir_fd=work.tmp.fd(), follow_symlinks=False)
            else:
                self._copy(source, source_name, st, temporary)
        try:
            upper = self._publish(directory, name, temporary)
        except BaseException:
            work.unlink(temporary)
            raise
        if st.st_nlink > 1 and not linked:
            self._copied[st.st_dev, st.st_ino] = (upper, name)

    def _link(self, source: RealDir, name: bytes, temporary: bytes) -> bool:
        try:
            os.link(name, temporary, src_dir_fd=source.fd(), dst_dir_fd=self._side.work.tmp.fd(), follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        return True

    def _copy(self, source: RealDir, name: bytes, st: os.stat_result, temporary: bytes) -> None:
        tmp = self._side.work.tmp
        try:
            if stat.S_ISREG(st.st_mode):
                self._copy_data(source, name, temporary)
                return
            if stat.S_ISLNK(st.st_mode):
                os.symlink(os.readlink(name, dir_fd=source.fd()), temporary, dir_fd=tmp.fd())
            else:
                os.mknod(temporary, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=tmp.fd())
            private.dress(tmp.proc_path(temporary), st)
        except BaseException:
            self._side.work.unlink(temporary)
            raise

    def _copy_data(self, source: RealDir, name: bytes, temporary: bytes) -> None:
        reader = source.open(name, os.O_RDONLY)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            writer = os.open(temporary, flags, 0o600, dir_fd=self._side.work.tmp.fd())
            try:
                private.copy_file(reader, writer)
                if not self._state.settings.volatile:
                    os.fsync(writer)
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    def _publish(self, directory: Directory, name: bytes, temporary: bytes) -> RealDir:
        upper = copy_up_directory(self._state, directory)
        found = upper.stat(name)
        work, whiteouts = self._side.work, self._side.whiteouts
        with covering_lower_name(self._state, directory, name):
            if found is None:
                work.publish(temporary, upper, name)
            elif is_whiteout(upper, name, found):
                whiteouts.swap_in(temporary, upper, name, is_directory=False)
            else:
                os.rename(temporary, name, src_dir_fd=work.tmp.fd(), dst_dir_fd=upper.fd())
        whiteouts.drop_file_mark(upper, name)
        return upper
