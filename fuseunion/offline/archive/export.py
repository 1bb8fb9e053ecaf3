"""An upper as a layer of a container image, or as an archive from which tar(1) makes an upper again.

    oci        whiteouts are `.wh.NAME`, opaque directories hold `.wh..wh..opq` (OCI image specification, layer.md)
    overlay    whiteouts are 0/0 devices, opaque directories have the attribute `opaque`, under both prefixes: whoever
               unpacks it may set one of them at least

The same tree always becomes the same bytes: members in the order of the reader, no names of users, no numbers of
inodes or devices of files; the time of a whiteout, which says nothing, is 0.

What an archive cannot hold is left out and said: sockets, attributes that would be marks to whoever unpacks them,
labels of this machine's security modules. The root directory is in the overlay form only: the root of a container is
that of its lowest layer, and what most programs make of another one is not what was meant.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fuseunion.core.copying.copy_data import data_segments
from fuseunion.core.disk.wh_files import OPAQUE as OPAQUE_FILE
from fuseunion.core.disk.wh_files import PREFIX as WHITEOUT_PREFIX
from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import IdMap
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.objects.recognition import DiskId
from fuseunion.offline.archive.tar_writer import Member, TarWriter
from fuseunion.offline.layers import reader
from fuseunion.offline.layers.opening import View
from fuseunion.offline.layers.reader import Entry

_PIECE = 1 << 20
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_OF_THE_MACHINE = frozenset({b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64"})


class Style(NamedTuple):
    """How a layer is written.

    Attributes:
        overlay: in the overlay form, else in that of OCI.
        mtime_ns: of everything; None for the times that the objects have.
        sparse: holes are left out, in the form of GNU tar.
    """

    overlay: bool = False
    mtime_ns: int | None = None
    sparse: bool = False


class Exported(NamedTuple):
    """What was written.

    Attributes:
        entries: members of the archive.
        left_out: what was not, one line each.
    """

    entries: int
    left_out: list[str]


def export(view: View, write: Callable[[bytes], object], style: Style, done: Callable[[int], None]) -> Exported:
    """Write a layer.

    Args:
        view: an upper; its identity decides which owners are written.
        write: takes the bytes of the archive.
        done: is told after each object how many there were.

    Raises:
        IncompleteError: the lowers are needed; OSError: of the layers; UserError: LAYERS for an owner that the maps do
            not cover, or a file that changes meanwhile.
    """
    layer = _Layer(view, TarWriter(write), style)
    for number, entry in enumerate(reader.read(view)):
        layer.add(entry)
        done(number + 1)
    layer.finish()
    return Exported(layer.entries, layer.left_out)


class _Layer:
    def __init__(self, view: View, tar: TarWriter, style: Style) -> None:
        self._union = view.union
        self._tar = tar
        self._style = style
        self._first: dict[DiskId, bytes] = {}
        self.entries = 0
        self.left_out: list[str] = []

    def finish(self) -> None:
        """End the archive."""
        self._tar.finish()

    def add(self, entry: Entry) -> None:
        """Add what stands for one entry."""
        if entry.inode is None:
            self._add_whiteout(entry)
        elif entry.path or self._style.overlay:
            with reader.named(entry.path):
                self._add_object(entry, entry.inode)

    def _put(self, member: Member) -> None:
        self._tar.add(member)
        self.entries += 1

    def _mtime(self, nanoseconds: int) -> int:
        return nanoseconds if self._style.mtime_ns is None else self._style.mtime_ns

    def _add_whiteout(self, entry: Entry) -> None:
        if self._style.overlay:
            self._put(Member(entry.path, tarfile.CHRTYPE, mtime_ns=self._mtime(0)))
        else:
            self._put(_mark(entry.path, WHITEOUT_PREFIX + entry.name, self._mtime(0)))

    def _add_object(self, entry: Entry, inode: Inode) -> None:
        st = self._union.stat(inode)[0]
        kind = _KINDS.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            self._leave_out(entry.path, "a socket")
            return
        uid, gid = self._owner(entry.path, st)
        member = Member(
            entry.path or b".", kind, stat.S_IMODE(st.st_mode), uid, gid, self._mtime(st.st_mtime_ns),
            device=st.st_rdev if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode) else 0,
        )  # fmt: skip
        if isinstance(inode, File) and self._is_linked(member, inode):
            return
        if kind == tarfile.SYMTYPE:
            assert isinstance(inode, File)
            member.link, member.mode = self._union.readlink(inode), 0o777
        xattrs = self._xattrs(entry, inode)
        if entry.opaque and self._style.overlay:
            xattrs |= {prefix + xattr_names.OPAQUE: b"y" for prefix in xattr_names.PREFIXES}
        member.xattrs = dict(sorted(xattrs.items()))
        if kind == tarfile.REGTYPE:
            assert isinstance(inode, File)
            self._add_file(member, inode)
        else:
            self._put(member)
        if isinstance(inode, Directory) and entry.opaque and not self._style.overlay:
            self._put(_mark(entry.path + b"/", OPAQUE_FILE, self._mtime(0)))

    def _is_linked(self, member: Member, file: File) -> bool:
        """Write one more name of a file that has been written."""
        identity = reader.identity(self._union, file)
        if identity is None:
            return False
        first = self._first.setdefault(identity, member.name)
        if first == member.name:
            return False
        member.kind, member.link, member.device = tarfile.LNKTYPE, first, 0
        self._put(member)
        return True

    def _add_file(self, member: Member, file: File) -> None:
        fd = self._union.open_for_a_moment(file)
        try:
            member.size = os.fstat(fd).st_size
            whole = [(0, member.size)] if member.size else []
            segments = list(data_segments(fd, member.size)) if self._style.sparse else whole
            if segments == whole:
                self._tar.add(member, _pieces(fd, whole))
            else:
                self._tar.add_sparse(member, segments, _pieces(fd, segments))
        except ValueError:
            name = os.fsdecode(member.name)
            raise UserError(
                f"'{name}' became shorter while it was read; nobody may write meanwhile", ExitCode.BUSY
            ) from None
        finally:
            os.close(fd)
        self.entries += 1

    def _owner(self, path: bytes, st: os.stat_result) -> tuple[int, int]:
        identity = self._union.settings.identity
        return _mapped(identity.uids, st.st_uid, path), _mapped(identity.gids, st.st_gid, path)

    def _xattrs(self, entry: Entry, inode: Inode) -> dict[bytes, bytes]:
        found = {}
        for name, value in reader.xattrs_of(self._union, inode).items():
            is_mark = name.startswith(xattr_names.MARK_PREFIXES)
            if name in _OF_THE_MACHINE:
                continue
            if b"=" in name or (is_mark and not self._style.overlay):
                self._leave_out(entry.path, f"the attribute {os.fsdecode(name)}")
                continue
            found[xattr_names.to_disk(name) if is_mark else name] = value
        return found

    def _leave_out(self, path: bytes, what: str) -> None:
        self.left_out.append(f"'{os.fsdecode(path)}': {what} is left out: the archive has no place for it")


def _mapped(ids: IdMap, number: int, path: bytes) -> int:
    shown = ids.shown_or_none(number)
    if shown is None:
        raise UserError(
            f"the {ids.kind} {number} of '{os.fsdecode(path)}' is not covered by --{ids.kind}-map; add a range for it",
            ExitCode.LAYERS,
        )
    return shown


def _mark(path: bytes, name: bytes, mtime_ns: int) -> Member:
    """An empty file beside the last part of a path, as containers/storage writes it."""
    return Member(path[: path.rfind(b"/") + 1] + name, tarfile.REGTYPE, mtime_ns=mtime_ns)


def _pieces(fd: int, segments: list[tuple[int, int]]) -> Iterator[bytes]:
    for start, end in segments:
        while start < end:
            piece = os.pread(fd, min(_PIECE, end - start), start)
            if not piece:
                return  # shorter than it was, which is noticed
            yield piece
            start += len(piece)
