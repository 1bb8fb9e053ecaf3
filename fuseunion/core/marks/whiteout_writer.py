"""Writing and removing what hides in the upper.

Written are the device, hard-linked from one inode as the kernel does it (fs/overlayfs/dir.c ovl_whiteout), and the
xattr `opaque`; `.wh.` files only where the upper's filesystem cannot hold the one or the other.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fuseunion.core.disk import wh_files
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format import xattr_names
from fuseunion.linux import syscalls
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject

log = logging.getLogger("fuseunion.whiteout")


class WhiteoutWriter:
    """Writes and removes marks in the upper; each change of the tree is one rename or link, so a crash shows
    the state before or after. Where the filesystem lacks the flags of renameat2 it takes more (see each method)."""

    __slots__ = ("_work", "spare")

    def __init__(self, work: WorkDirectory) -> None:
        self._work = work
        self.spare: bytes | None = None

    # -- making ---------------------------------------------------------------------------------------------------

    def _make(self) -> bytes:
        """A whiteout device in work under a new name, linked from the spare one where links are possible."""
        work = self._work
        name = work.new_name()
        if self.spare is not None:
            try:
                work.tmp.object(self.spare).link(work.tmp.fd(), name)
                return name
            except OSError as error:
                # EMLINK: the inode has all the links it can have. Others: a filesystem without links to devices.
                if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT):
                    raise
                work.unlink(self.spare)
                self.spare = None
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=work.tmp.fd())
        self.spare = work.new_name()
        try:
            work.tmp.object(name).link(work.tmp.fd(), self.spare)
        except OSError:
            self.spare = None  # no links here: every whiteout is an inode of its own
        return name

    def _make_file(self, upper: RealDir, name: bytes) -> None:
        mark = wh_files.PREFIX + name
        _make_empty(mark, upper.fd())
        upper.note_wh_file(mark, present=True)

    @contextmanager
    def _file_made(self, upper: RealDir, name: bytes) -> Iterator[None]:
        """A `.wh.` file that goes again when what it is made for fails in the block."""
        self._make_file(upper, name)
        try:
            yield
        except BaseException:
            self.drop_file_mark(upper, name)
            raise

    @contextmanager
    def _made(self) -> Iterator[bytes]:
        """A whiteout device in work, which goes again when what it is made for fails in the block."""
        whiteout = self._make()
        try:
            yield whiteout
        except BaseException:
            self._work.unlink(whiteout)
            raise

    @contextmanager
    def hidden(self, upper: RealDir, name: bytes) -> Iterator[None]:
        """Keep what the lowers have of `name` hidden while, in the block, nothing of that name is in the upper.

        Where the filesystem can exchange, nothing is ever missing there. Else a `.wh.` file hides it, so that a crash
        shows the state before or after; a name that is too long for one is shown by a crash in the wrong moment. Such a
        filesystem need not replace a file in one step either: fuse2fs removes it first (misc/fuse2fs.c, op_rename).
        """
        capabilities = self._work.capabilities
        if capabilities.exchange:
            yield
            return
        with ExitStack() as mark:
            if capabilities.whiteout_devices:
                try:
                    mark.enter_context(self._file_made(upper, name))
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
            yield
        if capabilities.whiteout_devices:
            self.drop_file_mark(upper, name)

    # -- hiding ---------------------------------------------------------------------------------------------------

    def cover(self, upper: RealDir, name: bytes) -> None:
        """Hide `name` of the lowers; nothing of that name is in the upper directory.

        Raises:
            OSError: ENOSPC, ENAMETOOLONG (in `.wh.` form), EROFS, EDQUOT.
        """
        if not self._work.capabilities.whiteout_devices:
            self._make_file(upper, name)
        elif not self._cover_with_spare(upper, name):
            with self._made() as whiteout:
                self._work.install(whiteout, upper, name)

    def _cover_with_spare(self, upper: RealDir, name: bytes) -> bool:
        """Cover a name by one more link of the spare device; False where nothing was done, whatever the reason, but
        for EEXIST."""
        if self.spare is None:
            return False
        try:
            os.link(self.spare, name, src_dir_fd=self._work.tmp.fd(), dst_dir_fd=upper.fd(), follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            return False
        return True

    def replace_file(self, upper: RealDir, name: bytes) -> None:
        """Put a whiteout in the place of the non-directory `name` of the upper."""
        if not self._work.capabilities.whiteout_devices:
            with self._file_made(upper, name):
                upper.unlink(name)
            return
        with self._made() as whiteout, self.hidden(upper, name):
            self._work.install_over(whiteout, upper, name, directories=False)

    def replace_directory(self, upper: RealDir, name: bytes) -> bytes:
        """Put a whiteout in the place of the directory `name`, which moves to work under the name returned."""
        work = self._work
        if not work.capabilities.whiteout_devices:
            with self._file_made(upper, name):
                return work.take(upper, name)
        with self._made() as whiteout, self.hidden(upper, name):
            taken = work.install_over(whiteout, upper, name, directories=True)
            assert taken is not None, "a directory is never replaced by one rename"
            return taken

    def make_opaque(self, held: RealObject, directory: RealDir | None = None) -> None:
        """Mark a directory of the upper (or of work) so that nothing of the lowers shows in it.

        Args:
            held: the directory, by a descriptor.
            directory: the same, where it is known already.

        Raises:
            OSError: of setxattr(2) or open(2).
        """
        prefix = self._work.capabilities.xattr_prefix
        if prefix is not None:
            as_owner_of(held, lambda: held.setxattr(prefix + xattr_names.OPAQUE, b"y"))
            return
        as_owner_of(held, lambda: _make_empty(wh_files.OPAQUE, held.fd))
        if directory is not None:
            directory.note_wh_file(wh_files.OPAQUE, present=True)

    # -- removing ---------------------------------------------------------------------------------------------------

    def drop_file_mark(self, upper: RealDir, name: bytes) -> None:
        """Remove `.wh.NAME` where one lies; called after NAME itself hides what lies below.

        fuse-overlayfs lets the mark hide NAME of its own layer too, so that it should not stay. What resists does,
        and is logged: everybody sees NAME already.
        """
        try:
            if upper.hides(name):
                mark = wh_files.PREFIX + name
                upper.unlink(mark)
                upper.note_wh_file(mark, present=False)
        except OSError as error:
            log.warning("the mark .wh.%s beside %r stays: %s", os.fsdecode(name), name, error)

    def install(self, temporary: bytes, upper: RealDir, name: bytes, *, is_directory: bool, occupied: bool) -> None:
        """Put a finished object from work at a name of the upper.

        Args:
            occupied: a whiteout or a file is there, and is replaced.

        Raises:
            OSError: EEXIST for what is there though nothing should be; nothing has changed then.
        """
        if not occupied:
            self._work.install(temporary, upper, name)
            return
        with self.hidden(upper, name):
            replaced = self._work.install_over(temporary, upper, name, directories=is_directory)
        if replaced is not None:
            self._work.unlink(replaced)

    def move_away(self, upper: RealDir, name: bytes, target: RealDir, new_name: bytes) -> None:
        """Rename `name`, leaving a whiteout in its place; what is at the target, not a directory, is replaced.

        One rename with RENAME_WHITEOUT. Without it a file has both names for a moment (a link, then the whiteout), and
        a `.wh.` file hides what a lower has in the old place of a directory.
        """
        work = self._work
        if not work.capabilities.whiteout_devices:
            with self._file_made(upper, name):
                upper.rename(name, target, new_name)
        elif work.capabilities.whiteout:
            upper.rename(name, target, new_name, syscalls.RENAME_WHITEOUT)
        else:
            with self._made() as whiteout:
                st = upper.object(name).stat()
                move = self._move_directory if stat.S_ISDIR(st.st_mode) else self._move_file
                move(whiteout, upper, name, target, new_name)

    def _move_directory(self, whiteout: bytes, upper: RealDir, name: bytes, target: RealDir, new_name: bytes) -> None:
        with self.hidden(upper, name):
            upper.rename(name, target, new_name)
            try:
                self._work.install(whiteout, upper, name)
            except BaseException:
                target.rename(new_name, upper, name)
                raise

    def _move_file(self, whiteout: bytes, upper: RealDir, name: bytes, target: RealDir, new_name: bytes) -> None:
        work = self._work
        with ExitStack() as undo:
            replaced = self._linked(target, new_name)
            if replaced is not None:
                undo.callback(work.unlink, replaced)
            second = self._linked(upper, name)
            assert second is not None
            undo.callback(work.unlink, second)
            work.install_over(second, target, new_name, directories=False)
            undo.pop_all()
            if replaced is None:
                undo.callback(target.unlink, new_name)
            else:
                undo.callback(work.install_over, replaced, target, new_name, directories=False)
            work.install_over(whiteout, upper, name, directories=False)
            undo.pop_all()
        if replaced is not None:
            work.unlink(replaced)

    def _linked(self, real: RealDir, name: bytes) -> bytes | None:
        """A second name in work for an object of the upper; None where there is none."""
        second = self._work.new_name()
        try:
            real.object(name).link(self._work.tmp.fd(), second)
        except FileNotFoundError:
            return None
        return second


def _make_empty(mark: bytes, directory_fd: int) -> None:
    """Make a `.wh.` file. Whatever has that name already says the same: it is not opened, and so not waited for."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0, dir_fd=directory_fd))
    except FileExistsError:
        pass
