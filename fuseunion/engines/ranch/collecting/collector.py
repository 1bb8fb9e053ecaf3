"""From a changed tree of links to UPPER: what the farm shows and the union does not is done to the union.

    link in its own place              unchanged
    link back in its own place         the whiteout that an earlier collecting left is removed
    link elsewhere (moved)             a copy of what it stands for
    no entry                           removed: a whiteout where a lower has the name
    file, equal to the union's         unchanged: a private copy that nobody wrote to
    file, else                         put into UPPER
    several names of one               several names of one, whichever of them is new (several.py)
    directory, also in the union       gone through; attributes and times taken over when they differ
    directory, made by the user        replaced: removed and made again, so that it is opaque
    directory, else                    made, and gone through

The farm is not touched. Whatever was collected before a crash is equal the second time, so collecting can be repeated
until it has come to its end, and only then may the farm be removed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.trees import open_up
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.ranch.collecting.changes import Changes
from fuseunion.engines.ranch.collecting.compare import Comparison, Name, lineage
from fuseunion.engines.ranch.collecting.extras import Extras
from fuseunion.engines.ranch.collecting.refusals import check_readable, check_storable, stuck
from fuseunion.engines.ranch.collecting.several import Several
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.builder import names_in
from fuseunion.engines.ranch.farm.portable import match_xattrs, same_xattrs
from fuseunion.engines.ranch.farm.targets import Links, Target, Targets
from fuseunion.engines.ranch.record.ledger import Ledger
from fuseunion.engines.ranch.record.lending import legible
from fuseunion.engines.ranch.record.owners import Owners, changed, same_attributes


@dataclass(slots=True)
class _Visit:
    """One directory being gone through.

    Attributes:
        walk: the path of the link to a directory beneath which `source` lies, b"" in the farm itself.
        changed: anything in it had to be changed in UPPER.
    """

    directory: Directory
    source: RealDir
    path: bytes
    walk: bytes
    changed: bool = False


class Collector:
    """Brings the changes of one farm into the upper of a union.

    Args:
        layers: by the label that links use.
        ledger: keeps what has to be lent in the farm.
        injected: path in the farm and text of each link that was put there at creation and belongs to no layer.
        merged: identity of MERGED where it lies inside a lower.
        owners: who made the farm, where that can be told.
        keep: the farm lives on.
        report: told after each object how many were looked at.
    """

    def __init__(
        self,
        union: Union,
        farm: RealDir,
        links: Links,
        layers: dict[str, Layer],
        ledger: Ledger,
        *,
        injected: dict[bytes, bytes],
        merged: tuple[int, int] | None = None,
        owners: Owners | None = None,
        keep: bool = False,
        report: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._union = union
        self._farm = farm
        self._ledger = ledger
        self._targets = Targets(links, layers, farm.layer)
        self._extras = Extras(farm.layer, injected)
        self._merged = merged
        self._report = report
        self._changes = Changes(union, farm, ledger, keep=keep)
        self._count = 0
        self._comparison = Comparison(union, farm, ledger, self._targets, owners, merged=merged)
        self._owners = owners
        self._mine = owners or Owners.mine()
        self._several = Several(union, self._changes, self._put, self._comparison.goes_on)

    def collect(self) -> None:
        """Make the union show what the farm shows.

        Raises:
            UserError: LAYERS for a name that an overlay cannot hold.
            OSError: ENOSPC and the like; what was collected stays collected.
        """
        self._ledger.settle()
        run(self._directory(self._union.root, self._farm, b""))
        self._several.finish()

    def _directory(self, directory: Directory, source: RealDir, path: bytes, walk: bytes = b"") -> Step:
        """Make a directory of the union like one of the farm, or of a layer."""
        visit = _Visit(directory, source, path, walk)
        before, as_it_is = directory.upper, os.fstat(source.fd())
        with self._ledger.lent(source):
            names = [name for name in source.names() if not self._extras.is_ours(source, name)]
            self._remove_missing(visit, set(names))
            for name in names:
                st = source.stat(name)
                way = path + b"/" + name if path else name
                if st is not None and not self._extras.is_injected(source, name, way, st):
                    yield self._entry(visit, name, way, st)
            visit.changed |= before is not directory.upper
            self._attributes(visit, as_it_is)

    def _remove_missing(self, visit: _Visit, present: set[bytes]) -> None:
        for name in names_in(self._union, visit.directory, self._merged):
            if name not in present and self._union.lookup(visit.directory, name) is not None:
                self._open_up(visit.directory)
                self._union.remove(visit.directory, name)
                visit.changed = True

    def _entry(self, visit: _Visit, name: bytes, way: bytes, st: os.stat_result) -> Step:
        self._count += 1
        self._report(self._count)
        directory, source = visit.directory, visit.source
        inode = self._union.lookup(directory, name)
        if inode is not None:
            self._union.complete_links(inode, directory, name)  # the next mount may be another engine's
        with self._union.held(inode):
            target = self._targets.target(source, name, st)
            below: tuple[Directory, RealDir] | None = None
            walk = visit.walk
            if stat.S_ISDIR(st.st_mode):
                entered = self._enter(visit, name, inode, way, st)
                below = None if entered is None else (entered, source.child(name))
            elif (
                target is not None
                and (st.st_nlink < 2 or isinstance(inode, Directory))
                and self._targets.in_own_place(inode, target)
            ):
                pass  # the usual case
            elif target is not None and self._targets.is_directory(target):
                real = self._targets.real(target)
                assert real.parent is not None, "no root of a layer is linked"
                self._check_readable(real.parent, real.name, os.R_OK | os.X_OK, way)
                below, walk = (self._make(visit, name, inode), real), way
            else:
                self._file(visit, name, inode, st, target, way)
            if below is not None:
                with self._union.held(below[0]):
                    yield self._directory(*below, way, walk)

    # -- files -------------------------------------------------------------------------------------------------------

    def _file(
        self, visit: _Visit, name: bytes, inode: Inode | None, st: os.stat_result, target: Target | None, way: bytes
    ) -> None:
        """Bring one name of a file in, unless it is there already."""
        found = self._comparison.find(visit.source, name, st, target, way)
        if found is None:
            return
        if target is not None and inode is None and self._was_covered(visit, name, target, found):
            inode = self._union.lookup(visit.directory, name)
        if isinstance(inode, File) and self._comparison.equal(inode, found, target):
            found.shows = lineage(inode)
        if st.st_nlink > 1 or (isinstance(inode, File) and self._union.stat(inode)[1] > 1):
            found.claimant = self._comparison.claimant(found, st, target, visit.walk)
        if st.st_nlink < 2 and isinstance(inode, File) and self._comparison.is_shown(inode, found):
            return
        check_storable(self._union, name, found.st, way)
        if found.shows is None and stat.S_ISREG(found.st.st_mode):
            self._check_readable(found.source, found.name, os.R_OK, way)
        if st.st_nlink > 1:
            self._several.add((visit.walk, st.st_dev, st.st_ino), st.st_nlink, found)
            return
        self._open_up(visit.directory)
        if isinstance(inode, Directory):
            self._union.remove(visit.directory, name)
        self._put(visit.directory, name, found)
        visit.changed = True

    def _put(self, directory: Directory, name: bytes, found: Name) -> None:
        """Put an object of the farm, or of a layer, into UPPER."""
        ours = found.source.layer is self._farm.layer
        owner = private.owner_of(found.st) if ours else self._mine.of(found.st)
        try:
            with self._ledger.lent_from_above(found.source):
                self._changes.put(directory, name, found.source, found.name, found.st, owner)
        except PermissionError:
            if not (stat.S_ISBLK(found.st.st_mode) or stat.S_ISCHR(found.st.st_mode)):
                raise
            raise stuck(found.way, "is a device, which you may not make") from None

    def _was_covered(self, visit: _Visit, name: bytes, target: Target, found: Name) -> bool:
        """Uncover the file that a link stands for, if an earlier collecting, when the link was elsewhere, hid it."""
        lower = self._union.lower_stat(visit.directory, name)
        if lower is None or not os.path.samestat(lower, found.st) or found.way != target.path:
            return False
        self._uncover(visit, name)
        return True

    def _uncover(self, visit: _Visit, name: bytes) -> None:
        self._open_up(visit.directory)
        self._union.uncover(visit.directory, name)
        visit.changed = True

    def _check_readable(self, source: RealDir, name: bytes, rights: int, way: bytes) -> None:
        """Refuse what has to be copied from a layer and may not be read; the farm is the user's."""
        if source.layer is not self._farm.layer:
            check_readable(source, name, rights, way)

    # -- directories -------------------------------------------------------------------------------------------------

    def _enter(
        self, visit: _Visit, name: bytes, inode: Inode | None, way: bytes, st: os.stat_result
    ) -> Directory | None:
        """The directory of the union that a real directory of the farm stands for; None when it stands for nothing."""
        farm = visit.source.child(name)
        self._check_readable(visit.source, name, os.R_OK | os.X_OK, way)
        if inode is None and self._was_covered_directory(visit, farm, way):
            inode = self._union.lookup(visit.directory, name)
        if isinstance(inode, Directory) and not self._comparison.is_replaced(inode, farm, way):
            return inode
        if inode is None and self._extras.holds_nothing_else(farm, way):
            return None
        check_storable(self._union, name, st, way)
        return self._make(visit, name, inode)

    def _make(self, visit: _Visit, name: bytes, inode: Inode | None) -> Directory:
        self._open_up(visit.directory)
        if inode is not None:
            self._union.remove(visit.directory, name)
        visit.changed = True
        made = self._union.mkdir(visit.directory, name, 0o700, self._union.own_ids)
        assert isinstance(made, Directory)
        return made

    def _was_covered_directory(self, visit: _Visit, farm: RealDir, way: bytes) -> bool:
        """Uncover the directory of the lowers that one of the farm stands for, as `_was_covered` does."""
        if not self._comparison.is_marked(farm, way):
            return False
        lower = self._union.lower_stat(visit.directory, farm.name)
        if lower is None or not stat.S_ISDIR(lower.st_mode):
            return False
        self._uncover(visit, farm.name)
        return True

    def _attributes(self, visit: _Visit, st: os.stat_result) -> None:
        """Take over mode, owner, times (those in `st`) and attributes of a directory where they differ, or where
        it was changed."""
        directory, source = visit.directory, visit.source
        theirs = self._union.stat(directory)[0]
        if self._merged == (theirs.st_dev, theirs.st_ino):
            return
        if not visit.changed and same_attributes(st, theirs, self._owners):
            with legible(directory.top), directory.grasp() as held:
                if same_xattrs(source.itself(), held, self._owners):
                    return
        upper = self._union.copy_up_directory(directory)
        open_up(upper)  # attributes need permissions
        match_xattrs(source.itself(), upper.itself())
        if source.layer is not self._farm.layer:
            owner = self._mine.of(st)
        elif changed(st, theirs, self._owners):
            owner = private.owner_of(st)
        else:
            owner = KEEP, KEEP
        private.dress(upper.itself(), st, owner)
        directory.stale()

    def _open_up(self, directory: Directory) -> None:
        """Make a directory of UPPER take new names; `_attributes` gives it its mode afterwards."""
        open_up(self._union.copy_up_directory(directory))
