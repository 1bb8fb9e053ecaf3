"""Points in time of an upper: `.NAME.fuseunion-snapshots/SNAPSHOT/` beside UPPER.

    upper/      a copy of it, as it lay there (tree_copy.py)
    work/       what its work directory kept: the hard-link index, the database of owners
    manifest    which files were copied, so that the next snapshot need not copy what has not changed
    #new, #base, #restore    what a command is making; garbage when no command runs, but for `#restore/ready`

A snapshot is made under another name and gets its own by one rename.

A mounted upper is copied twice: first while it is used, as good as that goes; then, while its daemon does nothing for a
moment (linux/runtime/pauses.py), what has changed since. Where that takes longer than the daemon waits, once more, from
what is there by then.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ownership.facts import DATABASE_FILE
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned, syscalls
from fuseunion.linux.runtime import answers
from fuseunion.linux.runtime.pauses import paused
from fuseunion.offline.upkeep.holding import hold
from fuseunion.offline.upkeep.points.owners_copy import stores_of
from fuseunion.offline.upkeep.points.place import BASE, LINKS, MANIFEST, NEW, UPPER, WORK, Place, layer_of, opened
from fuseunion.offline.upkeep.points.tree_copy import Earlier, Known, Manifest, TreeCopy

_RECORD = struct.Struct("<QqQI")
_TRIES = 3


class Made(NamedTuple):
    """A snapshot that was made: bytes that were copied or shared, and taken from the one before."""

    copied: int
    linked: int


# -- making ----------------------------------------------------------------------------------------------------------


def make(there: Place, name: str, work: str | None) -> Made:
    """Make a snapshot, of an upper that is mounted by fuseunion or by nobody.

    Raises:
        UserError: LAYERS where there is one of this name; BUSY where somebody else uses the upper, or changes it faster
            than it can be copied.
        OSError: of the filesystem; nothing has changed then.
    """
    if os.fsencode(name) in there.names():
        raise UserError(f"'{there.upper}' has a snapshot '{name}' already; give another name", ExitCode.LAYERS)
    there.clean()
    try:
        mount = _mount_of(there.upper)
        made = _of_unmounted(there, work) if mount is None else _of_mounted(there, mount)
        syscalls.syncfs(there.layer.root_fd)
        there.root.rename(NEW, there.root, os.fsencode(name))
    finally:
        there.clean()  # a part of a copy can be what fills a disk
    return made


class _Mount(NamedTuple):
    pid: int
    merged: str
    work: str | None


def _mount_of(upper: str) -> _Mount | None:
    for answer in answers.answers():
        fields = answer.fields or {}
        if fields.get("upper", [""])[0] == upper and answer.pid:
            return _Mount(answer.pid, fields["merged"][0], fields.get("work", [None])[0])
    return None


def _of_unmounted(there: Place, work: str | None) -> Made:
    with ExitStack() as stack:
        held = hold(stack, there.upper, work)
        upper = stack.enter_context(layer_of(held.root_fd, there.upper))
        area = stack.enter_context(layer_of(held.work_fd, held.work_path)) if held.work_fd is not None else None
        with _earlier(there, _last(there)) as earlier:
            return _copied(there, NEW, upper, area, earlier)


def _of_mounted(there: Place, mount: _Mount) -> Made:
    with ExitStack() as stack:
        upper = stack.enter_context(opened(there.upper))
        area = stack.enter_context(opened(mount.work)) if mount.work is not None else None
        with _earlier(there, _last(there)) as earlier:
            first = _copied(there, BASE, upper, area, earlier, tolerant=True)
        for _ in range(_TRIES):
            _flush(mount.merged)
            with _earlier(there, BASE) as base:
                try:
                    with paused(mount.pid) as pause:
                        last = _copied(there, NEW, upper, area, base)
                        if pause.lasts:
                            return Made(first.copied + last.copied, first.linked)
                except FileNotFoundError as error:
                    raise UserError(
                        f"the mount at '{mount.merged}' {error.strerror}; unmount it first", ExitCode.BUSY
                    ) from None
                except OSError as error:
                    if error.errno not in (errno.ESTALE, errno.ETIMEDOUT):
                        raise
            trees.remove(there.root, BASE)
            if there.root.stat(NEW) is not None:
                there.root.rename(NEW, there.root, BASE)
    raise UserError(
        f"'{there.upper}' changes faster than it can be copied; unmount it, or try when less is written",
        ExitCode.BUSY,
    )


def _flush(merged: str) -> None:
    """Have written what programs have in memory that is mapped.

    Raises:
        UserError: BUSY where the mount cannot be reached from here.
    """
    from fuseunion.engines.fuse.asking.questions import FSYNC, write_out

    try:
        write_out(merged, FSYNC)
    except OSError as error:
        raise UserError(
            f"the mount at '{merged}' cannot be asked to write what it has ({error.strerror}); make the snapshot "
            "where it can be seen, or unmount it",
            ExitCode.BUSY,
        ) from None


def _copied(
    there: Place, name: bytes, upper: Layer, area: Layer | None, earlier: Earlier | None, *, tolerant: bool = False
) -> Made:
    """Copy an upper and what its work directory keeps to a new directory among the snapshots."""
    os.mkdir(name, 0o700, dir_fd=there.root.fd())
    target = there.root.child(name)
    for each in (UPPER, WORK):
        os.mkdir(each, 0o700, dir_fd=target.fd())
    with ExitStack() as stack:
        stores = None
        if area is not None and area.root.stat(DATABASE_FILE) is not None and not tolerant:
            stores = stack.enter_context(stores_of(target, area, target.child(WORK)))
        copy = TreeCopy(earlier, tolerant=tolerant, stores=stores)
        copy.copy(upper.root, target.child(UPPER))
        if area is not None and area.root.stat(LINKS) is not None:
            os.mkdir(LINKS, 0o700, dir_fd=target.child(WORK).fd())
            manifest = copy.forget_earlier()
            copy.copy(area.root.child(LINKS), target.child(WORK).child(LINKS))
        else:
            manifest = copy.manifest
        _write_manifest(target, manifest)
    return Made(copy.copied, copy.linked)


# -- manifests -------------------------------------------------------------------------------------------------------


def _write_manifest(target: RealDir, manifest: Manifest) -> None:
    fd = owned.new_file(MANIFEST, target.fd())
    with open(fd, "wb") as file:
        for path, known in manifest.items():
            file.write(_RECORD.pack(*known, len(path)) + path)


def _read_manifest(real: RealDir) -> Manifest:
    """What a snapshot remembers; nothing where that cannot be read: then everything is copied."""
    manifest: Manifest = {}
    try:
        fd = owned.open_file(MANIFEST, real.fd())
    except OSError:
        return manifest
    with open(fd, "rb") as file:
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            *known, length = _RECORD.unpack(head)
            path = file.read(length)
            if b"" in path.split(b"/") or {b".", b".."} & {*path.split(b"/")}:
                break  # not written by us
            manifest[path] = Known(*known)
    return manifest


def _last(there: Place) -> bytes | None:
    """The newest snapshot."""
    times = [(st.st_ctime_ns, name) for name in there.names() if (st := there.root.stat(name)) is not None]
    return max(times)[1] if times else None


@contextmanager
def _earlier(there: Place, name: bytes | None) -> Iterator[Earlier | None]:
    if name is None:
        yield None
        return
    real = there.root.child(name)
    yield Earlier(real.child(UPPER), _read_manifest(real))
    real.close()
