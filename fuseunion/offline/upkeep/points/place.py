"""Where the snapshots of an upper lie: `.NAME.fuseunion-snapshots` beside it (making.py says what is in one)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ownership.facts import DATABASE_FILE
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned
from fuseunion.offline import beside

NEW, BASE, RESTORE = b"#new", b"#base", b"#restore"
UPPER, WORK, MANIFEST = b"upper", b"work", b"manifest"
LINKS = b"links"
KEPT = (LINKS, DATABASE_FILE, DATABASE_FILE + b"-wal", DATABASE_FILE + b"-shm")
_LONGEST_NAME = 200


class Snapshot(NamedTuple):
    """One point in time.

    Attributes:
        name: that it was given.
        taken_ns: when.
        size: of the regular files in it, in bytes, however much of it is shared.
    """

    name: str
    taken_ns: int
    size: int


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a snapshot.

    Raises:
        UserError: USAGE.
    """
    if not name or name[0] in "#." or "/" in name or not name.isprintable() or len(os.fsencode(name)) > _LONGEST_NAME:
        raise UserError(
            f"'{name}' cannot be the name of a snapshot: it has no '/', does not begin with '.' or '#', and has "
            f"{_LONGEST_NAME} bytes at most"
        )


@dataclass(frozen=True, slots=True)
class Place:
    """The snapshots of one upper, which no other command uses.

    Attributes:
        upper: the path of the upper.
        layer: the directory that holds the snapshots.
    """

    upper: str
    layer: Layer

    @property
    def root(self) -> RealDir:
        """The directory that holds the snapshots."""
        return self.layer.root

    def names(self) -> list[bytes]:
        """What snapshots there are, sorted."""
        return sorted(name for name in self.root.names() if not name.startswith(b"#"))

    def existing(self, name: str) -> RealDir:
        """One of them.

        Raises:
            UserError: LAYERS where there is none.
        """
        if os.fsencode(name) not in self.names():
            known = ", ".join(map(os.fsdecode, self.names())) or "none"
            raise UserError(f"'{self.upper}' has no snapshot '{name}'; there are: {known}", ExitCode.LAYERS)
        return self.root.child(os.fsencode(name))

    def clean(self) -> None:
        """Remove what a command left that was cut off."""
        for name in (NEW, BASE):
            trees.remove(self.root, name)


def path_of(upper: str) -> str:
    """Where the snapshots of an upper lie, or would."""
    return beside.place(upper, "snapshots")


@contextmanager
def place(upper: str, *, make: bool = False) -> Iterator[Place | None]:
    """The snapshots of an upper, for the length of a block; None where there are none.

    Raises:
        UserError: LAYERS for a directory that is not this user's alone; BUSY where another command uses it.
    """
    path = os.path.realpath(upper)
    where = path_of(path)
    if not os.path.isdir(path):
        raise UserError(f"upper directory '{upper}' does not exist; check the path", ExitCode.LAYERS)
    if make:
        try:
            os.mkdir(where, 0o700)
        except FileExistsError:
            pass  # of an earlier snapshot
    try:
        fd = owned.open_directory(where)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise UserError(f"the snapshots in '{where}' cannot be used: it {error.strerror}", ExitCode.LAYERS) from None
    layer = Layer(fd, writable=True, label=where)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another command uses the snapshots of '{upper}'; wait for its end", ExitCode.BUSY
            ) from None
        try:
            yield Place(path, layer)
        finally:
            if not layer.root.names():
                os.rmdir(where)
    finally:
        layer.close()


# -- listing, removing -----------------------------------------------------------------------------------------------


def listed(there: Place) -> list[Snapshot]:
    """All snapshots, the oldest first.

    Raises:
        OSError: of the filesystem.
    """
    found = []
    for name in there.names():
        real = there.root.child(name)
        st = real.stat(MANIFEST)
        if st is not None:
            size = sum(entry.st.st_size for entry in trees.walk(real.child(UPPER)) if not entry.is_directory)
            found.append(Snapshot(os.fsdecode(name), st.st_mtime_ns, size))
    return sorted(found, key=lambda each: each.taken_ns)


def remove(there: Place, name: str) -> None:
    """Remove one, under another name first, so that none is there in part.

    Raises:
        UserError: LAYERS where there is none; OSError: of the filesystem.
    """
    there.existing(name)
    there.clean()
    there.root.rename(os.fsencode(name), there.root, NEW)
    there.clean()


# -- layers ----------------------------------------------------------------------------------------------------------


@contextmanager
def layer_of(fd: int, label: str) -> Iterator[Layer]:
    """A directory as a layer, by a descriptor of its own, which keeps no lock (flock(2))."""
    own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    layer = Layer(own, writable=True, label=label)
    try:
        yield layer
    finally:
        layer.close()


@contextmanager
def opened(path: str) -> Iterator[Layer]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with layer_of(fd, path) as layer:
            yield layer
    finally:
        os.close(fd)
