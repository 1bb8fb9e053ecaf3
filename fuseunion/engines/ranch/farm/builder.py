"""From a union to a tree of links.

    directory                 a real one with the attributes of the merged one; a link once `depth` is reached, if only
                              the lowest layer takes part (a higher layer may hold whiteouts, which a link would show)
    symbolic link             the same link: what it leads to is looked for in the ranch, as it is in the union
    regular file of UPPER     a private copy, so that UPPER stays as it is until the ranch is collected
    file that --copy names    a private copy
    fifo, socket, device      the same made anew, where the user may make it
    anything else             a link

Building again over what an interrupted build left gives the same tree, and refuses what somebody else put there.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.listing import candidates
from fuseunion.core.union import Union
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.guard import Guard
from fuseunion.engines.ranch.farm.targets import PATH_MAX, Links
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.errors import ExitCode, UserError


class Builder:
    """Fills one farm.

    Args:
        depth: levels of real directories, None for all.
        copies: patterns of paths that get private copies; a pattern without a slash is for the last name alone.
        guard: refuses links to what the user could change; None where mounts protect it.
        merged: identity of MERGED where it lies inside a lower: there the union is empty.
        owners: who makes the farm.
        report: told after each object how many there are.
    """

    def __init__(
        self,
        union: Union,
        links: Links,
        *,
        owners: Owners,
        depth: int | None = None,
        copies: tuple[str, ...] = (),
        guard: Guard | None = None,
        merged: tuple[int, int] | None = None,
        report: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._union = union
        self._links = links
        self._depth = depth
        self._owners = owners
        self._patterns = _Patterns(copies)
        self._guard = guard
        self._merged = merged
        self._report = report
        self._count = 0
        # Where each object with several names was made first; the memory that this takes goes with such objects only.
        self._copied: dict[tuple[int, int], tuple[RealDir, bytes]] = {}
        self._lowest = union.state.lowers[-1]

    def build(self, farm: RealDir, path: bytes = b"") -> None:
        """Fill a directory with the root of the union.

        Args:
            path: where it lies in MERGED.
        Raises:
            UserError: LAYERS for what the user could change through a link, or what is in the way.
            OSError: of the layers and the farm's filesystem.
        """
        level = path.count(b"/") + 1 if path else 0
        run(self._directory(self._union.root, farm, level, path))

    def _directory(self, directory: Directory, farm: RealDir, level: int, path: bytes) -> Step:
        union = self._union
        private.open_up(farm)
        leads: dict[int, bytes] = {}
        for name in names_in(directory, self._merged):
            inode = union.lookup(directory, name)
            if inode is None:
                continue
            fd = farm.fd()
            way = path + b"/" + name if path else name
            if isinstance(inode, Directory):
                if self._is_real(inode, level, way):
                    _make_directory(farm, name, way)
                    union.remember(inode)
                    yield self._directory(inode, farm.child(name), level + 1, way)
                    union.forget(inode.ino, 1)
                else:
                    self._put_link(farm, fd, name, way, self._text(inode.top.parent, leads, level, name))
                    union.release(inode)
            elif isinstance(inode, File):
                self._file(inode, farm, fd, name, way, level, leads)
                union.release(inode)
            self._count += 1
            self._report(self._count)
        st = union.stat(directory)[0]
        with private.legible(directory.top):
            private.match_xattrs(private.place_of(directory), farm.fd())
        try:
            os.setxattr(private.proc_fd(farm.fd()), marker.MADE, marker.made(path))
        except OSError:
            pass  # no attributes here
        private.dress(farm.fd(), st, self._owners.of(st))

    def _file(
        self, file: File, farm: RealDir, fd: int, name: bytes, way: bytes, level: int, leads: dict[int, bytes]
    ) -> None:
        place = file.location()
        assert place is not None, "a name led to it"
        if stat.S_ISLNK(file.kind):
            self._put_symbolic_link(file, farm, fd, name, way)
            return
        if stat.S_ISREG(file.kind) and (file.in_upper or self._patterns.match(way)):
            self._put_copy(file, farm, name, way)
            return
        if not stat.S_ISREG(file.kind) and self._put_special(file, farm, name, way):
            return
        guard = None if file.in_upper else self._guard
        if guard is not None and guard.changeable(place[0], place[1], self._union.stat(file)[0]):
            raise _changeable(way)
        text = self._text(place[0], leads, level, place[1])
        if len(text) >= PATH_MAX and stat.S_ISREG(file.kind):
            self._put_copy(file, farm, name, way)
        else:
            self._put_link(farm, fd, name, way, text)

    def _is_real(self, directory: Directory, level: int, way: bytes) -> bool:
        if self._depth is not None and level >= self._depth and self._may_link(directory):
            if self._guard is None:
                return False
            found = self._guard.changeable_beneath(directory.top)
            if found is not None:
                raise _changeable(way + b"/" + found)
            return False
        # Where nobody can list, nothing can be linked one by one.
        return not self._may_link(directory) or os.access(directory.proc_path(), os.R_OK | os.X_OK, effective_ids=True)

    def _may_link(self, directory: Directory) -> bool:
        layers = directory.layers()
        return len(layers) == 1 and layers[0].layer is self._lowest

    def _text(self, real: RealDir | None, leads: dict[int, bytes], level: int, name: bytes) -> bytes:
        assert real is not None, "no root of a layer is linked"
        lead = leads.get(id(real))
        if lead is None:
            lead = leads[id(real)] = self._links.lead(real, level)
        return lead + name

    def _put_link(self, farm: RealDir, fd: int, name: bytes, way: bytes, text: bytes) -> None:
        try:
            os.symlink(text, name, dir_fd=fd)
        except FileExistsError:
            found = farm.stat(name)
            if found is None or not stat.S_ISLNK(found.st_mode) or os.readlink(name, dir_fd=fd) != text:
                raise _in_the_way(way) from None

    def _put_symbolic_link(self, file: File, farm: RealDir, fd: int, name: bytes, way: bytes) -> None:
        st = self._union.stat(file)[0]
        if self._link_first(st, farm, name):
            return
        with private.legible(self._place(file)[0]):
            self._put_link(farm, fd, name, way, self._union.readlink(file))
            self._clothe(file, farm, name, st)

    def _put_special(self, file: File, farm: RealDir, name: bytes, way: bytes) -> bool:
        st = self._union.stat(file)[0]
        found = farm.stat(name)
        if found is not None:
            if stat.S_ISLNK(found.st_mode):
                return False  # it could not be made in the build that was interrupted
            if (stat.S_IFMT(found.st_mode), found.st_rdev) != (stat.S_IFMT(st.st_mode), st.st_rdev):
                raise _in_the_way(way)
        if self._link_first(st, farm, name):
            return True
        if found is None:
            try:
                os.mknod(name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=farm.fd())
            except PermissionError:
                return False
        with private.legible(self._place(file)[0]):
            self._clothe(file, farm, name, st)
        return True

    def _clothe(self, file: File, farm: RealDir, name: bytes, st: os.stat_result) -> None:
        """Attributes, owner, mode and times of a symbolic link or special file."""
        real, real_name = self._place(file)
        private.match_xattrs(real.proc_path(real_name), farm.proc_path(name))
        private.dress(farm.proc_path(name), st, self._owners.of(st))

    @staticmethod
    def _place(file: File) -> tuple[RealDir, bytes]:
        place = file.location()
        assert place is not None, "a name led to it"
        return place

    def _put_copy(self, file: File, farm: RealDir, name: bytes, way: bytes) -> None:
        place = self._place(file)
        st = self._union.stat(file)[0]
        if farm.stat(name) is not None and not private.same_file(farm, name, *place, None):
            raise _in_the_way(way)
        if self._link_first(st, farm, name) or farm.stat(name) is not None:
            return
        with ExitStack() as stack:
            try:
                source = stack.enter_context(private.reading(*place))
            except PermissionError:
                raise UserError(
                    f"'{os.fsdecode(way)}' may not be read by you and so not be copied", ExitCode.LAYERS
                ) from None
            private.put_copy(source, st, farm, name, self._owners.of(st), marked=st.st_nlink > 1)

    def _link_first(self, st: os.stat_result, farm: RealDir, name: bytes) -> bool:
        """Make one more name of an object that was made under another name before, if that can be done."""
        if st.st_nlink < 2:
            return False
        first = self._copied.setdefault((st.st_dev, st.st_ino), (farm, name))
        if first == (farm, name):
            return False
        with private.legible(first[0]):
            try:
                os.link(first[1], name, src_dir_fd=first[0].fd(), dst_dir_fd=farm.fd(), follow_symlinks=False)
            except OSError:
                return False  # a filesystem without links, or a name from the build that was interrupted
        return True


def names_in(directory: Directory, merged: tuple[int, int] | None) -> list[bytes]:
    """The names of a directory of the union, a whiteout's among them; none in MERGED itself."""
    if merged is not None:
        for real in directory.layers():
            st = real.own_stat()
            if (st.st_dev, st.st_ino) == merged:
                return []
    return candidates(directory)


def _make_directory(farm: RealDir, name: bytes, way: bytes) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=farm.fd())
    except FileExistsError:
        st = farm.stat(name)
        if st is None or not stat.S_ISDIR(st.st_mode):
            raise _in_the_way(way) from None


class _Patterns:
    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._names = _compile(pattern for pattern in patterns if "/" not in pattern)
        self._paths = _compile(pattern.strip("/") for pattern in patterns if "/" in pattern)

    def match(self, way: bytes) -> bool:
        if self._names is None and self._paths is None:
            return False
        path = os.fsdecode(way)
        return bool(
            (self._names and self._names.fullmatch(path.rpartition("/")[2]))
            or (self._paths and self._paths.fullmatch(path))
        )


def _compile(patterns: Iterable[str]) -> re.Pattern[str] | None:
    parts = [fnmatch.translate(pattern) for pattern in patterns]
    return re.compile("|".join(parts)) if parts else None


def _changeable(way: bytes) -> UserError:
    return UserError(
        f"'{os.fsdecode(way)}' of the lower could be changed through its link, since nothing can be mounted here; copy "
        "such files with --copy GLOB (--copy '*' for all), or take the risk with --allow-writable-lower",
        ExitCode.LAYERS,
    )


def _in_the_way(way: bytes) -> UserError:
    return UserError(
        f"'{os.fsdecode(way)}' in MERGED was not made by the ranch; move it away and try again", ExitCode.LAYERS
    )
