"""A layer of a container image, brought into a directory, or into an upper.

The rules of the image specification (layer.md), as containers/storage follows them:

    .wh.NAME         NAME of the layers below goes, wherever in the archive it stands; not what this layer has
    .wh..wh..opq     the same for everything in its directory
    .wh..wh.*        anything else that AUFS left is passed over
    a directory over a directory gets its attributes; anything else over anything else takes its place
    missing parents are made, with mode 0755

A member may come from anybody. Its path is taken from the root of the tree, and what leads out of it is refused, as is
a path over a link that the same archive holds; a link from a layer below gives way to a directory, as a mount of both
would show it. The Builder sees to the rest: marks in names, attributes and device numbers mean nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from fuseunion.core.disk.wh_files import OPAQUE, is_reserved, name_hidden_by
from fuseunion.core.ids.identity import IdMap
from fuseunion.errors import ExitCode, UserError
from fuseunion.offline.archive import tar_reader
from fuseunion.offline.archive.tar_reader import DamagedError, Members
from fuseunion.offline.layers.builder import Builder, Facts, InTheWayError

_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_OF_THE_MACHINE = frozenset({b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64"})
_LARGEST_ID = 2**32 - 2
_TOLD = 20
"""How many objects are named that could not be made; the rest is counted."""


class Limits(NamedTuple):
    """What an archive may be at most; None for as much as it likes.

    Attributes:
        size: bytes of all files.
        entries: members.
    """

    size: int | None = None
    entries: int | None = None


class Unpacker:
    """Brings layers in, the lowest first.

    Args:
        builder: of the directory.
        limits: for all layers together.
        uids, gids: whose the objects are for each id in the archives.
        done: is told after each member how many there were.

    Attributes:
        entries: how many members there were.
        left_out: what could not be made, one line each.
    """

    def __init__(self, builder: Builder, limits: Limits, uids: IdMap, gids: IdMap, done: Callable[[int], None]) -> None:
        self._builder = builder
        self._limits = limits
        self._ids = uids, gids
        self._done = done
        self._size = 0
        self._salt = os.urandom(16)
        self._made: set[int] = set()
        builder.may_replace = lambda path: not self._is_ours(path)
        self.entries = 0
        self.left_out: list[str] = []
        self._not_told = 0

    @property
    def says_left_out(self) -> list[str]:
        """What a user is told of what could not be made."""
        more = [f"... and {self._not_told} more"] if self._not_told else []
        return self.left_out + more

    def add(self, source: BinaryIO, label: str) -> None:
        """Bring one layer in.

        Args:
            source: the archive, not compressed.
            label: how messages name it.

        Raises:
            UserError: LAYERS for an archive that is damaged, hostile or larger than it may be; FAILURE where the
                system refuses.
        """
        self._made.clear()
        members = Members(source)
        path = b""
        try:
            for member in members:
                path = tar_reader.path_of(member)
                self._count(member)
                self._add(members, member, path)
                self._done(self.entries)
        except DamagedError as error:
            where = f" at '{os.fsdecode(path)}'" if path else ""
            raise UserError(f"'{label}' cannot be used{where}: {error}", ExitCode.LAYERS) from None
        except InTheWayError as error:
            raise UserError(
                f"'{label}' cannot be used: '{os.fsdecode(path)}' leads over '{os.fsdecode(error.path)}', which the "
                "same archive makes, and which is no directory",
                ExitCode.LAYERS,
            ) from None
        except OSError as error:
            raise UserError(
                f"'{os.fsdecode(path)}' of '{label}': {error.strerror or error}", ExitCode.FAILURE
            ) from None

    def _count(self, member: tarfile.TarInfo) -> None:
        self.entries += 1
        self._size += max(member.size, 0)
        for number, limit, option in (
            (self.entries, self._limits.entries, "--max-entries"),
            (self._size, self._limits.size, "--limit"),
        ):
            if limit is not None and number > limit:
                raise DamagedError(f"it holds more than {option} {limit} allows")

    def _add(self, members: Members, member: tarfile.TarInfo, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        if any(is_reserved(part) for part in parent.split(b"/")):
            if parent.split(b"/")[-1].startswith(b".wh..wh."):
                return  # what AUFS keeps for itself
            raise DamagedError("a directory has the name of a whiteout")
        if is_reserved(name):
            self._hide(parent, name)
            return
        if not path and not member.isdir():
            raise DamagedError("the root is no directory")
        self._make(members, member, path)
        self._note(path)

    # -- objects -----------------------------------------------------------------------------------------------------

    def _make(self, members: Members, member: tarfile.TarInfo, path: bytes) -> None:
        builder = self._builder
        if member.islnk():
            target = tar_reader.clean(tar_reader.link_of(member))
            try:
                builder.link(path, target)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise DamagedError(
                    f"it is a hard link to '{os.fsdecode(target)}', and no file of that name is there"
                ) from None
            return
        kind = _KINDS.get(member.type)
        if kind is None:
            raise DamagedError(f"its type {member.type!r} is not known")
        facts = self._facts(member, kind)
        if kind == stat.S_IFDIR:
            builder.directory(path, facts)
        elif kind == stat.S_IFREG:
            builder.file(path, facts, member.size, members.content(member))
        elif kind == stat.S_IFLNK:
            builder.symlink(path, facts, tar_reader.link_of(member))
        else:
            self._make_special(path, facts)

    def _make_special(self, path: bytes, facts: Facts) -> None:
        try:
            self._builder.special(path, facts)
        except PermissionError:
            # mknod(2): a device needs CAP_MKNOD in the first user namespace. One that is 0/0 is a whiteout.
            if len(self.left_out) < _TOLD:
                self.left_out.append(f"'{os.fsdecode(path)}' is a device, which cannot be made here; left out")
            else:
                self._not_told += 1

    def _facts(self, member: tarfile.TarInfo, kind: int) -> Facts:
        mode = kind | stat.S_IMODE(member.mode)
        device = 0
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            try:
                device = os.makedev(member.devmajor, member.devminor)
            except (OverflowError, ValueError):
                raise DamagedError("a device has an impossible number") from None
        xattrs = {
            name: value for name, value in tar_reader.xattrs_of(member).items() if name not in _OF_THE_MACHINE and name
        }
        return Facts(mode, *self._owner(member), tar_reader.mtime_of(member), xattrs, device)

    def _owner(self, member: tarfile.TarInfo) -> tuple[int, int]:
        found = []
        for ids, number in zip(self._ids, (member.uid, member.gid), strict=True):
            disk = ids.disk_or_none(number)
            if disk is None or not 0 <= disk <= _LARGEST_ID:
                raise DamagedError(f"its {ids.kind} {number} is not covered by --{ids.kind}-map, or is none")
            found.append(disk)
        return found[0], found[1]

    # -- what the layers below had -----------------------------------------------------------------------------------

    def _hide(self, parent: bytes, name: bytes) -> None:
        """What a `.wh.` file says."""
        if name == OPAQUE:
            self._clear(parent)
            self._builder.make_opaque(parent)
            return
        hidden = name_hidden_by(name)
        if hidden is None:
            return  # AUFS's own
        if not hidden or is_reserved(hidden) or hidden in (b".", b".."):
            raise DamagedError("a whiteout hides what is no name")
        path = parent + b"/" + hidden if parent else hidden
        if not self._is_ours(path):
            self._builder.remove(path)
        elif self._builder.find_directory(path) is not None:
            self._clear(path)
            self._builder.make_opaque(path)

    def _clear(self, top: bytes) -> None:
        """Remove what a directory has from the layers below."""
        waiting = [top]
        while waiting:
            way = waiting.pop()
            for name in self._builder.names(way):
                path = way + b"/" + name if way else name
                if not self._is_ours(path):
                    self._builder.remove(path, hide=False)
                elif self._builder.find_directory(path) is not None:
                    waiting.append(path)

    def _note(self, path: bytes) -> None:
        """This layer has a path, and all that is above it."""
        while path:
            key = self._key(path)
            if key in self._made:
                return
            self._made.add(key)
            path = path.rpartition(b"/")[0]

    def _is_ours(self, path: bytes) -> bool:
        return self._key(path) in self._made

    def _key(self, path: bytes) -> int:
        """A number in the place of a path, which would take several times as much memory."""
        return int.from_bytes(hashlib.blake2b(path, digest_size=8, salt=self._salt).digest(), "little")
