"""`fuseunion image create` and `clone`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from fuseunion.cli.parser import Arguments
from fuseunion.cli.progress import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.images import recognise
from fuseunion.images.recognise import Kind
from fuseunion.images.sif import writer
from fuseunion.images.tools import cloning, sizes
from fuseunion.images.tools.ext import creating
from fuseunion.images.tools.new_file import NewFile, beside
from fuseunion.images.tools.opened import Access, Opened, open_image
from fuseunion.mounting.options.values import parse_choice

_MOST_INODES = (1 << 32) - 1


def create(asked: Arguments) -> int:
    """Make an image, or a partition of a SIF."""
    (path,) = asked.operands
    if asked.size is None:
        raise UserError("give the size of the image: fuseunion image create --size 2G FILE")
    if asked.inodes is not None and asked.profile is not None:
        raise UserError("--inodes and --profile say the same; give one of them")
    wish = creating.Wish(
        size=sizes.parse(asked.size, "--size"),
        type=type_of(asked),
        directories=tuple(map(creating.checked_directory, asked.create_dir)),
        owner=(0, 0) if asked.fakeroot else (os.geteuid(), os.getegid()),
        inodes=_inodes(asked.inodes) if asked.inodes is not None else None,
        profile=parse_choice(creating.Profile, asked.profile, "--profile") if asked.profile is not None else None,
        is_sparse=asked.sparse,
    )
    wish = creating.whole_blocks(wish)
    if _is_sif(path):
        return _add(path, wish)
    with beside(path) as new:
        creating.make(new.fd, path, wish)
        new.publish()
    print(f"made '{path}': {wish.type.value}, {sizes.shown(wish.size)}")
    return ExitCode.OK


def type_of(asked: Arguments) -> creating.Type:
    """What --type says."""
    return parse_choice(creating.Type, asked.type, "--type") if asked.type is not None else creating.Type.EXT3


def _inodes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 30 and 16 <= int(text) <= _MOST_INODES):
        raise UserError(f"--inodes {text}: expected a number between 16 and {_MOST_INODES}")
    return int(text)


def _is_sif(path: str) -> bool:
    try:
        fd = recognise.open_file(path)
    except OSError:
        return False  # nothing is there, or something that stays as it is
    try:
        return recognise.kind_of(fd) is Kind.SIF
    finally:
        os.close(fd)


def _add(path: str, wish: creating.Wish) -> int:
    """Add an overlay to the SIF that has the name."""
    with ExitStack() as stack:
        image = open_image(stack, path, Access.WRITE)
        assert image.sif is not None
        if wish.type is not creating.Type.EXT3:
            raise UserError("--type: the overlay of a SIF is an ext3, which is all that Apptainer takes")
        writer.refuse_overlay(image.sif, path)
        part = stack.enter_context(beside(path, replaces=True))
        creating.make(part.fd, path, wish)
        _append(image, part, wish)
    print(f"added an overlay to '{path}': {wish.type.value}, {sizes.shown(wish.size)}")
    return ExitCode.OK


def _append(image: Opened, part: NewFile, wish: creating.Wish) -> None:
    with Progress("create", wish.size, every=1) as progress:

        def fill(offset: int) -> None:
            cloning.copy(part.fd, image.fd, at=offset, report=progress)
            if not wish.is_sparse:
                os.posix_fallocate(image.fd, offset, wish.size)

        writer.add_overlay(image.fd, image.path, wish.size, fill)


def clone(asked: Arguments) -> int:
    """Copy an image."""
    path, to = asked.operands
    if os.path.isdir(to):
        to = os.path.join(to, Path(path).name)
    with ExitStack() as stack:
        image = open_image(stack, path, Access.READ)
        st = os.fstat(image.fd)
        with beside(to) as new:
            if asked.sparse or not cloning.share(image.fd, new.fd):
                with Progress("clone", st.st_size, every=1) as progress:
                    cloning.copy(image.fd, new.fd, digs=asked.sparse, report=progress)
            # The copy is the caller's own; who may read the image may read the copy.
            os.fchmod(new.fd, st.st_mode & 0o777)
            new.publish()
    print(f"copied '{path}' to '{to}'")
    return ExitCode.OK
