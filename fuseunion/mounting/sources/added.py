"""One more lower for a mount that is in use: a directory that a command has opened.

What a mount refuses of its lowers is refused here too, as far as it can be told from the directory itself; the command
has compared the places (cli/commands/live/lowers/add_lower.py).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import NamedTuple

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.remote import is_remote
from fuseunion.core.union import Union
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import f_types, syscalls
from fuseunion.linux.os_error import os_error
from fuseunion.mounting.assembly import store_of_lower
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepare import refuse_too_many
from fuseunion.mounting.prepared import Prepared

_log = logging.getLogger("fuseunion.lowers")

_LEAD_ELSEWHERE = frozenset({f_types.FUSE, f_types.OVERLAYFS, f_types.ECRYPTFS})


class Found(NamedTuple):
    """What a directory is.

    Attributes:
        leads_elsewhere: its filesystem shows what lies on others.
    """

    st: os.stat_result
    leads_elsewhere: bool


def look(fd: int) -> Found:
    """Look at a directory. It may lie anywhere, so this may wait, and runs in a thread.

    Args:
        fd: a descriptor of it, which is closed.

    Raises:
        OSError: ENOTDIR for what is none; of the filesystem.
    """
    try:
        st = os.fstat(fd)
        if not stat.S_ISDIR(st.st_mode):
            raise os_error(errno.ENOTDIR)
        found = Found(st, syscalls.filesystem_type(fd) in _LEAD_ELSEWHERE)
        with os.scandir(fd) as entries:
            next(entries, None)
        return found
    finally:
        os.close(fd)


def open_layer(fd: int, found: Found, label: str, union: Union, prepared: Prepared, options: Options) -> Layer:
    """Make a lower of a directory.

    Args:
        fd: an O_RDONLY descriptor of it, which belongs to the layer from now on, or is closed.
        label: its path, for messages.
        prepared, options: of the mount.

    Raises:
        UserError: LAYERS: it cannot be one of this mount.
        OSError: of the directory.
    """
    try:
        _refuse(found, label, union, prepared, options)
        layer = Layer(
            fd,
            writable=False,
            label=label,
            descriptors=union.lowers[0].descriptors,
            hidden=frozenset(prepared.hidden),
            closed_is_empty=options.closed_is_empty,
        )
    except BaseException:
        os.close(fd)
        raise
    try:
        layer.remote = is_remote(layer.root_fd)
        _choose_store(layer, union, options)
    except BaseException:
        layer.close()
        raise
    return layer


def _refuse(found: Found, label: str, union: Union, prepared: Prepared, options: Options) -> None:
    if options.upper is not None and not union.writable:
        raise UserError(
            f"the upper '{options.upper}' is shown read-only, and a layer would come above it; unmount, and mount "
            "again with it",
            ExitCode.LAYERS,
        )
    refuse_too_many([label, *(lower.label for lower in union.lowers)])
    layers = [(lower.label, os.fstat(lower.root_fd)) for lower in union.lowers]
    if prepared.upper is not None:
        layers.append((prepared.upper.label, os.fstat(prepared.upper.fd)))
    for other, st in layers:
        if os.path.samestat(found.st, st):
            raise UserError(f"it is '{other}', which is in the mount already", ExitCode.LAYERS)
    if found.leads_elsewhere and found.st.st_dev not in {st.st_dev for _, st in layers}:
        # A daemon that reads from its own mount waits for itself.
        raise UserError(
            "it is on a FUSE filesystem or an overlay, which may lead back to this mount; unmount, and mount again "
            "with it",
            ExitCode.LAYERS,
        )


def _choose_store(layer: Layer, union: Union, options: Options) -> None:
    ignored: list[str] = []
    layer.ownership = store_of_lower(layer, options, ignored)
    for label in ignored:
        _log.info("stored owners of '%s' are ignored", label)
    if not union.writable and (layer.ownership is None) != (union.lowers[0].ownership is None):
        # Then the kernel checks permissions, or does not, as long as it is mounted (engines/fuse/mount_point.py).
        raise UserError(
            "one of it and the topmost lower stores owners, and the other does not; unmount, and mount again with it",
            ExitCode.LAYERS,
        )
