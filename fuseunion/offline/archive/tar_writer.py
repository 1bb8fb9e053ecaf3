"""Writing a tar archive that depends on nothing but what is put into it.

The headers are Python's (tarfile.TarInfo, PAX format); the stream is ours, because tarfile.TarFile keeps every member
in memory and has no way to write a sparse file. Attributes are in `SCHILY.xattr.NAME`, times to the nanosecond in
`mtime`, and holes, where they are asked for, in the form that GNU tar calls PAX 1.0.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

XATTR = b"SCHILY.xattr."
_BLOCK = 512
_RECORD = 20 * _BLOCK
_ZEROS = bytes(_RECORD)
_NANO = 10**9
_LONGEST_NAME = 99
_LARGEST_ID = 0o7777777
_LARGEST_SIZE = 0o77777777777
"""What has a place in the old header: digits and a NUL at the end."""


@dataclass(slots=True)
class Member:
    """The header of one member.

    Attributes:
        name: without a slash in front or behind.
        kind: tarfile.REGTYPE and so on.
        mtime_ns: may be negative.
        size: bytes of content.
        link: the target of a symbolic link, or the member that a hard link is another name of.
        device: st_rdev.
        xattrs: by name.
    """

    name: bytes
    kind: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    device: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


class TarWriter:
    """Writes members one after another.

    Args:
        write: takes the bytes of the archive.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._sink = write
        self._written = 0

    def add(self, member: Member, data: Iterable[bytes] = ()) -> None:
        """Add a member.

        Args:
            data: pieces of its content, exactly as many bytes as its size says.

        Raises:
            ValueError: there are fewer bytes, or more: the file has changed.
        """
        self._write(_header(member, {}))
        self._content(data, member.size)

    def add_sparse(self, member: Member, segments: list[tuple[int, int]], data: Iterable[bytes]) -> None:
        """Add a regular file with holes.

        Args:
            segments: start and end of each range of data, in order.
            data: pieces of what is in them.

        Raises:
            ValueError: as `add`.
        """
        # GNU tar knows the end of a file by its last range.
        ranges = segments if segments and segments[-1][1] == member.size else [*segments, (member.size, member.size)]
        numbers = [len(ranges)]
        for start, end in ranges:
            numbers += (start, end - start)
        table = b"".join(b"%d\n" % number for number in numbers)
        table += bytes(-len(table) % _BLOCK)
        records = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": member.name,
            b"GNU.sparse.realsize": b"%d" % member.size,
        }
        stored = len(table) + sum(end - start for start, end in segments)
        head, _, tail = member.name.rpartition(b"/")
        placed = Member(
            (head + b"/" if head else b"") + b"GNUSparseFile.0/" + tail,
            member.kind, member.mode, member.uid, member.gid, member.mtime_ns, stored, xattrs=member.xattrs,
        )  # fmt: skip
        self._write(_header(placed, records))
        self._write(table)
        self._content(data, stored - len(table))

    def finish(self) -> None:
        """End the archive: two empty blocks, and as many more as make a whole record (POSIX pax, ustar)."""
        self._write(bytes(2 * _BLOCK))
        self._write(_ZEROS[: -self._written % _RECORD])

    def _content(self, data: Iterable[bytes], size: int) -> None:
        rest = size
        for piece in data:
            rest -= len(piece)
            if rest < 0:
                break
            self._write(piece)
        if rest:
            raise ValueError("the size has changed meanwhile")
        self._write(_ZEROS[: -size % _BLOCK])

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        self._sink(data)


def _header(member: Member, records: Mapping[bytes, bytes]) -> bytes:
    """The blocks before the content: a PAX header with all that has no place in the old one, and that one."""
    name = member.name + b"/" if member.kind == tarfile.DIRTYPE else member.name
    pax = dict(records)
    for keyword, text in ((b"path", name), (b"linkpath", member.link)):
        if len(text) > _LONGEST_NAME or not text.isascii():
            pax[keyword] = text
    for keyword, number, limit in (
        (b"uid", member.uid, _LARGEST_ID),
        (b"gid", member.gid, _LARGEST_ID),
        (b"size", member.size, _LARGEST_SIZE),
    ):
        if number > limit:
            pax[keyword] = b"%d" % number
    seconds, nanoseconds = divmod(member.mtime_ns, _NANO)
    if nanoseconds or not 0 <= seconds <= _LARGEST_SIZE:
        pax[b"mtime"] = _decimal(member.mtime_ns)
    for attribute, value in member.xattrs.items():
        pax[XATTR + attribute] = value
    info = tarfile.TarInfo(_short(name))
    info.type, info.mode, info.linkname = member.kind, member.mode, _short(member.link)
    info.uid, info.gid = _if_fits(member.uid, _LARGEST_ID), _if_fits(member.gid, _LARGEST_ID)
    info.size = _if_fits(member.size, _LARGEST_SIZE)
    info.mtime = _if_fits(max(seconds, 0), _LARGEST_SIZE)
    info.devmajor, info.devminor = os.major(member.device), os.minor(member.device)
    return (_pax_header(pax) if pax else b"") + info.tobuf(tarfile.USTAR_FORMAT, "ascii")


def _pax_header(pax: Mapping[bytes, bytes]) -> bytes:
    """As tarfile makes it, but for values that are no UTF-8: what it puts before them makes GNU tar complain."""
    content = b"".join(_record(keyword, value) for keyword, value in sorted(pax.items()))
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii") + content + bytes(-len(content) % _BLOCK)


def _record(keyword: bytes, value: bytes) -> bytes:
    """`LENGTH KEYWORD=VALUE\\n`, where the length counts itself (POSIX pax)."""
    rest = len(keyword) + len(value) + len(b" =\n")
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def _short(name: bytes) -> str:
    """What of a name has a place in the old header; the rest is in the other one."""
    return name[:_LONGEST_NAME].decode("ascii", "replace").replace("\ufffd", "?")


def _if_fits(number: int, limit: int) -> int:
    return number if number <= limit else 0


def _decimal(nanoseconds: int) -> bytes:
    sign = "-" if nanoseconds < 0 else ""
    seconds, rest = divmod(abs(nanoseconds), _NANO)
    return f"{sign}{seconds}.{rest:09d}".rstrip("0").rstrip(".").encode()
