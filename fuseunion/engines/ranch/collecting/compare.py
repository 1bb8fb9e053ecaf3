"""Whether the union shows what the farm holds, so that there is nothing to collect.

An object of the farm was made after one of a layer, and what UPPER holds after one of a lower: equal is what its maker
could make of the original (owners.py).
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.ranch.farm.builder import names_in
from fuseunion.engines.ranch.farm.portable import same_xattrs
from fuseunion.engines.ranch.farm.same import same_file
from fuseunion.engines.ranch.farm.targets import Target, Targets
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.ledger import Ledger
from fuseunion.engines.ranch.record.lending import legible
from fuseunion.engines.ranch.record.owners import Owners, same_attributes

_log = logging.getLogger("fuseunion.ranch")


class Claimant(NamedTuple):
    """Who may go on as a file of the union that has several names.

    Attributes:
        original: for what the ranch made: the inode number of what it was made of; a link in its own place and every
            private copy of its file are one.
        object: for anything else: the inode number of the object itself.
        walk: of an object beneath a link to a directory: the path of that.
    """

    original: int | None = None
    object: int = 0
    walk: bytes = b""


Lineage = bytes | tuple[int, int]


def lineage(file: File) -> Lineage:
    """What a file of the union and its copy-up have in common, and no other file has."""
    if file.group is not None:
        return file.group.key
    if file.disk_id is not None:
        return file.disk_id
    # The number of a lower file is its own; the first part keeps it apart from those of the upper.
    return (-1, file.ino) if file.lower_links is None else file.lower_links.key


@dataclass(slots=True)
class Name:
    """One name in the farm, and the object that it stands for.

    Attributes:
        way: its path from MERGED.
        source, name, st: where the object lies, and its lstat.
        claimant: as what it may go on, where there are several names.
        shows: the file of the union that has the name and equals the object.
    """

    way: bytes
    source: RealDir
    name: bytes
    st: os.stat_result
    claimant: Claimant | None = None
    shows: Lineage | None = None


class Comparison:
    """Compares the files of one union with the objects of one farm.

    Args:
        farm: the farm's root.
        ledger: keeps what has to be lent in the farm.
        owners: who made the farm, where that can be told.
        merged: identity of MERGED where it lies inside a lower.
    """

    def __init__(
        self,
        union: Union,
        farm: RealDir,
        ledger: Ledger,
        targets: Targets,
        owners: Owners | None,
        *,
        merged: tuple[int, int] | None,
    ) -> None:
        self._union = union
        self._merged = merged
        self._farm = farm.layer
        self._ledger = ledger
        self._targets = targets
        self._owners = owners
        self._has_marks = marker.is_made(farm.itself(), b"")
        # Who goes on as which file of the upper, where that has several names.
        self._heirs: dict[Lineage, Claimant] = {}

    def find(self, farm: RealDir, name: bytes, st: os.stat_result, target: Target | None, way: bytes) -> Name | None:
        """The object that a name of the farm, or of a layer, stands for; None when that is gone.

        Args:
            st: lstat of the name.
            target: of a link.
            way: the path of the name from MERGED.
        """
        if target is None:
            return Name(way, farm, name, st)
        source, source_name = self._targets.place(target)
        found = source.stat(source_name)
        if found is None:
            # Somebody changed the lower beneath the ranch: there is nothing left to keep, nor to hide.
            _log.warning("'%s' stood for a file that is gone from its layer", os.fsdecode(way))
            return None
        return Name(way, source, source_name, found)

    def claimant(self, found: Name, st: os.stat_result, target: Target | None, walk: bytes) -> Claimant:
        """As what the object of a name may go on.

        Args:
            st: lstat of the name.
            target: of a link.
            walk: as Claimant.walk.
        """
        if target is not None:
            return Claimant(found.st.st_ino) if found.way == target.path else Claimant(object=st.st_ino)
        if stat.S_ISREG(st.st_mode) and found.source.layer is self._farm:
            with self._ledger.legible(found.source, found.name):
                return Claimant(marker.copied_from(found.source.object(found.name), st), st.st_ino)
        return Claimant(None, st.st_ino, walk)

    def is_shown(self, file: File, found: Name) -> bool:
        """Whether a file of the union, whose name it is, is what the name has in the farm."""
        return found.shows is not None and (found.claimant is None or self.goes_on(file, found.claimant))

    def goes_on(self, file: File, claimant: Claimant) -> bool:
        """Whether an object of the farm goes on as a file of the union that it equals.

        The names of a file are one object in the farm, or what the ranch made of it; anything else was put there by
        the user and is a file of its own, however equal.
        """
        st, nlink = self._union.stat(file)
        if nlink < 2:
            return True
        if stat.S_ISREG(file.kind) and (file.group is not None or not file.in_upper):
            return not self._has_marks or claimant.original == st.st_ino or self._is_copied_up(file, claimant.original)
        return self._heirs.setdefault(lineage(file), claimant) == claimant

    def _is_copied_up(self, file: File, original: int | None) -> bool:
        """Whether a file of the upper is the copy-up of the file of a lower with this inode number."""
        return original is not None and self._union.is_copy_of(file, original)

    def equal(self, file: File, found: Name, target: Target | None = None) -> bool:
        """Whether a file of the union is, or equals, what a name in the farm, or of a layer, stands for.

        Args:
            target: of a link.
        """
        if target is not None and self._targets.in_own_place(file, target):
            return True
        st, theirs = found.st, self._union.stat(file)[0]
        if file.kind != stat.S_IFMT(st.st_mode):
            return False
        place = file.location()
        assert place is not None, "a name led to it"
        ours = found.source.layer is self._farm
        if stat.S_ISREG(st.st_mode):
            here = (found.source, found.name)
            made, original = (here, place) if ours else (place, here)
            try:
                return same_file(*made, *original, self._owners, self._ledger.legible)
            except PermissionError:
                return False  # a file that this user cannot have copied
        made_st, original_st = (st, theirs) if ours else (theirs, st)
        if not same_attributes(made_st, original_st, self._owners):
            return False
        with legible(place[0]):
            if stat.S_ISLNK(st.st_mode):
                same = os.readlink(found.name, dir_fd=found.source.fd()) == self._union.readlink(file)
            else:
                same = st.st_rdev == theirs.st_rdev
            one, other = found.source.object(found.name), place[0].object(place[1])
            return same and same_xattrs(one, other, self._owners)

    # -- directories -------------------------------------------------------------------------------------------------

    def is_marked(self, farm: RealDir, way: bytes) -> bool:
        """Whether the ranch made a directory, and for this place.

        Args:
            way: its path from MERGED.
        """
        if farm.layer is not self._farm:
            return False
        with self._ledger.lent(farm):
            return marker.is_made(farm.itself(), way)

    def is_replaced(self, directory: Directory, farm: RealDir, way: bytes) -> bool:
        """Whether a directory was put in the place of one that the ranch had made.

        A mark tells; without one (no attributes, or a restored backup), whether anything of the old one is left.

        Args:
            directory: what the union has there.
            way: its path from MERGED.
        """
        if self.is_marked(farm, way):
            return False
        with self._ledger.lent(farm):
            names = set(farm.names())
            lost = False
            for name in names_in(self._union, directory, self._merged):
                inode = self._union.lookup(directory, name)
                if inode is None:
                    continue
                with self._union.held(inode):
                    if name in names and self._is_kept(inode, farm, name):
                        return False
                lost = True
            return lost

    def _is_kept(self, inode: Inode, farm: RealDir, name: bytes) -> bool:
        st = farm.stat(name)
        if st is None:
            return False
        target = self._targets.target(farm, name, st)
        if isinstance(inode, Directory):
            return stat.S_ISDIR(st.st_mode) or (target is not None and self._targets.is_directory(target))
        found = self.find(farm, name, st, target, name)
        return found is not None and isinstance(inode, File) and self.equal(inode, found, target)
