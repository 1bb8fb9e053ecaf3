"""From a changed tree of links to UPPER: what the farm shows and the union does not is done to the union.

    link in its own place              unchanged
    link elsewhere (moved)             a copy of what it stands for
    no entry                           removed: a whiteout where a lower has the name
    file, equal to the union's         unchanged: a private copy that nobody wrote to
    file, else                         put into UPPER
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fuseunion.core.copy_up import copy_up_directory
from fuseunion.core.create import Owner, check_name
from fuseunion.core.inode import Directory, File, Inode
from fuseunion.core.layer import Layer
from fuseunion.core.realdir import RealDir
from fuseunion.core.union import Union
from fuseunion.core.whiteout import is_device
from fuseunion.engines.ranch import marker, private
from fuseunion.engines.ranch.build import names_in
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.links import Links, Target
from fuseunion.engines.ranch.publish import Publisher
from fuseunion.errors import ExitCode, UserError

_log = logging.getLogger("fuseunion.ranch")


@dataclass(slots=True)
class _Visit:
    """One directory being gone through, and whether anything in it had to be changed in UPPER."""

    directory: Directory
    source: RealDir
    path: bytes
    changed: bool = False


class Collector:
    """Brings the changes of one farm into the upper of a union.

    Args:
        layers: by the label that links use.
        injected: path in the farm and text of each link that was put there at creation and belongs to no layer.
        merged: identity of MERGED where it lies inside a lower.
        keep: the farm lives on.
        report: told after each object how many were looked at.
    """

    def __init__(
        self,
        union: Union,
        farm: RealDir,
        links: Links,
        layers: dict[str, Layer],
        *,
        injected: dict[bytes, bytes],
        merged: tuple[int, int] | None = None,
        keep: bool = False,
        report: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._union = union
        self._farm = farm
        self._links = links
        self._layers = layers
        self._injected = injected
        self._above_injected = {
            path[:end] for path in injected for end in range(len(path)) if path[end : end + 1] == b"/"
        }
        self._merged = merged
        self._report = report
        self._publisher = Publisher(union, farm, keep=keep)
        self._count = 0

    def collect(self) -> None:
        """Do it.

        Raises:
            UserError: LAYERS for a name that an overlay cannot hold.
            OSError: ENOSPC and the like; what was collected stays collected.
        """
        run(self._directory(self._union.root, self._farm, b""))

    def _directory(self, directory: Directory, source: RealDir, path: bytes) -> Step:
        """Make a directory of the union like one of the farm, or of a layer."""
        visit = _Visit(directory, source, path)
        before, as_it_is = directory.upper, os.fstat(source.fd())
        with self._readable(source):
            names = [name for name in source.names() if not self._is_ours(source, name)]
            self._remove_missing(visit, set(names))
            for name in names:
                st = source.stat(name)
                way = path + b"/" + name if path else name
                if st is not None and not self._is_injected(source, name, way, st):
                    yield self._entry(visit, name, way, st)
            changed = visit.changed or before is not directory.upper
            self._attributes(directory, source, as_it_is, changed=changed)

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
        target = self._target(source, name, st)
        below: tuple[Directory, RealDir] | None = None
        if stat.S_ISDIR(st.st_mode):
            entered = self._enter(visit, name, inode, way, st)
            below = None if entered is None else (entered, source.child(name))
        elif target is not None and self._in_own_place(inode, target):
            pass
        elif target is not None and self._is_link_to_directory(target):
            below = self._make(visit, name, inode), self._real(target)
        else:
            self._file(visit, name, inode, st, target, way)
        if below is not None:
            self._union.remember(below[0])
            yield self._directory(*below, way)
            self._union.forget(below[0].ino, 1)
        if inode is not None:
            self._union.forget(inode.ino, 1)

    # -- files -------------------------------------------------------------------------------------------------------

    def _file(
        self, visit: _Visit, name: bytes, inode: Inode | None, st: os.stat_result, target: Target | None, way: bytes
    ) -> None:
        """Bring one file in, unless it is there already."""
        source, source_name = visit.source, name
        if target is not None:
            source, source_name = self._real(Target(target.layer, target.names[:-1])), target.names[-1]
            found = source.stat(source_name)
            if found is None:
                # Somebody changed the lower beneath the ranch: there is nothing left to keep, nor to hide.
                _log.warning("'%s' stood for a file that is gone from its layer", os.fsdecode(way))
                return
            st = found
        if isinstance(inode, File) and self._equal(inode, source, source_name, st):
            return
        check_storable(name, st, way)
        self._open_up(visit.directory)
        if isinstance(inode, Directory):
            self._publisher.remove(visit.directory, name, inode)
        self._publisher.put(visit.directory, name, source, source_name, st)
        visit.changed = True

    def _equal(self, file: File, source: RealDir, name: bytes, st: os.stat_result) -> bool:
        if file.kind != stat.S_IFMT(st.st_mode):
            return False
        place = file.location()
        assert place is not None, "a name led to it"
        if stat.S_ISREG(st.st_mode):
            try:
                return private.same_file(source, name, *place)
            except PermissionError:
                return False  # a file that this user cannot have copied
        if stat.S_ISLNK(st.st_mode):
            return os.readlink(name, dir_fd=source.fd()) == self._union.readlink(file)
        theirs = self._union.stat(file)[0]
        return st.st_rdev == theirs.st_rdev and private.same_attributes(st, theirs)

    def _target(self, source: RealDir, name: bytes, st: os.stat_result) -> Target | None:
        if source.layer is not self._farm.layer or not stat.S_ISLNK(st.st_mode):
            return None
        target = self._links.read(os.readlink(name, dir_fd=source.fd()))
        return target if target is not None and target.layer in self._layers else None

    def _in_own_place(self, inode: Inode | None, target: Target) -> bool:
        """Whether a link stands for what the union shows there."""
        if isinstance(inode, Directory):
            layers = inode.layers()
            return len(layers) == 1 and self._names(layers[0]) == target
        if not isinstance(inode, File):
            return False
        place = inode.location()
        if place is None:
            return False
        above = self._names(place[0])
        return above.layer == target.layer and (*above.names, place[1]) == target.names

    def _names(self, real: RealDir) -> Target:
        names = []
        node = real
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        label = next((label for label, layer in self._layers.items() if layer is real.layer), "")
        return Target(label, tuple(reversed(names)))

    def _real(self, target: Target) -> RealDir:
        real = self._layers[target.layer].root
        for name in target.names:
            real = real.child(name)
        return real

    def _is_link_to_directory(self, target: Target) -> bool:
        st = self._real(Target(target.layer, target.names[:-1])).stat(target.names[-1])
        return st is not None and stat.S_ISDIR(st.st_mode)

    # -- directories -------------------------------------------------------------------------------------------------

    def _enter(
        self, visit: _Visit, name: bytes, inode: Inode | None, way: bytes, st: os.stat_result
    ) -> Directory | None:
        """The directory of the union that a real directory of the farm stands for; None when it stands for nothing."""
        farm = visit.source.child(name)
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

    def _replaced(self, directory: Directory, farm: RealDir, way: bytes) -> bool:
        """Whether a directory was put in the place of one that the ranch had made.

        A mark tells; without one (no attributes, or a restored backup), whether anything of the old one is left.
        """
        try:
            if os.getxattr(farm.proc_path(b"."), marker.MADE) == marker.made(way):
                return False
        except OSError:
            pass  # no mark: look at what is in it
        with self._readable(farm):
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
        target = self._target(farm, name, st)
        if target is not None:
            return self._in_own_place(inode, target)
        if isinstance(inode, Directory):
            return stat.S_ISDIR(st.st_mode)
        return isinstance(inode, File) and self._equal(inode, farm, name, st)

    def _attributes(self, directory: Directory, source: RealDir, st: os.stat_result, *, changed: bool) -> None:
        """Take over mode, owner, times (those in `st`) and attributes of a directory where they differ, or where
        it was changed."""
        theirs = self._union.stat(directory)[0]
        if self._merged == (theirs.st_dev, theirs.st_ino):
            return
        kept = not changed and private.same_attributes(st, theirs)
        if kept and private.same_xattrs(source.proc_path(b"."), directory.proc_path()):
            return
        upper = copy_up_directory(self._union.state, directory)
        private.match_xattrs(source.proc_path(b"."), upper.proc_path(b"."))
        owner = st if private.owner_differs(st, theirs) else theirs
        private.dress(b"/proc/self/fd/%d" % upper.fd(), private.with_owner(st, owner), follow=True)
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

    @contextmanager
    def _readable(self, directory: RealDir) -> Iterator[None]:
        """Lend the user the permission to read a directory of the farm that has none."""
        if directory.layer is not self._farm.layer:
            yield
            return
        fd = os.dup(directory.fd())
        path = b"/proc/self/fd/%d" % fd
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        lent = mode & 0o500 != 0o500
        try:
            if lent:
                os.chmod(path, mode | 0o500)
            yield
        finally:
            try:
                if lent:
                    os.chmod(path, mode)
            finally:
                os.close(fd)


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
