"""The names of a merged directory.

A listing is a snapshot: the names of all layers, each once, taken when the listing begins (and again after a rewind).
An entry's offset is its place in the snapshot plus one, so it stays true while names come and go. Whether a name
is visible, and what it is, is decided by `lookup` when the entry is sent: one set of rules, in one place.

Who lists a directory that has not changed since somebody else did shares the snapshot. A directory may hold very many
names, so all of this is done in steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TypeAlias

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.wh_files import reserved_among
from fuseunion.core.format.numbers import Ino
from fuseunion.core.format.removed_names import is_of_removed
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.marks.holders import DEEP, Holders
from fuseunion.core.tree.directory import Directory, Names
from fuseunion.core.tree.file import File
from fuseunion.core.tree.lookup import resolve_in
from fuseunion.core.tree.place import InLower, InUpper
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import opened
from fuseunion.steps import Steps, in_one_piece

_AT_ONCE = 16


def listing(state: State, directory: Directory) -> Steps[Names]:
    """Every name that may be visible in the directory, each once; what a whiteout hides may be among them.

    A name that comes or goes between two steps may be among them or not; every other one is.

    Raises:
        OSError: of the layers.
    """
    shared = directory.listed
    if shared is not None:
        return shared
    changes = directory.changes
    lowers = directory.lowers
    holders = Holders(lowers) if len(lowers) >= DEEP else None
    # Lowest layer first, as overlayfs lists (fs/overlayfs/readdir.c ovl_dir_read_merged).
    merged: dict[bytes, None] = {}
    marks: dict[RealDir, list[bytes]] = {}
    for real in () if directory.removed else reversed(directory.layers()):
        marks[real] = found = []
        for names in real.scan():
            if not real.layer.keeps_removed:
                names = [name for name in names if not is_of_removed(name)]
            reserved = reserved_among(names)
            found += reserved
            merged.update(dict.fromkeys(names))
            for name in reserved:
                merged.pop(name, None)  # made anew meanwhile, it can be among them twice
            if holders is not None and not real.layer.writable:
                holders.note(lowers.index(real), names)
            yield
    result = Names(merged)
    if directory.changes == changes:
        directory.share(result)
        for real, found in marks.items():
            real.learn_wh_files(found)
    if holders is not None and lowers is directory.lowers and not directory.removed:
        directory.holders = holders
        state.holders.keep(holders)
    return result


def candidates(state: State, directory: Directory) -> Names:
    """As `listing`, in one piece."""
    return in_one_piece(listing(state, directory))


PlainFile: TypeAlias = tuple[bytes, int, int, int, int, int]
"""A name, which of the layers has it, the number to show, st_ino, S_IFMT bits, and the length of its entry."""


class PlainFiles:
    """The files of a directory that need nothing but an lstat(2): most that are listed.

    No mark takes part in a symbolic link with one name, or in a regular file with one name, no stored owner, and either
    data or no attributes; and in none without attributes, where layers lie below it, or in the upper. It is shown where
    no layer above has its name. Whoever looks at them tells which are such (`add`), and gets what `lookup` would give.

    Args:
        directory: `is_for` it is true, and stays so while this object is used.

    Attributes:
        is_written: the first of the directories is the upper's.
    """

    __slots__ = ("_directory", "_layers", "_state", "is_written")

    def __init__(self, state: State, directory: Directory) -> None:
        self._state = state
        self._directory = directory
        self._layers = [(real, state.numbers.device(real.layer.st_dev)) for real in directory.layers()]
        self.is_written = directory.upper is not None

    @staticmethod
    def is_for(directory: Directory) -> bool:
        """Whether there can be such files in a directory: where more than one layer takes part, it has to be listed."""
        if directory.exchanged or directory.removed:
            return False
        layers = directory.layers()
        for real in layers:  # asked for each name that is looked up
            if real.layer.ownership is not None or real.holds_the_mount:
                return False
        return len(layers) == 1 or all(real.is_known_to_hide_nothing for real in layers[:-1])

    def layers(self) -> list[tuple[int, int, int]] | None:
        """Of each real directory, topmost first: its descriptor (RealDir.fd); st_dev of its files, since what lies on
        another filesystem needs more; and what makes the number shown of a real inode number below 2^48 (numbers.py).
        None where numbers are not made like that, or not all can be open at once.

        Raises:
            OSError: as RealDir.fd.
        """
        found = []
        for real, device in self._layers:
            index = self._state.numbers.index(device)
            if index is None:
                return None
            found.append((real.fd(), device, index))
        pairs = zip(self._layers, found, strict=True)
        if len(found) > 1 and not all(real.has_as_descriptor(fd) for (real, _), (fd, *_) in pairs):
            return None  # to open one closed another
        return found

    def add(self, found: Sequence[PlainFile]) -> list[File]:
        """The inodes of names, up to the first that is known already, or whose number another object has, or that the
        link index knows."""
        directory, upper = self._directory, self._directory.upper
        children, find, add = directory.children, self._state.table.find, self._state.table.add
        layers = self._layers
        copies = () if upper is None else self._state.writable().links.by_copy
        files = []
        for name, layer, number, real_number, kind, _ in found:
            if name in children or find(number) is not None:
                break
            real, device = layers[layer]
            if real is not upper:
                place: InUpper | InLower = InLower(real, name, device, real_number)
            elif real_number in copies:
                break
            else:
                place = InUpper(real, name, device, real_number)
            file = File(Ino(number), kind, place)
            file.add_name(directory, name)
            add(file)
            children[name] = file
            files.append(file)
        return files


KnownFile: TypeAlias = tuple[int, bytes, int, int, int]
"""A name whose file is known, and of which the upper's lstat(2) is what is shown: its position in a listing, the name,
the number that is shown, st_ino, and S_IFMT bits. A plain tuple: most names of a listing need one."""


def known_files(directory: Directory, names: Sequence[tuple[int, bytes]], first: int) -> list[KnownFile]:
    """The names of a listing, from one on, whose files are known, up to the first that is none of these.

    Precondition: ids are shown as they are.

    Args:
        names: with their positions.
    """
    upper = directory.upper
    if upper is None or upper.layer.ownership is not None or upper.holds_the_mount:
        return []
    known: list[KnownFile] = []
    children = directory.children
    for position, name in islice(names, first, None):
        file = children.get(name)
        if not isinstance(file, File) or not file.is_plainly_at(directory, name):
            break
        place = file.place
        assert isinstance(place, InUpper)
        if place.device != upper.layer.st_dev:
            break
        known.append((position, name, file.ino, place.number, file.kind))
    return known


def found_empty(state: State, directory: Directory) -> Steps[bool]:
    """True when nothing is visible in the directory: when this ends, whatever happened in between."""
    while True:
        changes = directory.changes
        names = yield from listing(state, directory)
        for start in range(0, len(names), _AT_ONCE):
            with opened(directory.upper):
                if any(_is_visible(state, directory, name) for name in names[start : start + _AT_ONCE]):
                    return False
            if start + _AT_ONCE < len(names):
                yield
        if directory.changes == changes:
            return True


def is_empty(state: State, directory: Directory) -> bool:
    """As `found_empty`, in one piece."""
    return in_one_piece(found_empty(state, directory))


def _is_visible(state: State, directory: Directory, name: bytes) -> bool:
    try:
        return name in directory.children or resolve_in(state, directory, name) is not None
    except MalformedError:
        return True  # listed, and so in the way, whatever it is
