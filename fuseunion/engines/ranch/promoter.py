"""From links to private copies: the ranch's copy-up, asked for by name.

A link to a file is replaced by a copy in one rename, a link to a directory by a real directory of links in one
exchange; the directory that it lies in keeps its times, so that nothing counts as changed until something is.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.union import Union
from fuseunion.engines.engine import Report
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.farm import aside, private
from fuseunion.engines.ranch.farm.builder import Builder
from fuseunion.engines.ranch.farm.guard import Guard
from fuseunion.engines.ranch.farm.targets import Links, Target
from fuseunion.engines.ranch.record.ledger import Ledger
from fuseunion.engines.ranch.record.lending import WRITE_DIRECTORY
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.engines.ranch.record.record import Mode, Ranch
from fuseunion.engines.ranch.view import as_layer, known_owners
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls


def promote(ranch: Ranch, paths: list[str], *, recursive: bool, report: Report) -> None:
    """Replace links by private copies.

    Args:
        paths: from MERGED, or absolute in it.
        recursive: everything beneath them as well.
        report: told after each link how many were looked at.

    Raises:
        UserError: LAYERS for a path that is not in the ranch.
        OSError: EACCES for a file that the user may not read, ENOSPC.
    """
    top = ranch.record.merged
    with as_layer(ranch.open_merged(), top) as farm:
        promoter = _Promoter(ranch, farm, report)
        for path in paths:
            promoter.promote(path, _names(path, top), recursive=recursive)


def _names(path: str, merged: str) -> list[bytes]:
    """The names that lead from MERGED to a path."""
    if os.path.isabs(path):
        # The last name is a link, which must not be followed, and the way to it may lead through links of the ranch.
        normal = os.path.normpath(path)
        if os.path.commonpath((normal, merged)) != merged:
            raise UserError(f"'{path}' is not in '{merged}'", ExitCode.LAYERS)
        path = os.path.relpath(normal, merged)
    names = [os.fsencode(name) for name in path.split("/") if name not in ("", ".")]
    if b".." in names:
        raise UserError(f"'{path}' leads out of '{merged}'", ExitCode.LAYERS)
    return names


class _Promoter:
    def __init__(self, ranch: Ranch, farm: Layer, report: Report) -> None:
        self._ranch = ranch
        self._farm = farm
        self._links = Links(ranch.path, ranch.record.merged, ranch.record.links, {})
        self._ledger = Ledger(ranch.inside, farm.root)
        self._ledger.settle()
        self._report = report
        self._count = 0
        self._owners = known_owners(ranch.record) or Owners.mine()
        # Where each file with several names was copied first.
        self._copied: dict[tuple[int, int], tuple[RealDir, bytes]] = {}

    def promote(self, path: str, names: list[bytes], *, recursive: bool) -> None:
        directory = self._farm.root
        for level, name in enumerate(names):
            st = directory.stat(name)
            if st is None:
                raise UserError(f"'{path}' is not in the ranch", ExitCode.LAYERS)
            st = self._replace(directory, name, st, b"/".join(names[: level + 1]))
            if stat.S_ISDIR(st.st_mode):
                directory = directory.child(name)
            elif level < len(names) - 1:
                raise UserError(
                    f"'{os.fsdecode(name)}' on the way to '{path}' is no directory of the ranch", ExitCode.LAYERS
                )
            else:
                return
        if recursive:
            run(self._beneath(directory, b"/".join(names)))

    def _beneath(self, directory: RealDir, path: bytes) -> Step:
        for name in directory.names():
            st = directory.stat(name)
            if st is None:
                continue
            way = path + b"/" + name if path else name
            st = self._replace(directory, name, st, way)
            if stat.S_ISDIR(st.st_mode):
                yield self._beneath(directory.child(name), way)

    def _replace(self, directory: RealDir, name: bytes, st: os.stat_result, way: bytes) -> os.stat_result:
        """Replace one link, if it is one of ours; returns the lstat of what is there then."""
        if not stat.S_ISLNK(st.st_mode):
            return st
        target = self._links.read(os.readlink(name, dir_fd=directory.fd()))
        if target is None:
            return st
        self._count += 1
        self._report(self._count)
        found, place, layer = self._open(target)
        try:
            with self._ledger.lent(directory, WRITE_DIRECTORY), directory.times_kept():
                if stat.S_ISDIR(found.st_mode):
                    self._expand(directory, name, way, target, place, found)
                elif stat.S_ISREG(found.st_mode):
                    self._copy(directory, name, way, target, place, found)
        finally:
            layer.close()
        return directory.stat(name) or st

    def _copy(
        self, directory: RealDir, name: bytes, way: bytes, target: Target, place: RealDir, found: os.stat_result
    ) -> None:
        """Put a private copy in the place of a link; names of one file that are promoted together stay one file.

        As long as they are in their own places: a link elsewhere is a copy.
        """
        several = found.st_nlink > 1 and way == target.path
        key = (found.st_dev, found.st_ino)
        if several and self._link_copy(self._copied.setdefault(key, (directory, name)), directory, name):
            return
        with private.reading(place, target.names[-1]) as source:
            private.put_copy(source, found, directory, name, self._owners.of(found), marked=several)

    def _link_copy(self, first: tuple[RealDir, bytes], directory: RealDir, name: bytes) -> bool:
        if first == (directory, name):
            return False
        temporary = private.temporary_name(name)
        trees.remove(directory, temporary)  # of a command that was killed
        with self._ledger.lent_from_above(first[0]):
            try:
                os.link(first[1], temporary, src_dir_fd=first[0].fd(), dst_dir_fd=directory.fd(), follow_symlinks=False)
            except OSError:
                return False  # a filesystem without links: a file of its own
        os.rename(temporary, name, src_dir_fd=directory.fd(), dst_dir_fd=directory.fd())
        return True

    def _open(self, target: Target) -> tuple[os.stat_result, RealDir, Layer]:
        """The lstat of what a link stands for, the directory that it lies in, and the layer of these, to be closed."""
        record = self._ranch.record
        path = record.upper if target.layer == aside.UPPER else record.lowers[int(target.layer)]
        assert path is not None
        root = aside.source(self._ranch, target.layer, path)
        layer = Layer(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), writable=False, label=root)
        real = layer.root
        for name in target.names[:-1]:
            real = real.child(name)
        st = real.stat(target.names[-1])
        if st is None:
            layer.close()
            raise UserError(f"'{os.fsdecode(target.names[-1])}' is gone from its layer '{path}'", ExitCode.LAYERS)
        return st, real, layer

    def _expand(
        self, directory: RealDir, name: bytes, way: bytes, target: Target, place: RealDir, found: os.stat_result
    ) -> None:
        """Put a real directory of links in the place of a link to a directory."""
        fd = place.child(target.names[-1], found).open_itself()
        lower = Layer(fd, writable=False, label=os.fsdecode(name))
        root = b"".join(part + b"/" for part in target.names)
        record = self._ranch.record
        links = Links(self._ranch.path, record.merged, record.links, {lower: (target.layer, root)})
        safe = record.mode is Mode.MOUNTED or record.allow_writable_lower
        union = Union.plain([lower])
        temporary = private.temporary_name(name)
        trees.remove(directory, temporary)  # of a command that was killed
        try:
            os.mkdir(temporary, 0o700, dir_fd=directory.fd())
            guard = None if safe else Guard()
            builder = Builder(union, links, owners=self._owners, depth=0, copies=record.copies, guard=guard)
            builder.build(directory.child(temporary), way)
            try:
                syscalls.renameat2(directory.fd(), temporary, directory.fd(), name, syscalls.RENAME_EXCHANGE)
                os.unlink(temporary, dir_fd=directory.fd())
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.unlink(name, dir_fd=directory.fd())
                os.rename(temporary, name, src_dir_fd=directory.fd(), dst_dir_fd=directory.fd())
        except BaseException:
            trees.remove(directory, temporary)
            raise
        finally:
            union.close()
