"""The first exchange with the kernel, FUSE_INIT, with what libfuse does not know to ask for.

libfuse 3.14 answers FUSE_INIT by itself, and pyfuse3 lets nobody add a flag. So it first serves a pair of sockets: we
take the kernel's request over to it, complete its answer on the way back, and then put the real descriptor in the place
of the socket.

    kernel  <---- /dev/fuse ---->  negotiate  <---- socket pair ---->  libfuse        until FUSE_INIT is answered
    kernel  <------------------- /dev/fuse ------------------------->  libfuse        from then on

The layouts are those of include/uapi/linux/fuse.h, struct fuse_init_in and fuse_init_out, each behind its header.
"""

import errno
import os
import socket
import struct

import trio

from fuseunion.linux.os_error import os_error

_NO_EXPORT_SUPPORT = 1 << 38
"""Linux 6.9: file handles cannot be opened, so name_to_handle_at(2) answers EOPNOTSUPP. Without it the kernel gives out
handles that are stale as soon as it forgets the inode, because a forgotten number leads nowhere here."""

WANTED = _NO_EXPORT_SUPPORT
"""Flags of FUSE_INIT."""

_INIT_EXT = 1 << 30
_HIGH = 32
_IN_FLAGS, _IN_FLAGS2 = 40 + 12, 40 + 16
_OUT_FLAGS, _OUT_FLAGS2 = 16 + 12, 16 + 32
_WORD = struct.Struct("=I")
_LARGEST = 1 << 16


class Negotiation:
    """The exchange for one mount.

    Args:
        device: the /dev/fuse descriptor; it ends under the number `served`.

    Attributes:
        served: the descriptor that libfuse is to be given.
        done: it is /dev/fuse now.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self.done = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        self.served = theirs.detach()

    def close(self) -> None:
        """It holds nothing."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do it, while pyfuse3 serves.

        Raises:
            OSError: ENODEV when the mount has gone already; EIO and the like of /dev/fuse.
        """
        task_status.started()
        with self._ours as ours:
            ours.setblocking(False)
            await trio.lowlevel.wait_readable(self._device)
            request = os.read(self._device, _LARGEST)
            ours.send(request)
            await trio.lowlevel.wait_readable(ours)
            _answer(self._device, completed(request, ours.recv(_LARGEST)))
            # What waits for the socket looks again, at what the number means from here on.
            trio.lowlevel.notify_closing(self.served)
            os.dup2(self._device, self.served, inheritable=False)
            os.close(self._device)
            self.done = True


def _answer(device: int, reply: bytes) -> None:
    """Write the reply; ENODEV when it was unmounted meanwhile, and with it the request it answers."""
    try:
        os.write(device, reply)
    except FileNotFoundError as error:  # fs/fuse/dev.c fuse_dev_do_write: no such request, nobody waits any more
        raise os_error(errno.ENODEV) from error


def completed(request: bytes, reply: bytes) -> bytes:
    """The reply to a FUSE_INIT with the flags that we want and the kernel offers.

    Args:
        request, reply: whole messages, with their headers.
    """
    if len(request) < _IN_FLAGS2 + _WORD.size or len(reply) < _OUT_FLAGS2 + _WORD.size:
        return reply  # a kernel before 5.17 has no second word of flags; an error has no body
    offered = _flags(request, _IN_FLAGS, _IN_FLAGS2)
    answer = bytearray(reply)
    flags = _flags(reply, _OUT_FLAGS, _OUT_FLAGS2) | WANTED & offered
    if flags >> _HIGH:
        flags |= _INIT_EXT
    _WORD.pack_into(answer, _OUT_FLAGS, flags & 0xFFFFFFFF)
    _WORD.pack_into(answer, _OUT_FLAGS2, flags >> _HIGH)
    return bytes(answer)


def _flags(message: bytes, low: int, high: int) -> int:
    (first,) = _WORD.unpack_from(message, low)
    (second,) = _WORD.unpack_from(message, high) if first & _INIT_EXT else (0,)
    return int(first) | int(second) << _HIGH
