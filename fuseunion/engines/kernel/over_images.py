"""Overlayfs over images that the kernel has mounted: layers that are in no tree.

Overlayfs takes its layers by paths in the mount namespace of who mounts it, and keeps mounts of its own of them. So a
child gives them paths for that moment, in a mount namespace that ends with it, and hands over a detached mount of the
overlay (open_tree(2)), which is put at MERGED. From then on the overlay alone has the images: when it is unmounted, in
whatever way, the kernel unmounts them too and frees the loop devices.

The paths are those at which /sys tells of the loop devices, /sys/block/loop3/upper. They remain in mountinfo, where
they say which device it is, and so which file: that is how `umount` knows whose end to wait for, and `status` what to
show.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from typing import NamedTuple

from fuseunion.engines.live import LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.images import ext, loops
from fuseunion.images.layers.by_kernel import ByKernel
from fuseunion.images.layers.mounted import AT_MOST
from fuseunion.images.loops import Loop, Use
from fuseunion.linux import namespaces, syscalls
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.os_error import os_error
from fuseunion.linux.proc.holders import elsewhere
from fuseunion.mounting.options.grammar import split_unescaped
from fuseunion.mounting.prepared import Opened, Prepared

_log = logging.getLogger("fuseunion.kernel")

_ROOM = os.path.dirname(loops.place(""))
"""Covered in the child's namespace: no layer lies there, and an overlay shows nothing of what is mounted in a layer."""

_PLACE = re.compile(re.escape(_ROOM) + r"/(loop[0-9]+)(/[a-z]+)?")
_SOON = 2.0
"""Seconds after which we look for a reason why an image is still mounted."""

_INSIDE = ("", "/upper", "/work")


def path_of(prepared: Prepared, opened: Opened) -> str:
    """What overlayfs is told of a layer: its path, or that of the loop device, and what of the image it is."""
    st = os.fstat(opened.fd)
    image = next((image for image in _images(prepared) if image.device == st.st_dev), None)
    if image is None:
        return opened.label
    for inside in _INSIDE:
        try:
            if os.path.samestat(st, os.stat(f".{inside}", dir_fd=image.mount_fd, follow_symlinks=False)):
                return loops.place(image.loop) + inside
        except FileNotFoundError:
            continue  # a filesystem that is no overlay image
    raise AssertionError(f"{opened.label} is no layer of {image.path}")


def mount(prepared: Prepared, fstype: bytes, source: bytes, flags: int, data: bytes) -> None:
    """Mount an overlay at MERGED.

    Args:
        prepared: what `data` names.
        fstype, source, flags, data: as for mount(2).

    Raises:
        OSError: as mount(2).
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            code = errno.EIO
            try:
                socket.send_fds(theirs, [b"\0"], [_detached(prepared, fstype, source, flags, data)])
                code = 0
            except OSError as error:
                code = error.errno or errno.EIO
            finally:
                # Never back into the code of the parent.
                os._exit(code)
        theirs.close()
        fds = socket.recv_fds(ours, 1, 1)[1]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not fds:
        raise os_error(code if code > 0 else errno.EIO)
    try:
        syscalls.move_mount(fds[0], os.fsencode(prepared.target))
    finally:
        os.close(fds[0])


def _detached(prepared: Prepared, fstype: bytes, source: bytes, flags: int, data: bytes) -> int:
    namespaces.enter_mount_namespace()
    syscalls.mount(b"none", os.fsencode(_ROOM), b"tmpfs", 0, b"mode=0700")
    for image in _images(prepared):
        place = os.fsencode(loops.place(image.loop))
        os.mkdir(place)
        syscalls.move_mount(image.mount_fd, place)
    merged = os.fsencode(f"{_ROOM}/merged")
    os.mkdir(merged)
    syscalls.mount(source, merged, fstype, flags, data)
    return syscalls.open_tree(merged)


def _images(prepared: Prepared) -> list[ByKernel]:
    return [image for image in prepared.images if isinstance(image, ByKernel)]


def shown(path: str) -> str:
    """What a person calls a layer: the image file, where overlayfs was told of a loop device."""
    found = _PLACE.fullmatch(path)
    use = loops.use_of(found[1]) if found else None
    return use.path if use is not None else path


class Left(NamedTuple):
    """An image that an overlay has mounted.

    Attributes:
        loop: the device.
        path: of the file.
        offset: where in it the filesystem begins, in bytes.
        is_upper: the overlay writes to it.
        file_fd: of the file where the overlay writes to it and the file is found, else -1.
    """

    loop: Loop
    path: str
    offset: int
    is_upper: bool
    file_fd: int


def said_of(entry: Mount) -> tuple[str, ...]:
    """A line for each image of an overlay: which file, by which device."""
    lines = []
    for name in _names(entry):
        use = loops.use_of(name)
        if use is not None:
            lines.append(f"{use.path}: the kernel, /dev/{name}")
    return tuple(lines)


def _names(entry: Mount) -> dict[str, bool]:
    """The loop devices of an overlay, and whether it writes there."""
    upper = entry.option("upperdir") or ""
    layers = (*split_unescaped(entry.option("lowerdir") or "", ":"), upper)
    return {found[1]: layer == upper for layer in layers if (found := _PLACE.fullmatch(layer))}


def images_of(entry: Mount) -> list[Left]:
    """The images of an overlay that is about to be unmounted."""
    left = []
    for name, is_upper in _names(entry).items():
        use, loop = loops.use_of(name), loops.look_at(name)
        if use is None or loop is None:
            continue  # not seen here
        file_fd = _found(use) if is_upper else -1
        left.append(Left(loop, use.path, use.offset, is_upper, file_fd))
    return left


def _found(use: Use) -> int:
    """A descriptor of the file of a device; -1 where the path has become another's."""
    try:
        fd = os.open(use.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        _log.debug("%s is not seen here: %s", use.path, error)
        return -1
    try:
        same = loops.is_of(use.name, fd)
    except OSError as error:
        _log.debug("/dev/%s does not say what it shows: %s", use.name, error)
        same = False
    if not same:
        os.close(fd)
        return -1
    return fd


def finish(images: list[Left], live: LiveMount) -> None:
    """Wait until the kernel has unmounted the images of an overlay that was unmounted, and put them on disk.

    Raises:
        UserError: BUSY where another mount namespace has the overlay; FAILURE: one is still mounted, or cannot be
            written to disk.
    """
    try:
        for image in images:
            _await_end(image, live)
            if image.file_fd >= 0:
                _put_on_disk(image)
    finally:
        let_go(images)


def _await_end(image: Left, live: LiveMount) -> None:
    if loops.wait_for_end(image.loop, _SOON):
        return
    others = elsewhere(live.entry.device) if live.entry is not None else []
    if others:
        raise UserError(
            f"'{live.given}' is unmounted here, but '{image.path}' is still in use by {', '.join(map(str, others))}; "
            "end that too",
            ExitCode.BUSY,
        )
    if not loops.wait_for_end(image.loop, AT_MOST):
        raise UserError(
            f"'{live.given}' is unmounted, but /dev/{image.loop.name} still has '{image.path}' after {AT_MOST:g} "
            "seconds; it is complete when nobody uses it any more",
            ExitCode.FAILURE,
        )


def let_go(images: list[Left]) -> None:
    """Do not wait."""
    for image in images:
        os.close(image.loop.about_fd)
        if image.file_fd >= 0:
            os.close(image.file_fd)


def _put_on_disk(image: Left) -> None:
    try:
        os.fsync(image.file_fd)
    except OSError as error:
        raise UserError(
            f"image '{image.path}' cannot be written to disk: {error.strerror}; what was changed last may be lost",
            ExitCode.FAILURE,
        ) from None
    ext.refuse_disorder(
        image.file_fd, image.path, image.offset, "the kernel could not finish it, and says why in dmesg"
    )
