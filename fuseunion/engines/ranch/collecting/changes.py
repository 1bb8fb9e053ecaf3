"""The single changes that collecting makes in UPPER; each shows the state before or after it, whenever it is cut off.

Whiteouts and opaque marks are the core's (core/marks/whiteout.py), and so are the removals and copy-ups.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.marks.whiteout import is_whiteout
from fuseunion.core.ops.copy_up import copy_up_directory
from fuseunion.core.ops.origin_paths import note_path
from fuseunion.core.ops.remove import covering_lower_name, directory_gone, holding, name_gone
from fuseunion.core.tree.inode import Directory, File, Inode
from fuseunion.core.tree.lookup import lower_is_positive
from fuseunion.core.union import Union
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.private import Owner
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.ledger import Ledger

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class Publisher:
    """Puts objects of a farm, or of a layer, into the upper of a union.

    Args:
        farm: the farm's root; its files may be linked instead of copied.
        ledger: keeps what has to be lent in the farm.
        keep: the farm lives on, so that nothing may be linked.
    """

    def __init__(self, union: Union, farm: RealDir, ledger: Ledger, *, keep: bool) -> None:
        self._union = union
        self._state = union.state
        self._side = union.state.writable()
        self._farm = farm.layer
        self._ledger = ledger
        self._keep = keep

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

    def uncover(self, directory: Directory, name: bytes) -> None:
        """Take away the whiteout that hides a name of the lowers."""
        upper = copy_up_directory(self._state, directory)
        if upper.stat(name) is not None:
            os.unlink(name, dir_fd=upper.fd())
        self._side.whiteouts.drop_file_mark(upper, name)

    def put(
        self, directory: Directory, name: bytes, source: RealDir, source_name: bytes, st: os.stat_result, owner: Owner
    ) -> None:
        """Put an object that is no directory in the place of whatever file is there.

        Args:
            st: lstat of the object.
            owner: whose it is to be.
        Raises:
            OSError: ENOSPC, EDQUOT; EPERM for a device that the user may not make.
        """
        temporary = self._side.work.new_name()
        ours = source.layer is self._farm and not self._keep and not marker.has_copy_mark(source.proc_path(source_name))
        if not (ours and self._link(source, source_name, temporary)):
            self._copy(source, source_name, st, owner, temporary)
        self._publish(directory, name, temporary)

    def link(self, file: File, directory: Directory, name: bytes) -> bool:
        """Make a name lead to a file of the union, which is copied up if it lies in a lower.

        Returns:
            False where that cannot be: no more links to the file are possible.
        """
        self._copy_up(file)
        place = file.location()
        assert place is not None, "it has a name in the upper"
        with private.legible(place[0]):
            if self._union.lookup(directory, name) is None:
                try:
                    self._union.link(file, directory, name)
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
                    return False
                return True
            temporary = self._side.work.new_name()
            for known, known_name in file.places():
                note_path(self._state, known, known_name)
            if not self._link(*place, temporary):
                return False
        self._publish(directory, name, temporary)
        return True

    def _copy_up(self, file: File) -> None:
        job = self._union.copy_job(file)
        if job is not None:
            try:
                job.move()
                job.publish()
            finally:
                job.close()

    def _link(self, source: RealDir, name: bytes, temporary: bytes) -> bool:
        try:
            os.link(name, temporary, src_dir_fd=source.fd(), dst_dir_fd=self._side.work.tmp.fd(), follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        return True

    def _copy(self, source: RealDir, name: bytes, st: os.stat_result, owner: Owner, temporary: bytes) -> None:
        tmp = self._side.work.tmp
        if stat.S_ISREG(st.st_mode):
            self._copy_data(source, name, st, owner, temporary)
            return
        if stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(name, dir_fd=source.fd()), temporary, dir_fd=tmp.fd())
        else:
            os.mknod(temporary, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=tmp.fd())
        try:
            private.match_xattrs(source.proc_path(name), tmp.proc_path(temporary))
            private.dress(tmp.proc_path(temporary), st, owner)
        except BaseException:
            self._side.work.unlink(temporary)
            raise

    def _copy_data(self, source: RealDir, name: bytes, st: os.stat_result, owner: Owner, temporary: bytes) -> None:
        work = self._side.work
        with private.reading(source, name, self._ledger.legible) as reader:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            writer = os.open(temporary, flags, 0o600, dir_fd=work.tmp.fd())
            try:
                private.copy_file(reader, writer, st, owner)
                if not self._state.settings.volatile:
                    os.fsync(writer)
            except BaseException:
                work.unlink(temporary)
                raise
            finally:
                os.close(writer)

    def _publish(self, directory: Directory, name: bytes, temporary: bytes) -> None:
        """Show an object from work, which is removed if that fails."""
        work, whiteouts = self._side.work, self._side.whiteouts
        try:
            upper = copy_up_directory(self._state, directory)
            replaced = self._union.lookup(directory, name)
            held = holding(replaced, upper, name) if isinstance(replaced, File) else nullcontext()
            with held, covering_lower_name(self._state, directory, name):
                found = upper.stat(name)
                if found is None:
                    work.publish(temporary, upper, name)
                elif is_whiteout(upper, name, found):
                    whiteouts.swap_in(temporary, upper, name, is_directory=False)
                else:
                    os.rename(temporary, name, src_dir_fd=work.tmp.fd(), dst_dir_fd=upper.fd())
        except BaseException:
            work.unlink(temporary)
            raise
        whiteouts.drop_file_mark(upper, name)
        if isinstance(replaced, File):
            name_gone(self._state, replaced, directory, name)
            self._union.release(replaced)
