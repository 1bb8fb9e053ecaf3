"""Whether the union shows what the farm holds, so that there is nothing to collect.

An object of the farm was made after one of a layer, and what UPPER holds after one of a lower: equal is what its maker
could make of the original (owners.py).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from fuseunion.core.inode import File
from fuseunion.core.layer import Layer
from fuseunion.core.realdir import RealDir
from fuseunion.core.union import Union
from fuseunion.engines.ranch import private
from fuseunion.engines.ranch.build import Patterns
from fuseunion.engines.ranch.links import Target, Targets
from fuseunion.engines.ranch.owners import Owners, same_attributes

Identity = tuple[int, int]
"""Device and number of the object that a file of the union is on disk."""


def identity(file: File) -> Identity:
    """Which file of the union this is."""
    found = file.disk_id or file.lower_id
    assert found is not None, "it lies somewhere"
    return found


@dataclass(slots=True)
class Name:
    """One name, and the object that it stands for.

    Attributes:
        way: its path from MERGED.
        source, name, st: where the object lies, and its lstat.
        shows: the file of the union that has the name and equals the object.
    """

    way: bytes
    source: RealDir
    name: bytes
    st: os.stat_result
    shows: Identity | None = None


class Comparison:
    """Compares the files of one union with the objects of one farm.

    Args:
        copies: what --copy named.
        owners: who made the farm, where that can be told.
    """

    def __init__(self, union: Union, farm: Layer, targets: Targets, copies: Patterns, owners: Owners | None) -> None:
        self._union = union
        self._farm = farm
        self._targets = targets
        self._copies = copies
        self._owners = owners
        # Which object of the farm goes on as which file of the union, where that has several names.
        self._heirs: dict[Identity, Identity] = {}

    def is_shown(self, file: File, found: Name, st: os.stat_result, target: Target | None) -> bool:
        """Whether a file of the union is what its name in the farm stands for, and that alone.

        Args:
            st: lstat of the name in the farm.
            target: of a link.
        """
        if target is not None and self._targets.in_own_place(file, target):
            return True
        if not self.equal(file, found):
            return False
        # In its own place a link may show the copy that was made for another name of its file.
        own = target is not None and found.way == target.path
        return own or self._is_heir(file, found.way, (st.st_dev, st.st_ino))

    def equal(self, file: File, found: Name) -> bool:
        """Whether a file of the union equals an object of the farm, or of a layer."""
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
                return private.same_file(*made, *original, self._owners)
            except PermissionError:
                return False  # a file that this user cannot have copied
        made_st, original_st = (st, theirs) if ours else (theirs, st)
        if not same_attributes(made_st, original_st, self._owners):
            return False
        with private.legible(place[0]):
            if stat.S_ISLNK(st.st_mode):
                same = os.readlink(found.name, dir_fd=found.source.fd()) == self._union.readlink(file)
            else:
                same = st.st_rdev == theirs.st_rdev
            return same and private.same_xattrs(found.source.proc_path(found.name), place[0].proc_path(place[1]))

    def _is_heir(self, file: File, way: bytes, object_id: Identity) -> bool:
        """Whether an object of the farm is the one that goes on as a file of the union with several names.

        The names of a file that were one object when the ranch was built, and are two now, were separated by the user.
        Names that were promoted one by one were never one object.
        """
        if self._union.stat(file)[1] < 2:
            return True
        was_one = file.in_upper or not stat.S_ISREG(file.kind) or self._copies.match(way)
        return not was_one or self._heirs.setdefault(identity(file), object_id) == object_id
