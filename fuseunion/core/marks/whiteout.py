"""Every on-disk mark that hides something: all forms are read, one is written.

Read, mixed within one stack of layers:

    whiteout   0/0 character device (kernel), empty file with xattr `whiteout` (kernel 6.7 "xwhiteout"),
               file `.wh.NAME` (AUFS, OCI, fuse-overlayfs)
    opaque     xattr `opaque` = "y" as trusted.overlay., user.overlay. or user.fuseoverlayfs.,
               file `.wh..wh..opq` (AUFS, OCI, fuse-overlayfs)

Written: the device, hard-linked from one inode as the kernel does it (fs/overlayfs/dir.c ovl_whiteout), and the xattr;
`.wh.` files only where the upper's filesystem cannot hold the one or the other.

A `.wh.NAME` hides NAME in the layers below its own, never in its own (OCI image specification, layer.md).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fuseunion.core.disk.realdir import AUFS_OPAQUE, AUFS_PREFIX, RealDir, as_owner_of, proc_fd
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format import xattr_names
from fuseunion.linux import syscalls

log = logging.getLogger("fuseunion.whiteout")


def is_device(st: os.stat_result) -> bool:
    """True for a 0/0 character device."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def is_whiteout(real: RealDir, name: bytes, st: os.stat_result) -> bool:
    """True when the file `name`, whose lstat is `st`, is a whiteout in device or xattr form."""
    if is_device(st):
        return True
    if stat.S_ISREG(st.st_mode) and st.st_size == 0:
        return xattr_names.WHITEOUT in marks_of(real, name)
    return False


def marks_of(real: RealDir, name: bytes) -> dict[bytes, bytes]:
    """The union's marks on one object (xattr_names.marks).

    An object of the upper that its owner closed tells its marks all the same: without them the lower would show again.
    One of a lower that the daemon may not read counts as having none.
    """
    if real.is_covered(name):
        return {}
    try:
        return xattr_names.marks(real.proc_path(name))
    except PermissionError:
        if not real.layer.writable:
            return {}
    with real.held(name) as fd:
        return as_owner_of(fd, lambda: xattr_names.marks(proc_fd(fd), follow=True))


def is_opaque(parent: RealDir, directory: RealDir, marks: dict[bytes, bytes] | None = None) -> bool:
    """True when `directory` (a child of `parent`) hides the directories of the layers below."""
    if marks is None:
        marks = marks_of(parent, directory.name)
    return marks.get(xattr_names.OPAQUE) == b"y" or directory.has_opaque_file()


class WhiteoutWriter:
    """Writes and removes marks in the upper; each change of the tree is one rename or link, so a crash shows
    the state before or after, except where the filesystem lacks the flags of renameat2 (see each method)."""

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
                os.link(self.spare, name, src_dir_fd=work.tmp.fd(), dst_dir_fd=work.tmp.fd(), follow_symlinks=False)
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
            os.link(name, self.spare, src_dir_fd=work.tmp.fd(), dst_dir_fd=work.tmp.fd(), follow_symlinks=False)
        except OSError:
            self.spare = None  # no links here: every whiteout is an inode of its own
        return name

    def _make_file(self, upper: RealDir, name: bytes) -> None:
        mark = AUFS_PREFIX + name
        os.close(os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0, dir_fd=upper.fd()))
        upper.note_mark(mark, True)

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

    # -- hiding ---------------------------------------------------------------------------------------------------

    def cover(self, upper: RealDir, name: bytes) -> None:
        """Hide `name` of the lowers; nothing of that name is in the upper directory.

        Raises:
            OSError: ENOSPC, ENAMETOOLONG (in `.wh.` form), EROFS, EDQUOT.
        """
        if not self._work.capabilities.whiteout_devices:
            self._make_file(upper, name)
            return
        with self._made() as whiteout:
            self._work.publish(whiteout, upper, name)

    def replace_file(self, upper: RealDir, name: bytes) -> None:
        """Put a whiteout in the place of the non-directory `name` of the upper."""
        if not self._work.capabilities.whiteout_devices:
            with self._file_made(upper, name):
                os.unlink(name, dir_fd=upper.fd())
            return
        with self._made() as whiteout:
            os.rename(whiteout, name, src_dir_fd=self._work.tmp.fd(), dst_dir_fd=upper.fd())

    def replace_directory(self, upper: RealDir, name: bytes) -> bytes:
        """Put a whiteout in the place of the directory `name`, which moves to work under the name returned.

        Without RENAME_EXCHANGE the directory is made opaque first; a crash then leaves it empty, or gone with the
        lower one showing, but never half removed.
        """
        work = self._work
        if not work.capabilities.whiteout_devices:
            with self._file_made(upper, name):
                return work.take(upper, name)
        with self._made() as whiteout:
            if work.capabilities.exchange:
                work.exchange(whiteout, upper, name)
                return whiteout
            with upper.held(name) as fd:
                self.make_opaque(fd)
            return self._replace_by_two(whiteout, upper, name)

    def _replace_by_two(self, new: bytes, upper: RealDir, name: bytes) -> bytes:
        """Publish `new` from work where `name` lies, which moves to work: two renames, and back if the second fails."""
        work = self._work
        taken = work.take(upper, name)
        try:
            work.publish(new, upper, name)
        except BaseException:
            work.publish(taken, upper, name)
            raise
        return taken

    def make_opaque(self, fd: int, directory: RealDir | None = None) -> None:
        """Mark a directory of the upper (or of work) so that nothing of the lowers shows in it.

        Args:
            fd: the directory.
            directory: the same, where it is known already.

        Raises:
            OSError: of setxattr(2) or open(2).
        """
        prefix = self._work.capabilities.xattr_prefix
        if prefix is not None:
            as_owner_of(fd, lambda: os.setxattr(proc_fd(fd), prefix + xattr_names.OPAQUE, b"y"))
            return
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW
        os.close(as_owner_of(fd, lambda: os.open(AUFS_OPAQUE, flags, 0, dir_fd=fd)))
        if directory is not None:
            directory.note_mark(AUFS_OPAQUE, True)

    # -- removing ---------------------------------------------------------------------------------------------------

    def drop_file_mark(self, upper: RealDir, name: bytes) -> None:
        """Remove `.wh.NAME` where one lies; called after NAME itself hides what lies below.

        fuse-overlayfs lets the mark hide NAME of its own layer too, so that it should not stay. What resists does,
        and is logged: everybody sees NAME already.
        """
        try:
            if upper.hides(name):
                mark = AUFS_PREFIX + name
                os.unlink(mark, dir_fd=upper.fd())
                upper.note_mark(mark, False)
        except OSError as error:
            log.warning("the mark .wh.%s beside %r stays: %s", os.fsdecode(name), name, error)

    def swap_in(self, temporary: bytes, upper: RealDir, name: bytes, *, is_directory: bool) -> None:
        """Publish `temporary` from work over a whiteout device called `name`.

        A directory cannot be renamed over a device: the two are exchanged (fs/overlayfs/dir.c
        ovl_create_over_whiteout), or, where that is not possible, the device goes first.
        """
        work = self._work
        if not is_directory:
            os.rename(temporary, name, src_dir_fd=work.tmp.fd(), dst_dir_fd=upper.fd())
        elif work.capabilities.exchange:
            work.exchange(temporary, upper, name)
            work.unlink(temporary)
        else:
            work.unlink(self._replace_by_two(temporary, upper, name))

    def move_away(self, upper: RealDir, name: bytes, target: RealDir, new_name: bytes) -> None:
        """Rename `name`, leaving a whiteout in its place; what is at the target, not a directory, is replaced.

        One rename with RENAME_WHITEOUT. Without it a file has both names for a moment (a link, then the whiteout),
        and a directory shows the lower one in its old place for a moment.
        """
        work = self._work
        if not work.capabilities.whiteout_devices:
            with self._file_made(upper, name):
                os.rename(name, new_name, src_dir_fd=upper.fd(), dst_dir_fd=target.fd())
            return
        if work.capabilities.whiteout:
            syscalls.renameat2(upper.fd(), name, target.fd(), new_name, syscalls.RENAME_WHITEOUT)
            return
        with self._made() as whiteout, ExitStack() as undo:
            st = os.stat(name, dir_fd=upper.fd(), follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                os.rename(name, new_name, src_dir_fd=upper.fd(), dst_dir_fd=target.fd())
                undo.callback(os.rename, new_name, name, src_dir_fd=target.fd(), dst_dir_fd=upper.fd())
                work.publish(whiteout, upper, name)
            else:
                replaced = self._linked(target, new_name)
                if replaced is not None:
                    undo.callback(work.unlink, replaced)
                second = self._linked(upper, name)
                assert second is not None
                undo.callback(work.unlink, second)
                os.rename(second, new_name, src_dir_fd=work.tmp.fd(), dst_dir_fd=target.fd())
                undo.pop_all()
                if replaced is None:
                    undo.callback(os.unlink, new_name, dir_fd=target.fd())
                else:
                    undo.callback(os.rename, replaced, new_name, src_dir_fd=work.tmp.fd(), dst_dir_fd=target.fd())
                os.rename(whiteout, name, src_dir_fd=work.tmp.fd(), dst_dir_fd=upper.fd())
                if replaced is not None:
                    work.unlink(replaced)
            undo.pop_all()

    def _linked(self, real: RealDir, name: bytes) -> bytes | None:
        """A second name in work for an object of the upper; None where there is none."""
        second = self._work.new_name()
        try:
            os.link(name, second, src_dir_fd=real.fd(), dst_dir_fd=self._work.tmp.fd(), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return second
