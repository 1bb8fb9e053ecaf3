"""Files with several names: what is one object in the farm ends as one file of the union.

In whichever order its names are met, and whichever of them are new: so an object with several names is decided upon
when all of them have been seen, or at the end, because a name may lie outside of the farm.

    every name shows one file that equals it    unchanged
    some names show files that equal it         one of these gets the other names; a lower's is copied up for that
    none does                                   the object is put under one name, and the others are linked to it

So a name that nobody touched keeps the file what it is for names that the farm does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.ranch.collecting.changes import Changes
from fuseunion.engines.ranch.collecting.compare import Claimant, Name, lineage
from fuseunion.linux.objects.permission import opened


class Several:
    """The objects with several names that are not yet decided upon.

    Args:
        put: puts an object under a name.
        goes_on: whether an object may go on as a file of the union.
    """

    def __init__(
        self,
        union: Union,
        changes: Changes,
        put: Callable[[Directory, bytes, Name], None],
        goes_on: Callable[[File, Claimant], bool],
    ) -> None:
        self._union = union
        self._changes = changes
        self._put = put
        self._goes_on = goes_on
        self._waiting: dict[tuple[bytes, int, int], list[Name]] = {}

    def add(self, key: tuple[bytes, int, int], count: int, name: Name) -> None:
        """One more name of an object that has `count` of them."""
        names = self._waiting.setdefault(key, [])
        names.append(name)
        if len(names) == count:
            self._settle(self._waiting.pop(key))

    def finish(self) -> None:
        """No more names will come."""
        while self._waiting:
            self._settle(self._waiting.popitem()[1])

    def _settle(self, names: list[Name]) -> None:
        with ExitStack() as kept:
            file = self._heir(names, kept)
            if file is None or any(name.shows != lineage(file) for name in names):
                for name in names:
                    file = self._lead(name, file, kept)

    def _heir(self, names: list[Name], kept: ExitStack) -> File | None:
        """The file that goes on as the object: rather one of the upper, which need not be copied.

        Args:
            kept: holds it from now on.
        """
        claimants = [name.claimant for name in names if name.claimant is not None]
        claimant = max(claimants, key=lambda claimant: claimant.original is not None)
        heir: File | None = None
        for shown in {name.shows: name for name in names if name.shows is not None}.values():
            file = self._look(*self._place(shown.way))
            assert isinstance(file, File), "it was seen there"
            kept.enter_context(self._union.held(file))
            if self._goes_on(file, claimant) and (heir is None or (file.in_upper and not heir.in_upper)):
                heir = file
        return heir

    def _lead(self, name: Name, file: File | None, kept: ExitStack) -> File:
        """Make a name lead to a file of the union, which is put there if there is none; returns it.

        Args:
            kept: holds what is put there.
        """
        directory, last = self._place(name.way)
        with self._union.held(directory):
            found = self._look(directory, last)
            if file is not None and isinstance(found, File) and lineage(found) == lineage(file):
                return file
            upper = self._union.copy_up_directory(directory)
            with opened(upper), upper.times_kept():
                if isinstance(found, Directory):
                    self._union.remove(directory, last)
                if file is not None and self._changes.link(file, directory, last):
                    return file
                self._put(directory, last, name)
            if file is None:
                made = self._look(directory, last)
                assert isinstance(made, File), "it was put there"
                kept.enter_context(self._union.held(made))
                return made
            return file

    def _look(self, directory: Directory, name: bytes) -> Inode | None:
        """What a name shows; one that leads to a copy only by the link index is given to the copy."""
        inode = self._union.lookup(directory, name)
        if inode is not None:
            self._union.complete_links(inode, directory, name)
        return inode

    def _place(self, way: bytes) -> tuple[Directory, bytes]:
        """The directory of the union that holds a name, and the name in it."""
        *above, last = way.split(b"/")
        directory = self._union.root
        for part in above:
            found = self._union.lookup(directory, part)
            assert isinstance(found, Directory), "it was gone through"
            directory = found
        return directory, last
