"""Who shows an image: the kernel, which is faster, or a program, which may be given anything."""

import logging
import os
from enum import Enum

from fuseunion.errors import ExitCode, UserError
from fuseunion.images import locks
from fuseunion.images.layers import programs, trust
from fuseunion.images.layers.by_program import ByProgram
from fuseunion.images.layers.mounted import Mounted
from fuseunion.images.layers.programs import Wanted
from fuseunion.images.recognise import Kind

_log = logging.getLogger("fuseunion.images")


class Way(Enum):
    """What the user says of it (`-o images=`)."""

    AUTO = "auto"
    """The kernel shows what it may be given (trust.py), and programs the rest, and what the kernel cannot mount."""
    FUSE = "fuse"
    KERNEL = "kernel"


def objection(path: str, fd: int, kind: Kind, way: Way, *, writable: bool) -> str | None:
    """Why the kernel does not get an image; None when it may.

    Args:
        path: of the file, as the user wrote it.
        fd: of the file, O_RDONLY; not opened yet to be written.
        kind: of the file; a SIF is judged as what is in it.
        way: what the user says.
        writable: it is to be written.

    Raises:
        UserError: UNAVAILABLE: the kernel is asked for; BUSY: somebody writes to it who says so.
    """
    if way is Way.FUSE:
        return "programs are asked for"
    try:
        reason = trust.objection(path, fd, kind)
        if reason is trust.OPEN_TO_WRITE and kind is not Kind.SIF:
            # Perhaps a mount that is just ending. Of a SIF another part may be written.
            locks.take(fd, path, exclusive=False, will_write=writable)
            locks.refuse_loop(fd, path, exclusive=False)
            reason = trust.objection(path, fd, kind)
    except OSError as error:
        reason = f"what leads to it cannot be looked at ({error.strerror})"
    if reason is not None and way is Way.KERNEL:
        raise _refused(path, kind, reason)
    return reason


def mount(path: str, wanted: Wanted, image_fd: int, way: Way, reason: str | None) -> Mounted:
    """Mount an image.

    Args:
        path: of the file, for messages.
        wanted: what it is.
        image_fd: of the file, locked; stays the caller's.
        way: what the user says.
        reason: what `objection` has said.

    Raises:
        UserError: UNAVAILABLE without the program, or where the kernel is asked for and cannot; LAYERS where the
            program refuses the image.
    """
    if reason is None:
        from fuseunion.images.layers.by_kernel import ByKernel  # for root alone

        try:
            return ByKernel(path, wanted, image_fd)
        except OSError as error:
            why = error.strerror or str(error)
            if way is Way.KERNEL:
                raise _refused(path, wanted.kind, why) from None
            _log.debug("the kernel does not mount %s: %s", path, why)
    return ByProgram(path, wanted, image_fd)


def look_at(path: str, wanted: Wanted, reason: str | None) -> None:
    """Refuse what `mount` would refuse, as far as that can be known without doing it.

    Raises:
        UserError: UNAVAILABLE without the program.
    """
    if reason is not None or not os.path.exists("/dev/loop-control"):
        programs.command(wanted, path)


def _refused(path: str, kind: Kind, why: str) -> UserError:
    return UserError(f"{kind.value} '{path}' cannot be mounted by the kernel: {why}", ExitCode.UNAVAILABLE)
