"""Layers opened through the core, without a mount.

    owned     as a mount opens them: upper and work directory locked against everybody, the link index and stored
              ownership in use, the permission to read what its owner closed lent. What is shown is what a mount would
              show. Nothing in the upper changes.
    shared    read-only, as one more lower: where somebody has it mounted, or where it cannot be written. Then the link
              index takes no part, and of stored ownership what is in attributes.

An upper alone stands over a lower that is empty: no metacopy finds its data there, and no redirect its directory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fuseunion.core.disk.layer import Layer
from fuseunion.core.union import Union
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.assembly import Layers, build_union, open_layers
from fuseunion.mounting.checks import elsewhere, in_use, placement, volatile
from fuseunion.mounting.checks.placement import Part, Survey
from fuseunion.mounting.options import Form, Options
from fuseunion.mounting.prepare import default_work_path, prepare
from fuseunion.mounting.prepared import Prepared
from fuseunion.offline.layers.unfinished import refuse_unfinished

NOWHERE = "/dev/fd/-1"
"""The merged directory of a union that is mounted nowhere: the form that no path is looked up for."""


class View(NamedTuple):
    """An upper over its lowers.

    Attributes:
        union: of all; of the upper alone where no lower was given.
        upper: its layer.
        shared: others may write to it.
        alone: no lower was given.
        notes: what a user is to hear of what was not as usual, one line each.
    """

    union: Union
    upper: Layer
    shared: bool
    alone: bool
    notes: tuple[str, ...] = ()


@contextmanager
def owned(
    upper: str,
    lowers: Sequence[str] = (),
    work: str | None = None,
    options: Options | None = None,
    *,
    writes: bool = False,
) -> Iterator[View]:
    """An upper that nobody else uses for the length of a block.

    The link index is judged by what the lowers show. So it takes no part where there are none, and where something is
    to be written all the same it must be empty.

    Args:
        lowers: directories, topmost first; none for the upper alone.
        work: its work directory, None for the default one.
        options: what is shown as whose; the directories in it do not count.
        writes: the block may write to an upper alone.

    Raises:
        UserError: BUSY where it is in use; LAYERS where a directory cannot be used.
        OSError: of the layers.
    """
    given = _options(options)._replace(upper=upper, work=work, lowers=tuple(lowers))
    for lower in lowers:
        refuse_unfinished(lower)
    if not os.path.lexists(upper):
        raise UserError(f"upper directory '{upper}' does not exist; check the path", ExitCode.LAYERS)
    prepared = prepare(given, mark=False)
    try:
        assert prepared.upper is not None
        _refuse_elsewhere(upper, prepared.upper.fd)
        if not lowers:
            prepared.lowers.append(prepared.opened(_empty_directory(), "nothing"))
        layers, union = _built(prepared, given) if lowers or writes else _alone(prepared, given)
        try:
            if union.keeps_links and not lowers:
                raise UserError(
                    f"'{upper}' has a hard-link index in its work directory, so it belongs to lower directories; give "
                    "a new directory",
                    ExitCode.LAYERS,
                )
            if prepared.exchanged and lowers:
                prepared.notes.append(prepared.says_exchanged)
            notes = (*prepared.notes, *layers.says_ignored)
            yield View(union, layers.upper or layers.lowers[0], False, not lowers, notes)
        finally:
            try:
                if layers.work is not None and layers.upper is not None:
                    if volatile.is_marked(layers.work.layer.root_fd):
                        syscalls.syncfs(layers.upper.root_fd)  # the end of this takes the mark away
                    if not union.writable:
                        layers.work.close()
            finally:
                union.close()
    finally:
        prepared.close()


@contextmanager
def shared(upper: int, lowers: Sequence[int] = (), options: Options | None = None) -> Iterator[View]:
    """An upper that others may use, for the length of a block.

    Args:
        upper: a descriptor of its directory; it stays the caller's, as do the next.
        lowers: of the lower directories, topmost first.
        options: what is shown as whose.

    Raises:
        UserError: LAYERS; OSError: of the layers.
    """
    empty = () if lowers else (_empty_directory(),)
    try:
        with read_only((upper, *lowers, *empty), options) as union:
            yield View(union, union.lowers[0], True, not lowers)
    finally:
        for fd in empty:
            os.close(fd)


@contextmanager
def read_only(layers: Sequence[int], options: Options | None = None) -> Iterator[Union]:
    """A union of directories to which nothing can be written.

    Args:
        layers: descriptors, topmost first; they stay the caller's.

    Raises:
        UserError: LAYERS; OSError: of the layers.
    """
    given = _options(options)
    prepared = Prepared(NOWHERE, Form.PLAIN)
    try:
        for fd in layers:
            own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            prepared.lowers.append(prepared.opened(own, os.readlink(f"/proc/self/fd/{fd}")))
        _, union = _built(prepared, given)
        try:
            yield union
        finally:
            union.close()
    finally:
        prepared.close()


@contextmanager
def readable(
    upper: str,
    lowers: Sequence[str] = (),
    work: str | None = None,
    options: Options | None = None,
    *,
    while_in_use: bool = False,
) -> Iterator[View]:
    """An upper to read: `owned` where that can be, else `shared`.

    Args:
        while_in_use: `shared` also where somebody has it mounted; the notes say so.

    Raises:
        UserError, OSError: as of both.
    """
    for directory in (upper, *lowers):
        refuse_unfinished(directory)
    with ExitStack() as stack:
        view = None
        if _can_be_owned(upper, work):
            try:
                view = stack.enter_context(owned(upper, lowers, work, options))
            except UserError as error:
                if error.exit_code is not ExitCode.BUSY or not while_in_use:
                    raise
        if view is None:
            fds = stack.enter_context(opened_directories((upper, *lowers)))
            if not while_in_use:
                _lock(stack, upper, fds[0])
            view = stack.enter_context(shared(fds[0], fds[1:], options))
        yield view


@contextmanager
def opened_directories(paths: Sequence[str], parts: Sequence[Part] | None = None) -> Iterator[list[int]]:
    """Descriptors of directories for the length of a block.

    Args:
        parts: what each is, for messages; None for an upper and its lowers.

    Raises:
        UserError: LAYERS, for one that cannot be opened.
    """
    survey = Survey()
    fds: list[int] = []
    try:
        for index, path in enumerate(paths):
            part = parts[index] if parts else Part.LOWER if index else Part.UPPER
            fds.append(placement.open_directory(survey.place(part, path)))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _options(options: Options | None) -> Options:
    given = Options(NOWHERE, ()) if options is None else options
    return given._replace(target=NOWHERE, upper=None, work=None, lowers=(), form=Form.PLAIN, read_only=False)


def _built(prepared: Prepared, options: Options) -> tuple[Layers, Union]:
    layers = open_layers(prepared, options)
    return layers, build_union(layers, options, posix_acl=False)


def _alone(prepared: Prepared, options: Options) -> tuple[Layers, Union]:
    """The same without a link index: the upper is one more lower, but for the permission to read what is closed."""
    layers = open_layers(prepared, options)
    lowers = layers.lowers if layers.upper is None else [layers.upper, *layers.lowers]
    return layers, build_union(Layers(lowers, None, None, []), options, posix_acl=False)


def _empty_directory() -> int:
    """A descriptor of a directory in which nothing is, and nothing can come to be: it has been removed."""
    path = tempfile.mkdtemp(prefix="fuseunion-")
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.rmdir(path)


def _lock(stack: ExitStack, upper: str, fd: int) -> None:
    """Keep mounts off an upper that is only read, as far as a lock can.

    Raises:
        UserError: BUSY.
    """
    place = Survey().place(Part.UPPER, upper)
    in_use.refuse_kernel_overlays(place)
    occupancy = in_use.Occupancy(place, fd)
    stack.callback(occupancy.close)
    occupancy.enter(mark=False)
    _refuse_elsewhere(upper, fd)


def _refuse_elsewhere(upper: str, fd: int) -> None:
    writer = elsewhere.writer_of(fd)
    if writer is not None:
        raise UserError(f"upper directory '{upper}' is in use by {writer}; unmount it first", ExitCode.BUSY)


def _can_be_owned(upper: str, work: str | None) -> bool:
    """Whether this user can mount an upper, as far as permissions tell."""
    path = os.path.realpath(upper)
    if not os.path.isdir(path):
        return True  # which the mount refuses with its reason
    may_write = os.access(path, os.W_OK | os.X_OK, effective_ids=True) or os.stat(path).st_uid == os.geteuid()
    writable = not os.statvfs(path).f_flag & os.ST_RDONLY
    has_work = work is not None or os.path.lexists(default_work_path(path))
    beside = has_work or os.access(os.path.dirname(path), os.W_OK | os.X_OK, effective_ids=True)
    return may_write and writable and beside
