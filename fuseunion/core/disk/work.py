"""The work directory: where everything is made before it is shown.

    WORK/work/    copy-ups, replacements and removed directories on their way; a crash leaves garbage here and nowhere
                  else, and the next mount removes it (the kernel and fuse-overlayfs use the same place)
    WORK/links/   the hard-link index (link_index.py); stays, because it is needed after a remount

It lies on the upper's filesystem, so that each thing enters the upper by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import stat

from fuseunion.core.disk import trees
from fuseunion.core.disk.capabilities import Capabilities
from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.linux import f_types, owned, syscalls
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error
from fuseunion.steps import Steps

log = logging.getLogger("fuseunion.work")

# Left in WORK/work by a volatile mount (fs/overlayfs/super.c ovl_make_workdir): not ours to remove.
_VOLATILE_MARK = "incompat"

_MODE = 0o700

_NUMBERED = re.compile(rb"#([0-9a-f]{1,15})")

INNER = b"work"

_INNER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inner(work_fd: int) -> int:
    """An O_RDONLY descriptor of WORK/work, with mode 0700.

    It belongs to this user, or to the owner of WORK, lies on the same mount, and is a directory: no link is followed,
    and nothing else is changed. The kernel leaves its own with mode 000.

    Args:
        work_fd: a descriptor of WORK.

    Raises:
        OSError: ENOENT; ENOTDIR for a link; EPERM, with the reason as its text; EXDEV where something is mounted.
    """
    fd = os.open(INNER, _INNER_FLAGS, dir_fd=work_fd)
    try:
        st, above = os.fstat(fd), os.fstat(work_fd)
        if st.st_dev != above.st_dev:
            raise os_error(errno.EXDEV, INNER)
        if st.st_uid not in (os.geteuid(), above.st_uid):
            raise OSError(errno.EPERM, f"belongs to another user ({st.st_uid})", INNER)
        inner = RealObject(fd)
        if stat.S_IMODE(st.st_mode) != _MODE:
            inner.chmod(_MODE)
        return inner.open(os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(fd)


class WorkDirectory:
    """The work directory of one mount.

    Args:
        fd: an O_RDONLY|O_DIRECTORY descriptor of it, which this object owns from now on.
        label: how messages name it.
        allow_devices: False to write whiteouts as `.wh.` files even where devices could be made.
        descriptors: the budget of the union.

    Raises:
        OSError: when it cannot be prepared.
    """

    def __init__(
        self, fd: int, label: str, *, allow_devices: bool = True, descriptors: Descriptors | None = None
    ) -> None:
        self.layer = Layer(fd, writable=True, label=label, descriptors=descriptors)
        root = self.layer.root
        try:
            self.tmp = self._inner(root)
        except OSError:
            self.layer.close()
            raise
        self.links = root.child(b"links")
        self._names = itertools.count()
        try:
            self.clean()
            self.capabilities = Capabilities.probe(self.tmp.fd(), allow_devices=allow_devices)
        except OSError:
            self.tmp.unpin()
            self.layer.close()
            raise

    @staticmethod
    def _inner(root: RealDir) -> RealDir:
        try:
            os.mkdir(INNER, _MODE, dir_fd=root.fd())
        except FileExistsError:
            pass  # of an earlier mount, or the kernel's
        real = root.child(INNER)
        real.pin(open_inner(root.fd()))
        return real

    @property
    def has_index(self) -> bool:
        """True when the directory must outlive the mount, because it holds the link index."""
        return bool(self.links.names()) if self.layer.root.stat(b"links") is not None else False

    def close(self) -> None:
        """Remove what is left in WORK/work and close every descriptor."""
        try:
            self.clean()
            if not self.has_index and self.layer.root.stat(b"links") is not None:
                os.rmdir(b"links", dir_fd=self.layer.root.fd())
        except OSError as error:
            log.warning("cannot clean the work directory %s: %s", self.layer.label, error)
        finally:
            self.tmp.unpin()
            self.layer.close()

    # -- temporary names ---------------------------------------------------------------------------------------------

    def new_name(self) -> bytes:
        """A name that is free in WORK/work."""
        return b"#%x" % next(self._names)

    def unlink(self, name: bytes) -> None:
        """Remove one non-directory of WORK/work; garbage that resists is logged and left for the next mount."""
        try:
            self.tmp.unlink(name)
        except OSError as error:
            log.warning("cannot remove work file %r: %s", name, error)

    # -- into the upper, and out of it -------------------------------------------------------------------------------

    def install(self, name: bytes, target: RealDir, new_name: bytes) -> None:
        """Put a finished object from work into the upper, where nothing of that name may be.

        Raises:
            OSError: EEXIST when something is there; nothing has changed then, as with any other error.
        """
        if self.capabilities.noreplace:
            self.tmp.rename(name, target, new_name, syscalls.RENAME_NOREPLACE)
            return
        if target.stat(new_name) is not None:
            raise os_error(errno.EEXIST, new_name)
        self.tmp.rename(name, target, new_name)

    def install_over(self, name: bytes, target: RealDir, new_name: bytes, *, directories: bool) -> bytes | None:
        """Put a finished object from work into the upper, in the place of what is there.

        One rename, or an exchange where a directory takes part (fs/overlayfs/dir.c ovl_create_over_whiteout). Where
        the filesystem cannot exchange, what is there moves to work first, and back if the second rename fails: a crash
        in between leaves the name free.

        Args:
            directories: one of the two is a directory, or may be.

        Returns:
            The name in work of what was there; None when it is gone.

        Raises:
            OSError: nothing has changed then.
        """
        if not directories:
            self.tmp.rename(name, target, new_name)
            return None
        if self.capabilities.exchange:
            self.tmp.rename(name, target, new_name, syscalls.RENAME_EXCHANGE)
            return name
        taken = self.take(target, new_name)
        try:
            self.install(name, target, new_name)
        except BaseException:
            self.install(taken, target, new_name)
            raise
        return taken

    def take(self, source: RealDir, name: bytes) -> bytes:
        """Move an object of the upper into work; returns its new name."""
        taken = self.new_name()
        source.rename(name, self.tmp, taken)
        return taken

    def write_out(self) -> None:
        """Have a FUSE filesystem write out everything; may run in any thread.

        syncfs(2) is not passed on to one (fs/fuse/inode.c, fuse_sync_fs). fsync(2) of a file that is open for writing
        is, and fuse2fs, which shows images, then writes out all that it has (misc/fuse2fs.c, op_fsync).

        Raises:
            OSError: EIO, ENOSPC, EDQUOT.
        """
        if syscalls.filesystem_type(self.tmp.fd()) != f_types.FUSE:
            return
        name = self.new_name()
        fd = owned.new_file(name, self.tmp.fd())
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
            # It may be called open for a moment yet, and then not be removed for want of space; `clean` does it later.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.tmp.fd())

    # -- removing ---------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Remove everything in WORK/work."""
        left = [os.fsencode(name) for name in os.listdir(self.tmp.fd()) if name != _VOLATILE_MARK]
        # Subdirectories are moved here on their way out: not onto what a crash left.
        self._names = itertools.count(1 + max(map(_number_of, left), default=-1))
        for name in left:
            self.remove_tree(name)

    def removal(self, name: bytes) -> Steps[None]:
        """As `remove_tree`, in steps."""
        return trees.removal(self.tmp, name)

    def remove_tree(self, name: bytes) -> None:
        """Remove one object of WORK/work with all that is in it, if it is there (trees.remove)."""
        trees.remove(self.tmp, name)


def _number_of(name: bytes) -> int:
    """The number in a name that `new_name` or the kernel (fs/overlayfs/dir.c ovl_lookup_temp) gave, else -1.

    A longer one is none of these: it is in the way of no new name, and would make new names too long.
    """
    match = _NUMBERED.fullmatch(name)
    return int(match[1], 16) if match else -1
