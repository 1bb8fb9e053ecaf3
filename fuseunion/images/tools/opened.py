"""An image that a command works on: opened once, recognised, and kept from everybody else meanwhile.

A filesystem has one writer or many readers; whoever mounts an image holds the same lock as a command here
(fuseunion/images/locks.py). What only looks at fixed places goes on while somebody writes, and says who.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from fuseunion.errors import ExitCode, UserError
from fuseunion.images import ext, locks, loops, recognise
from fuseunion.images.layers import showing
from fuseunion.images.layers.programs import Wanted
from fuseunion.images.layers.showing import Way
from fuseunion.images.recognise import Kind
from fuseunion.images.sif import reader
from fuseunion.images.sif.layout import ENCRYPTED, Descriptor, FsType, Sif
from fuseunion.linux import syscalls
from fuseunion.linux.proc import processes

_PATIENCE = 1.5
"""Seconds that a mount which has just ended may take to let go of its image."""


class Access(Enum):
    """What a command does with an image."""

    LOOK = "look"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Opened:
    """An image.

    Attributes:
        fd: of the file; its locks last as long as it is open.
        path: as it was given.
        kind: of the whole file.
        sif: what a SIF holds, else None.
        partition: the part of a SIF that is meant, None for a file that is all of it.
        offset, size: of the filesystem in the file, in bytes.
        filesystem: the kind of it; None for a partition of no kind that is known.
        objection: why the kernel does not get it; None when it may.
    """

    fd: int
    path: str
    kind: Kind
    sif: Sif | None
    partition: Descriptor | None
    offset: int
    size: int
    filesystem: Kind | None
    objection: str | None

    def require_ext(self) -> None:
        """Refuse what is no ext filesystem.

        Raises:
            UserError: LAYERS.
        """
        if self.filesystem is Kind.EXT:
            return
        if self.sif is not None:
            make = f"fuseunion image create --size SIZE {self.path}"
            raise UserError(f"'{self.path}' has no overlay that can be written; add one: {make}", ExitCode.LAYERS)
        raise UserError(f"'{self.path}' is a {self.kind.value}; this needs an ext image", ExitCode.LAYERS)


def open_image(stack: ExitStack, path: str, access: Access) -> Opened:
    """Open an image, and lock it; of a SIF the overlay that can be written is meant, else its root filesystem.

    Args:
        stack: closes it.

    Raises:
        UserError: LAYERS: no image, or a SIF that makes no sense; BUSY: somebody has it.
        OSError: EACCES, EROFS, as open(2).
    """
    try:
        fd = recognise.open_file(path)
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"'{path}' is not a regular file; give an image", ExitCode.LAYERS) from None
    except FileNotFoundError:
        raise UserError(f"there is no image '{path}'", ExitCode.LAYERS) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        kind = recognise.kind_of(fd)
        if kind is None:
            raise UserError(f"'{path}' is no image that is known: neither squashfs nor ext nor SIF", ExitCode.LAYERS)
        writable, objection = access is Access.WRITE, None
        if access is not Access.LOOK:
            objection = showing.objection(path, fd, kind, Way.AUTO, writable=writable)
        if writable:
            fd, read_only = _open_to_write(fd, path), fd
            # With any lock that it has.
            os.close(read_only)
    except BaseException:
        os.close(fd)
        raise
    stack.callback(os.close, fd)
    if access is not Access.LOOK:
        # All of the file: a command that changes a SIF changes its header too.
        locks.take(fd, path, exclusive=access is Access.WRITE, patience=_PATIENCE)
        locks.refuse_loop(fd, path, exclusive=access is Access.WRITE)
        pid = _writer(fd)
        if pid is not None:
            who = f"process {pid} ({processes.name(pid)})"
            raise UserError(f"image '{path}' is in use by {who}, which writes to it; end that first", ExitCode.BUSY)
    sif = reader.read(fd, path) if kind is Kind.SIF else None
    partition = _meant(sif) if sif else None
    if partition is None:
        size = os.fstat(fd).st_size
        return Opened(fd, path, kind, sif, None, 0, size, kind if sif is None else None, objection)
    found = None if partition.filesystem in ENCRYPTED else recognise.kind_of(fd, partition.offset)
    return Opened(fd, path, kind, sif, partition, partition.offset, partition.size, found, objection)


def _open_to_write(fd: int, path: str) -> int:
    try:
        return recognise.open_again(fd, writable=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _meant(sif: Sif) -> Descriptor | None:
    writable = [each for each in sif.overlays if each.filesystem == FsType.EXT]
    return writable[-1] if writable else sif.primary


def _writer(fd: int) -> int | None:
    """A process that has a file open to write to it; fuse2fs that was started by hand takes no lock either."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    for pid in processes.process_ids():
        if pid != os.getpid():
            for fields in processes.descriptors_of(pid, path):
                if int(fields.get("flags", "0"), 8) & os.O_ACCMODE != os.O_RDONLY:
                    return pid
    return None


def user_of(image: Opened) -> str | None:
    """Who uses an image that was opened to look at it, in a few words; None for nobody that is known."""
    try:
        locks.take(image.fd, image.path, exclusive=False, patience=0)
    except UserError as error:
        return error.message
    use = next(loops.uses_of(image.fd), None)
    return f"/dev/{use.name}" if use is not None else None


@contextmanager
def inside(image: Opened, *, writable: bool = False) -> Iterator[int]:
    """Reach into an image: a descriptor of the root of its filesystem, in a mount that is in no tree.

    Ownership within is not enforced: who may read the file may read all of it.

    Args:
        image: opened to be read, or written.
        writable: whether it is to be changed; then it is on disk at the end.

    Raises:
        UserError: LAYERS: damaged, or of no kind that can be mounted; UNAVAILABLE: the program that mounts it is
            missing; FAILURE: what was changed may be lost.
    """
    if image.filesystem is None:
        why = "it is encrypted" if image.sif and image.sif.is_encrypted else "there is no filesystem in it"
        raise UserError(f"'{image.path}' cannot be read: {why}", ExitCode.LAYERS)
    recognise.check_whole(image.path, image.filesystem, image.fd, image.offset, image.size)
    if image.filesystem is Kind.EXT:
        refuse_damaged(image, writable=writable)
    wanted = Wanted(image.filesystem, image.offset, writable, size=image.size)
    mounted = showing.mount(image.path, wanted, image.fd, Way.AUTO, image.objection)
    its_own = _open_on(mounted.device)
    try:
        try:
            yield mounted.root_fd
        finally:
            os.close(mounted.root_fd)
    except BaseException:
        # The exception of a signal may have come between the open(2) of something and the moment when somebody
        # remembers to close it; the filesystem stays mounted for as long.
        if its_own:  # else they could not be listed
            for fd in _open_on(mounted.device) - its_own:
                os.close(fd)
        # Of two errors the first is told. An image that is in disorder now says so the next time (`refuse_damaged`).
        with suppress(UserError):
            mounted.finish()
        raise
    mounted.finish()


def _open_on(device: int) -> set[int]:
    """The descriptors of this process on a filesystem."""
    return {fd for fd in processes.own_descriptors() if syscalls.device(fd) == device}


def refuse_damaged(image: Opened, *, writable: bool) -> None:
    """Refuse an ext filesystem that was left in disorder: to write would make it worse.

    Raises:
        UserError: LAYERS.
    """
    state = ext.state_of(image.fd, image.offset)
    if state.damaged or (writable and (state.recover or not state.unmounted)):
        how = "has errors" if state.damaged else "was not unmounted in order"
        raise UserError(f"'{image.path}' {how}; run: fuseunion image check {image.path}", ExitCode.LAYERS)
