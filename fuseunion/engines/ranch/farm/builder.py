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

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.trees import open_up
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.guard import Guard
from fuseunion.engines.ranch.farm.objects import Twins, put_directory, put_link
from fuseunion.engines.ranch.farm.portable import match_xattrs
from fuseunion.engines.ranch.farm.targets import PATH_MAX, Links
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.lending import legible
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
        self._twins = Twins(union, owners)
        self._lowest = union.lowers[-1]

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
        open_up(farm)
        leads: dict[int, bytes] = {}
        for name in names_in(union, directory, self._merged):
            inode = union.lookup(directory, name)
            if inode is None:
                continue
            union.complete_links(inode, directory, name)  # the link index means nothing to a link
            way = path + b"/" + name if path else name
            with union.held(inode):
                if isinstance(inode, File):
                    self._file(inode, farm, name, way, level, leads)
                elif isinstance(inode, Directory) and self._is_real(inode, level, way):
                    put_directory(farm, name, way)
                    yield self._directory(inode, farm.child(name), level + 1, way)
                elif isinstance(inode, Directory):
                    put_link(farm, name, way, self._text(inode.top.parent, leads, level, name))
            self._count += 1
            self._report(self._count)
        self._finish(directory, farm, path)

    def _finish(self, directory: Directory, farm: RealDir, path: bytes) -> None:
        """Attributes, mark, owner, mode and times of a directory that is filled."""
        st = self._union.stat(directory)[0]
        with legible(directory.top), directory.grasp() as held:
            match_xattrs(held, farm.itself())
        try:
            farm.itself().setxattr(marker.MADE, marker.made(path))
        except OSError:
            pass  # no attributes here
        private.dress(farm.itself(), st, self._owners.of(st))

    def _file(self, file: File, farm: RealDir, name: bytes, way: bytes, level: int, leads: dict[int, bytes]) -> None:
        place = file.location()
        assert place is not None, "a name led to it"
        if file.data is not None:
            raise UserError(f"'{os.fsdecode(way)}' has its data in another layer (metacopy)", ExitCode.UNAVAILABLE)
        if stat.S_ISLNK(file.kind):
            self._twins.put_symbolic_link(file, farm, name, way)
            return
        if stat.S_ISREG(file.kind) and (file.in_upper or self._patterns.match(way)):
            self._twins.put_copy(file, farm, name, way)
            return
        if not stat.S_ISREG(file.kind) and self._twins.put_special(file, farm, name, way):
            return
        guard = None if file.in_upper else self._guard
        if guard is not None and guard.changeable(place[0], place[1], self._union.stat(file)[0]):
            raise _changeable(way)
        text = self._text(place[0], leads, level, place[1])
        if len(text) >= PATH_MAX and stat.S_ISREG(file.kind):
            self._twins.put_copy(file, farm, name, way)
        else:
            put_link(farm, name, way, text)

    def _is_real(self, directory: Directory, level: int, way: bytes) -> bool:
        if self._depth is not None and level >= self._depth and self._may_link(directory):
            if self._guard is None:
                return False
            found = self._guard.changeable_beneath(directory.top)
            if found is not None:
                raise _changeable(way + b"/" + found)
            return False
        # Where nobody can list, nothing can be linked one by one.
        if not self._may_link(directory):
            return True
        with directory.grasp() as held:
            return held.allows(os.R_OK | os.X_OK)

    def _may_link(self, directory: Directory) -> bool:
        layers = directory.layers()
        return len(layers) == 1 and layers[0].layer is self._lowest

    def _text(self, real: RealDir | None, leads: dict[int, bytes], level: int, name: bytes) -> bytes:
        assert real is not None, "no root of a layer is linked"
        lead = leads.get(id(real))
        if lead is None:
            lead = leads[id(real)] = self._links.lead(real, level)
        return lead + name


def names_in(union: Union, directory: Directory, merged: tuple[int, int] | None) -> list[bytes]:
    """The names of a directory of the union, a whiteout's among them; none in MERGED itself.

    Args:
        merged: identity of MERGED where it lies inside a lower.

    Raises:
        OSError: of the layers.
    """
    if merged is not None:
        for real in directory.layers():
            st = real.own_stat()
            if (st.st_dev, st.st_ino) == merged:
                return []
    return union.list_names(directory)


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
