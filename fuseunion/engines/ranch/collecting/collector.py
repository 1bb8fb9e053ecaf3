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

import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.marks.marks import is_device
from fuseunion.core.ops.create import Owner, check_name
from fuseunion.core.ops.directories import copy_up_directory
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.lookup import FoundDirectory, lower_name, resolve
from fuseunion.core.union import Union
from fuseunion.engines.ranch.collecting.compare import Comparison, Name, lineage
from fuseunion.engines.ranch.collecting.publisher import Publisher
from fuseunion.engines.ranch.collecting.several import Several
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.builder import names_in
from fuseunion.engines.ranch.farm.targets import Links, Target, Targets
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.ledger import Ledger
from fuseunion.engines.ranch.record.owners import Owners, changed, same_attributes
from fuseunion.errors import ExitCode, UserError

_log = logging.getLogger("fuseunion.ranch")


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
        self._injected = injected
        self._above_injected = {
            path[:end] for path in injected for end in range(len(path)) if path[end : end + 1] == b"/"
        }
        self._merged = merged
        self._report = report
        self._publisher = Publisher(union, farm, ledger, keep=keep)
        self._count = 0
        self._comparison = Comparison(union, farm, ledger, self._targets, owners)
        self._owners = owners
        self._mine = owners or Owners.mine()
        self._several = Several(union, self._publisher, self._put, self._comparison.goes_on)

    def collect(self) -> None:
        """Do it.

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
            names = [name for name in source.names() if not self._is_ours(source, name)]
            self._remove_missing(visit, set(names))
            for name in names:
                st = source.stat(name)
                way = path + b"/" + name if path else name
                if st is not None and not self._is_injected(source, name, way, st):
                    yield self._entry(visit, name, way, st)
            visit.changed |= before is not directory.upper
            self._attributes(visit, as_it_is)

    def _remove_missing(self, visit: _Visit, present: set[bytes]) -> None:
        for name in names_in(visit.directory, self._merged):
            if name not in present:
                inode = self._union.lookup(visit.directory, name)
                if inode is not None:
                    self._open_up(visit.directory)
                    self._publisher.remove(visit.directory, name, inode)
                    visit.changed = True

    def _entry(self, visit: _Visit, name: bytes, way: bytes, st: os.stat_result) -> Step:
        self._count += 1
        self._report(self._count)
        directory, source = visit.directory, visit.source
        inode = self._union.lookup(directory, name)
        if inode is not None:
            self._union.remember(inode)
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
            self._check_readable(real.parent, real.name, os.R_OK | os.X_OK, way)
            below, walk = (self._make(visit, name, inode), real), way
        else:
            self._file(visit, name, inode, st, target, way)
        if below is not None:
            self._union.remember(below[0])
            yield self._directory(*below, way, walk)
            self._union.forget(below[0].ino, 1)
        if inode is not None:
            self._union.forget(inode.ino, 1)

    # -- files -------------------------------------------------------------------------------------------------------

    def _file(
        self, visit: _Visit, name: bytes, inode: Inode | None, st: os.stat_result, target: Target | None, way: bytes
    ) -> None:
        """Bring one name of a file in, unless it is there already."""
        found = self._find(visit.source, name, st, target, way)
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
        check_storable(name, found.st, way)
        if found.shows is None and stat.S_ISREG(found.st.st_mode):
            self._check_readable(found.source, found.name, os.R_OK, way)
        if st.st_nlink > 1:
            self._several.add((visit.walk, st.st_dev, st.st_ino), st.st_nlink, found)
            return
        self._open_up(visit.directory)
        if isinstance(inode, Directory):
            self._publisher.remove(visit.directory, name, inode)
        self._put(visit.directory, name, found)
        visit.changed = True

    def _find(self, farm: RealDir, name: bytes, st: os.stat_result, target: Target | None, way: bytes) -> Name | None:
        """The object that a name of the farm, or of a layer, stands for; None when that is gone."""
        if target is None:
            return Name(way, farm, name, st)
        source, source_name = self._targets.place(target)
        found = source.stat(source_name)
        if found is None:
            # Somebody changed the lower beneath the ranch: there is nothing left to keep, nor to hide.
            _log.warning("'%s' stood for a file that is gone from its layer", os.fsdecode(way))
            return None
        return Name(way, source, source_name, found)

    def _put(self, directory: Directory, name: bytes, found: Name) -> None:
        """Put an object of the farm, or of a layer, into UPPER."""
        ours = found.source.layer is self._farm.layer
        owner = private.owner_of(found.st) if ours else self._mine.of(found.st)
        try:
            with self._ledger.lent_from_above(found.source):
                self._publisher.put(directory, name, found.source, found.name, found.st, owner)
        except PermissionError:
            if not (stat.S_ISBLK(found.st.st_mode) or stat.S_ISCHR(found.st.st_mode)):
                raise
            raise _stuck(found.way, "is a device, which you may not make") from None

    def _was_covered(self, visit: _Visit, name: bytes, target: Target, found: Name) -> bool:
        """Uncover the file that a link stands for, if an earlier collecting, when the link was elsewhere, hid it."""
        lower = lower_name(self._union.state, visit.directory, name)
        if lower is None or not os.path.samestat(lower[1], found.st) or found.way != target.path:
            return False
        self._uncover(visit, name)
        return True

    def _uncover(self, visit: _Visit, name: bytes) -> None:
        self._open_up(visit.directory)
        self._publisher.uncover(visit.directory, name)
        visit.changed = True

    def _check_readable(self, source: RealDir | None, name: bytes, rights: int, way: bytes) -> None:
        """Refuse what has to be copied from a layer and may not be read.

        Raises:
            UserError: LAYERS.
        """
        if source is None or source.layer is self._farm.layer:
            return
        if not os.access(name, rights, dir_fd=source.fd(), effective_ids=True, follow_symlinks=False):
            raise _stuck(way, "stands for what you may not read, so that it cannot be copied")

    # -- directories -------------------------------------------------------------------------------------------------

    def _enter(
        self, visit: _Visit, name: bytes, inode: Inode | None, way: bytes, st: os.stat_result
    ) -> Directory | None:
        """The directory of the union that a real directory of the farm stands for; None when it stands for nothing."""
        farm = visit.source.child(name)
        self._check_readable(visit.source, name, os.R_OK | os.X_OK, way)
        if inode is None and self._was_covered_directory(visit, farm, way):
            inode = self._union.lookup(visit.directory, name)
        if isinstance(inode, Directory) and not self._replaced(inode, farm, way):
            return inode
        if inode is None and way in self._above_injected and self._holds_only_injected(farm, way):
            return None
        check_storable(name, st, way)
        return self._make(visit, name, inode)

    def _make(self, visit: _Visit, name: bytes, inode: Inode | None) -> Directory:
        self._open_up(visit.directory)
        if inode is not None:
            self._publisher.remove(visit.directory, name, inode)
        visit.changed = True
        state = self._union.state
        made = self._union.mkdir(visit.directory, name, 0o700, Owner(state.uid, state.gid, 0))
        assert isinstance(made, Directory)
        return made

    def _was_covered_directory(self, visit: _Visit, farm: RealDir, way: bytes) -> bool:
        """Uncover the directory of the lowers that one of the farm stands for, as `_was_covered` does."""
        if not self._is_marked(farm, way):
            return False
        if not isinstance(resolve(self._union.state, visit.directory.lowers, farm.name), FoundDirectory):
            return False
        self._uncover(visit, farm.name)
        return True

    def _is_marked(self, farm: RealDir, way: bytes) -> bool:
        """Whether the ranch made a directory, and for this place."""
        if farm.layer is not self._farm.layer:
            return False
        with self._ledger.lent(farm):
            return marker.is_made(private.proc_fd(farm.fd()), way)

    def _replaced(self, directory: Directory, farm: RealDir, way: bytes) -> bool:
        """Whether a directory was put in the place of one that the ranch had made.

        A mark tells; without one (no attributes, or a restored backup), whether anything of the old one is left.
        """
        if self._is_marked(farm, way):
            return False
        with self._ledger.lent(farm):
            names = set(farm.names())
            lost = False
            for name in names_in(directory, self._merged):
                inode = self._union.lookup(directory, name)
                if inode is None:
                    continue
                kept = name in names and self._is_kept(inode, farm, name)
                self._union.release(inode)
                if kept:
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
        found = self._find(farm, name, st, target, name)
        return found is not None and isinstance(inode, File) and self._comparison.equal(inode, found, target)

    def _attributes(self, visit: _Visit, st: os.stat_result) -> None:
        """Take over mode, owner, times (those in `st`) and attributes of a directory where they differ, or where
        it was changed."""
        directory, source = visit.directory, visit.source
        theirs = self._union.stat(directory)[0]
        if self._merged == (theirs.st_dev, theirs.st_ino):
            return
        if not visit.changed and same_attributes(st, theirs, self._owners):
            with private.legible(directory.top):
                if private.same_xattrs(source.fd(), private.place_of(directory), self._owners):
                    return
        upper = copy_up_directory(self._union.state, directory)
        private.open_up(upper)  # attributes need permissions
        private.match_xattrs(source.fd(), upper.fd())
        if source.layer is not self._farm.layer:
            owner = self._mine.of(st)
        elif changed(st, theirs, self._owners):
            owner = private.owner_of(st)
        else:
            owner = KEEP, KEEP
        private.dress(upper.fd(), st, owner)
        directory.stale()

    def _open_up(self, directory: Directory) -> None:
        private.open_up(copy_up_directory(self._union.state, directory))

    # -- what is not the user's --------------------------------------------------------------------------------------

    def _is_ours(self, source: RealDir, name: bytes) -> bool:
        if source.layer is not self._farm.layer:
            return False
        return name.startswith(private.TEMPORARY) or (source.parent is None and name == marker.NAME)

    def _is_injected(self, source: RealDir, name: bytes, way: bytes, st: os.stat_result) -> bool:
        text = self._injected.get(way)
        return text is not None and stat.S_ISLNK(st.st_mode) and os.readlink(name, dir_fd=source.fd()) == text

    def _holds_only_injected(self, real: RealDir, path: bytes) -> bool:
        pending = [(real, path)]
        while pending:
            directory, above = pending.pop()
            for name in directory.names():
                way = above + b"/" + name
                st = directory.stat(name)
                if st is not None and stat.S_ISDIR(st.st_mode) and way in self._above_injected:
                    pending.append((directory.child(name), way))
                elif st is None or not self._is_injected(directory, name, way, st):
                    return False
        return True


def _stuck(way: bytes, why: str) -> UserError:
    return UserError(
        f"'{os.fsdecode(way)}' {why}; move it back to where it was, or remove it, and try again", ExitCode.LAYERS
    )


def check_storable(name: bytes, st: os.stat_result, way: bytes) -> None:
    """Refuse what would be a whiteout in UPPER.

    Raises:
        UserError: LAYERS.
    """
    try:
        check_name(name)
    except OSError:
        reason = "its name is a whiteout's"
    else:
        if not is_device(st):
            return
        reason = "a device 0/0 is a whiteout"
    raise UserError(
        f"'{os.fsdecode(way)}' cannot be kept in UPPER: {reason}; rename or remove it and try again", ExitCode.LAYERS
    )
