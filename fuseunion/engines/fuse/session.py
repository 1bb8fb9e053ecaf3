"""The trio side of a mount: pyfuse3's loop, signals, and an orderly end.

Importing this module imports pyfuse3 and trio, which is most of the time that a mount takes to start. So the daemon
imports it last, when nothing can be refused any more.

A mount ends in one of two ways. Somebody unmounts it: the kernel answers ENODEV, pyfuse3.main returns. Or a signal
arrives: then the mount is taken away first, in a thread, because the kernel may write dirty pages to us before
umount2(2) returns; if it is busy it leaves the tree at once, and those who still use it get ENOTCONN when we exit.
"""

import errno
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol

import pyfuse3
import trio

from fuseunion.engines.fuse.mount_point import MountPoint
from fuseunion.engines.fuse.pyfuse.negotiation import WANTED, Negotiation
from fuseunion.engines.fuse.pyfuse.operations import Operations
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.loop import WireLoop
from fuseunion.engines.fuse.wire.native.device import device

_log = logging.getLogger("fuseunion.session")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""They end the mount; blocked by the caller until the loop is there to take them, and blocked again at the end."""

_GRACE = 2.0
"""Seconds that requests under way get after a signal."""

_UNDER_WAY = 4096
"""Requests that pyfuse3 takes before the first of them is answered. Each keeps a buffer, mostly untouched, of 1 MiB; by
itself it takes 99, and who waits for a server that does not answer would keep out all others."""

_RESTARTS = 1000
"""An error that comes back at once, such as a broken /dev/fuse, must end some day."""


class Beneath(Protocol):
    """What is between libfuse and the kernel.

    Attributes:
        served: the descriptor that libfuse is to be given.
        done: it is /dev/fuse now.
    """

    served: int
    done: bool

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Do what is to be done while pyfuse3 serves; `task_status` is told when that may begin.

        Raises:
            OSError: ENODEV when the mount has gone already; EIO and the like of /dev/fuse.
        """

    def close(self) -> None:
        """Close what it holds of the layers; nobody asks for anything any more."""


def serve(
    requests: Requests,
    mount_point: MountPoint,
    *,
    on_ready: Callable[[], None],
    beside: Iterable[Callable[[], Awaitable[None]]] = (),
    timeout: float = 1e9,
    trace: bool = False,
    allow_root: bool = False,
    spin: float = 0,
) -> None:
    """Answer requests until the mount has gone.

    Args:
        requests: what they do.
        mount_point: where; its descriptor belongs to libfuse from now on.
        on_ready: called when the loop is about to take its first request.
        beside: what else runs until the mount has gone, and raises nothing.
        timeout: how long the kernel may keep entries and attributes, in seconds.
        trace: log each request.
        allow_root: answer only the mounting user and root.
        spin: how long to look for another request before sleeping, in seconds.
    Raises:
        OSError: the /dev/fuse descriptor failed.
    """
    operations = Operations(requests, timeout=timeout, trace=trace)
    beneath: Beneath
    if device is None:
        beneath = Negotiation(mount_point.fd)
    else:
        beneath = WireLoop(mount_point.fd, Answers(requests, timeout), patience=spin, trace=trace, wanted=WANTED)
    requests.device = beneath.served
    # Of the mount options libfuse needs the one that it enforces itself; the kernel's were given to mount(2).
    pyfuse3.init(operations, f"/dev/fd/{beneath.served}", {"allow_root"} if allow_root else set())
    try:
        trio.run(_main, beneath, mount_point, on_ready, beside)
    finally:
        beneath.close()
        pyfuse3.close(unmount=False)


async def _main(
    beneath: Beneath,
    mount_point: MountPoint,
    on_ready: Callable[[], None],
    beside: Iterable[Callable[[], Awaitable[None]]] = (),
) -> None:
    with trio.open_signal_receiver(*SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_on_signal, signals, mount_point, nursery.cancel_scope)
                for task in beside:
                    nursery.start_soon(task)
                on_ready()
                await nursery.start(_run_beneath, beneath, nursery.cancel_scope)
                await _answer_requests(beneath)
                nursery.cancel_scope.cancel()
        finally:
            # A program that unmounts and then finds the process alive signals it (Apptainer, systemd). It is ending,
            # and has work directory and upper to leave in order.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


async def _run_beneath(
    beneath: Beneath, session_scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    try:
        await beneath.run(task_status)
    except OSError as error:
        if not _is_unmount(error):
            _log.error("the first exchange with the kernel failed: %s", error)
        session_scope.cancel()


async def _answer_requests(beneath: Beneath) -> None:
    """pyfuse3's loop, started again when something outside our handlers breaks it.

    Handlers answer every error themselves; what is left are pyfuse3's own checks of what the kernel sends and of what a
    handler returns. The request that broke it stays unanswered, all others and the mount go on.
    """
    for _ in range(_RESTARTS):
        negotiated = beneath.done
        try:
            await pyfuse3.main(max_tasks=_UNDER_WAY)
            if negotiated or not beneath.done:
                return
            # The descriptor was exchanged beneath it.
        except Exception as error:  # noqa: BLE001 - of a library's inside, known only by what it does to us
            if _is_unmount(error):
                return
            _log.exception("pyfuse3 gave up; starting it again")
    _log.critical("pyfuse3 gave up %d times; the mount ends", _RESTARTS)


async def watch(pidfd: int, died: Callable[[], str]) -> None:
    """Log it when the program that shows a layer ends. The mount goes on: what needs that layer answers an error.

    Args:
        pidfd: of the program.
        died: what to log.
    """
    await trio.lowlevel.wait_readable(pidfd)
    _log.error("%s", died())


def _is_unmount(error: BaseException) -> bool:
    """True when reading from /dev/fuse failed because the connection is over (fs/fuse/dev.c fuse_dev_do_read)."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_unmount(part) for part in error.exceptions)
    return isinstance(error, OSError) and error.errno in (errno.ECONNABORTED, errno.ENODEV, errno.ENOTCONN)


async def _end_on_signal(signals: AsyncIterator[int], mount_point: MountPoint, session_scope: trio.CancelScope) -> None:
    async for number in signals:
        _log.info("%s: unmounting", signal.Signals(number).name)
        break
    with trio.move_on_after(_GRACE):
        try:
            await trio.to_thread.run_sync(mount_point.unmount, abandon_on_cancel=True)
        except OSError as error:
            _log.warning("cannot unmount '%s': %s", mount_point.path, error.strerror)
        except RuntimeError as error:
            # No thread can be made (threading.Thread.start), and in the loop umount2(2) could wait for ourselves.
            _log.warning("cannot unmount '%s': %s", mount_point.path, error)
    pyfuse3.terminate()
    await trio.sleep(_GRACE)
    _log.warning("requests still unanswered %g seconds after the signal are given up", _GRACE)
    session_scope.cancel()
