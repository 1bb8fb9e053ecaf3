"""An image that the kernel has mounted, by a loop device.

The mount is made by fsopen(2) and fsmount(2), and was never in a tree; the device is freed by itself
(fuseunion/images/loops.py). So the kernel does all that has to be done in the end, with the last descriptor, after
kill -9 too: it writes out, marks the filesystem as clean, frees the device, and lets go of the file.

The mount has the flags that one of a program has, nosuid and nodev: what is shown of set-ID bits and devices is decided
where the union is mounted, and a filesystem mounted nosuid is one that metacopy marks are not believed of.
"""

import errno
import logging
import os
from contextlib import ExitStack

from fuseunion.images import loops, recognise
from fuseunion.images.layers.mounted import AT_MOST, SOON, Mounted
from fuseunion.images.layers.programs import Wanted
from fuseunion.images.recognise import Kind
from fuseunion.linux import syscalls

_log = logging.getLogger("fuseunion.images")

_TYPES = {Kind.SQUASHFS: b"squashfs", Kind.EXT: b"ext4"}
"""What knows ext2 and ext3 too."""


class ByKernel(Mounted):
    """An image in a mount of the kernel's.

    Attributes:
        mount_fd: of the detached mount, which can be put where overlayfs finds it.
        loop: the name of the device.

    Raises:
        OSError: the kernel cannot: no loop devices, no such filesystem, a feature that it does not know, a damaged one.
    """

    def __init__(self, path: str, wanted: Wanted, image_fd: int) -> None:
        with ExitStack() as undo:
            device = loops.take(image_fd, wanted.offset, _size(wanted, image_fd), writable=wanted.writable)
            undo.callback(os.close, device.about_fd)
            try:
                self.mount_fd = _mount(device.fd, wanted)
            finally:
                os.close(device.fd)
            undo.callback(os.close, self.mount_fd)
            self._top_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.mount_fd)
            undo.callback(os.close, self._top_fd)
            self.root_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.mount_fd)
            undo.callback(os.close, self.root_fd)
            super().__init__(path, wanted, image_fd)
            undo.pop_all()
        self._device = device
        self.loop = device.name
        self.device = os.fstat(self.root_fd).st_dev

    @property
    def by(self) -> str:
        """See Mounted."""
        return f"the kernel, /dev/{self.loop}"

    def let_go(self) -> None:
        """See Mounted."""
        self._leave()
        self._close()

    def finish(self) -> None:
        """See Mounted."""
        try:
            failed = self._written_out()
            self._leave()
            if self._await_end() and self.writable:
                self._put_on_disk("the kernel could not finish it, and says why in dmesg")
            if failed is not None:
                raise self._cannot_be_written(failed)
        finally:
            self._close()

    def _written_out(self) -> OSError | None:
        """What went wrong in writing, now or since it was mounted; to unmount would tell nobody (syncfs(2))."""
        if self.writable:
            try:
                syscalls.syncfs(self._top_fd)
            except OSError as error:
                return error
        return None

    def _await_end(self) -> bool:
        if not loops.wait_for_end(self._device, SOON):
            _log.info("waiting for the kernel, which writes out '%s' (/dev/%s)", self.path, self.loop)
            if not loops.wait_for_end(self._device, AT_MOST):
                _log.error("/dev/%s still has '%s' after %g seconds", self.loop, self.path, AT_MOST)
                return False
        return True

    def _leave(self) -> None:
        for fd in (self.mount_fd, self._top_fd):
            if fd >= 0:
                os.close(fd)
        self.mount_fd = self._top_fd = -1

    def _close(self) -> None:
        self._leave()
        for fd in (self._image_fd, self._device.about_fd):
            if fd >= 0:
                os.close(fd)
        self._image_fd = -1
        self._device = self._device._replace(about_fd=-1)


def _size(wanted: Wanted, image_fd: int) -> int:
    """How much of the file the device shows, 0 for all: sectors, so that what is not a whole one is beyond its end.

    Raises:
        OSError: EINVAL: the filesystem does not begin or end at a sector.
    """
    room = os.fstat(image_fd).st_size - wanted.offset if wanted.size is None else wanted.size
    needed = recognise.size_of("", wanted.kind, image_fd, wanted.offset)
    if wanted.offset % loops.SECTOR or needed > room - room % loops.SECTOR:
        raise OSError(errno.EINVAL, f"it does not begin and end at a multiple of {loops.SECTOR} bytes")
    return 0 if wanted.size is None else room - room % loops.SECTOR


def _mount(device_fd: int, wanted: Wanted) -> int:
    """A descriptor of a detached mount of a device."""
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    context = syscalls.fsopen(_TYPES[wanted.kind])
    try:
        # The device that was taken, whatever its name leads to.
        syscalls.fsconfig_set_string(context, b"source", b"/proc/self/fd/%d" % device_fd)
        if not wanted.writable:
            attributes |= syscalls.MOUNT_ATTR_RDONLY
            syscalls.fsconfig_set_flag(context, b"ro")
        if wanted.kind is Kind.EXT:
            # The image itself may ask for a panic.
            syscalls.fsconfig_set_string(context, b"errors", b"remount-ro")
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)
