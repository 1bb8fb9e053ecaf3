"""The single objects of a tree of links, which builder.py chooses among: links, copies, and special files made anew.

Each call is content with what an interrupted build left under the name, and refuses what somebody else put there.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.farm.portable import match_xattrs
from fuseunion.engines.ranch.farm.same import same_file
from fuseunion.engines.ranch.record.lending import legible
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.errors import ExitCode, UserError


def put_directory(farm: RealDir, name: bytes, way: bytes) -> None:
    """Make a directory.

    Args:
        way: the path of the name from MERGED.

    Raises:
        UserError: LAYERS for something else of that name.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=farm.fd())
    except FileExistsError:
        st = farm.stat(name)
        if st is None or not stat.S_ISDIR(st.st_mode):
            raise _in_the_way(way) from None


def put_link(farm: RealDir, name: bytes, way: bytes, text: bytes) -> None:
    """Make a symbolic link.

    Args:
        way: the path of the name from MERGED.

    Raises:
        UserError: LAYERS for something else of that name.
    """
    try:
        os.symlink(text, name, dir_fd=farm.fd())
    except FileExistsError:
        found = farm.stat(name)
        if found is None or not stat.S_ISLNK(found.st_mode) or os.readlink(name, dir_fd=farm.fd()) != text:
            raise _in_the_way(way) from None


class Twins:
    """Makes the objects of a farm that look like a file of the union, and are not links to it.

    Args:
        owners: who makes the farm.
    """

    def __init__(self, union: Union, owners: Owners) -> None:
        self._union = union
        self._owners = owners
        # Where each object with several names was made first; the memory that this takes goes with such objects only.
        self._made: dict[tuple[int, int], tuple[RealDir, bytes]] = {}

    def put_symbolic_link(self, file: File, farm: RealDir, name: bytes, way: bytes) -> None:
        """Make the same link: what it leads to is looked for in the ranch.

        Raises:
            UserError: LAYERS for something else of that name.
        """
        st = self._union.stat(file)[0]
        if self._link_first(st, farm, name):
            return
        with legible(_place(file)[0]):
            put_link(farm, name, way, self._union.readlink(file))
            self._clothe(file, farm, name, st)

    def put_special(self, file: File, farm: RealDir, name: bytes, way: bytes) -> bool:
        """Make a fifo, socket or device anew.

        Returns:
            False where the user may not make it.

        Raises:
            UserError: LAYERS for something else of that name.
        """
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
        with legible(_place(file)[0]):
            self._clothe(file, farm, name, st)
        return True

    def put_copy(self, file: File, farm: RealDir, name: bytes, way: bytes) -> None:
        """Make a private copy of a regular file.

        Raises:
            UserError: LAYERS for a file that the user may not read, and for something else of that name.
            OSError: EIO, ENOSPC, EDQUOT.
        """
        place = _place(file)
        st = self._union.stat(file)[0]
        if farm.stat(name) is not None and not same_file(farm, name, *place, None):
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

    def _clothe(self, file: File, farm: RealDir, name: bytes, st: os.stat_result) -> None:
        """Attributes, owner, mode and times of a symbolic link or special file."""
        real, real_name = _place(file)
        match_xattrs(real.object(real_name), farm.object(name))
        private.dress(farm.object(name), st, self._owners.of(st))

    def _link_first(self, st: os.stat_result, farm: RealDir, name: bytes) -> bool:
        """Make one more name of an object that was made under another name before, if that can be done."""
        if st.st_nlink < 2:
            return False
        first = self._made.setdefault((st.st_dev, st.st_ino), (farm, name))
        if first == (farm, name):
            return False
        with legible(first[0]):
            try:
                os.link(first[1], name, src_dir_fd=first[0].fd(), dst_dir_fd=farm.fd(), follow_symlinks=False)
            except OSError:
                return False  # a filesystem without links, or a name from the build that was interrupted
        return True


def _place(file: File) -> tuple[RealDir, bytes]:
    place = file.location()
    assert place is not None, "a name led to it"
    return place


def _in_the_way(way: bytes) -> UserError:
    return UserError(
        f"'{os.fsdecode(way)}' in MERGED was not made by the ranch; move it away and try again", ExitCode.LAYERS
    )
