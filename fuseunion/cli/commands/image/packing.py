"""`fuseunion image pack`, `unpack` and `squash`."""

from __future__ import annotations

import os
from contextlib import ExitStack

from fuseunion.cli.commands.image.making import type_of
from fuseunion.cli.parser import Arguments
from fuseunion.cli.progress import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.images.tools import sizes
from fuseunion.images.tools.ext import creating
from fuseunion.images.tools.opened import Access, open_image
from fuseunion.images.tools.trees import packing, squashing
from fuseunion.images.tools.trees.transplant import Lost
from fuseunion.linux.mountinfo import mounts
from fuseunion.mounting import log
from fuseunion.mounting.prepare import default_work_path
from fuseunion.offline.upkeep.holding import hold


def pack(asked: Arguments) -> int:
    """A directory into an image."""
    path, file = asked.operands
    with ExitStack() as stack:
        upper = hold(stack, path, asked.work)
        objects, size = packing.measure(upper)
        if asked.size is not None:
            size = creating.whole_blocks(creating.Wish(sizes.parse(asked.size, "--size"))).size
        with Progress("pack", objects) as progress:
            lost = packing.pack(upper, file, size, type_of(asked), progress, objects)
    _tell(lost)
    print(f"packed {lost.count} objects into '{file}', {sizes.shown(size)}")
    return ExitCode.OK


def unpack(asked: Arguments) -> int:
    """An image into a directory."""
    file, path = asked.operands
    with ExitStack() as stack:
        image = open_image(stack, file, Access.READ)
        image.require_ext()
        work = default_work_path(os.path.abspath(path))
        with Progress("unpack") as progress:
            lost = packing.unpack(image, path, work, progress)
    _tell(lost)
    print(f"unpacked {lost.count} objects into '{path}'")
    return ExitCode.OK


def _tell(lost: Lost) -> None:
    for line in lost.lines():
        log.tell(f"warning: {line}")


def squash(asked: Arguments) -> int:
    """A directory, or a mount, into a squashfs image."""
    path, file = asked.operands
    with ExitStack() as stack:
        if _is_mounted(path):
            if asked.work is not None:
                raise UserError(f"--work goes with an UPPER, and '{path}' is a mount")
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
        else:
            fd = hold(stack, path, asked.work).root_fd
        with Progress("squash", 100, every=1) as progress:
            squashing.squash(fd, path, file, progress)
    print(f"squashed '{path}' into '{file}', {sizes.shown(os.stat(file).st_size)}")
    return ExitCode.OK


def _is_mounted(path: str) -> bool:
    """Whether something is mounted exactly there: then what it shows is meant."""
    real = os.path.realpath(path)
    try:
        return any(mount.target == real for mount in mounts())
    except OSError:
        return os.path.ismount(path)
