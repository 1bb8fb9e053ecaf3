"""Which program shows which kind of image, with which arguments, and which package it comes in.

Each is told where in the file the filesystem begins by its own option, so that one partition of a SIF is used as it
lies there. It gets the file as a descriptor that we have opened and recognised, and opens that anew through /proc
(proc(5), /proc/PID/fd): nobody can give the name to another file meanwhile.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.recognise import Kind

IMAGE_FD = 3
"""What the descriptor of the image is in the program."""

SOURCE = f"/proc/self/fd/{IMAGE_FD}"


class Wanted(NamedTuple):
    """How an image is to be shown.

    Attributes:
        kind: what it is.
        offset: where in the file it begins, in bytes.
        writable: it may be changed.
        size: how much of the file it may have, in bytes; None for all up to the end.
        as_root: the program does not check whose a file is: who may read the image file may read all that is in it,
            and who may write it could change all of it anyhow.
    """

    kind: Kind
    offset: int = 0
    writable: bool = False
    as_root: bool = True
    size: int | None = None


class _Program(NamedTuple):
    names: Sequence[str]
    remedy: str
    arguments: Callable[[Wanted], list[str]]


def command(wanted: Wanted, path: str) -> list[str]:
    """The command line, but for the directory at its end, of the program that shows an image in the foreground.

    Args:
        wanted: the image.
        path: of the file, for the message.

    Raises:
        UserError: UNAVAILABLE, with the package to install.
    """
    program = _PROGRAMS[wanted.kind]
    # What pip has installed with us lies beside the interpreter, which need not be in PATH.
    paths = (os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable))
    found = next(filter(None, (shutil.which(name, path=path) for path in paths for name in program.names)), None)
    if found is None:
        raise UserError(
            f"{wanted.kind.value} '{path}' needs {' or '.join(program.names)}, which is not installed; "
            f"{program.remedy}",
            ExitCode.UNAVAILABLE,
        )
    return [found, *program.arguments(wanted)]


def _squashfs(wanted: Wanted) -> list[str]:
    return ["-f", "-o", f"ro,offset={wanted.offset}", SOURCE]


def _ext(wanted: Wanted) -> list[str]:
    words = [f"offset={wanted.offset}", *(["fakeroot"] if wanted.as_root else [])]
    # `norecovery` belongs to `ro`, where fuse2fs would else want to write what is in the journal.
    words += [] if wanted.writable else ["ro", "norecovery"]
    return ["-f", "-o", ",".join(words), SOURCE]


def _tar(wanted: Wanted) -> list[str]:
    # The list of what is in the archive is kept in memory, and not written beside it.
    return ["-f", "--index-file", ":memory:", "--index-minimum-file-count", "0", SOURCE]


_PROGRAMS = {
    Kind.SQUASHFS: _Program(("squashfuse_ll", "squashfuse"), "install the package squashfuse", _squashfs),
    Kind.EXT: _Program(("fuse2fs",), "install the package fuse2fs (in some systems part of e2fsprogs)", _ext),
    Kind.TAR: _Program(("ratarmount",), "install it with: pip install 'fuseunion[tar]'", _tar),
}
