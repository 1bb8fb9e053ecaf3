"""The answers to READDIRPLUS: the names of a directory with their entries.

Entries of plain files are made in one call for many (wire/native/plain); all others are looked up.
"""

from __future__ import annotations

import stat
from itertools import islice

from fuseunion.core.disk.wh_files import is_reserved
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.directories.listings import DOT, DOT_DOT, Listings
from fuseunion.engines.fuse.wire.entries import Entries, remember, unkept_listing
from fuseunion.engines.fuse.wire.native.device import compares, device
from fuseunion.steps import Steps

_NAMES_AT_ONCE = 16
_PLAIN_AT_ONCE = 64
_DIRECTORY = stat.S_IFDIR >> 12
_LONGEST_ENTRY = layouts.ENTRY.size + layouts.DIRENT.size + 256


class Listed:
    """The entries of names in the directories of one mount.

    Args:
        requests: that answer for names.
        entries: of inodes.
    """

    def __init__(self, requests: Requests, entries: Entries) -> None:
        self._requests = requests
        self._union = requests.union
        self._entries = entries
        self._listings = Listings(requests.union)

    def forget_all(self) -> None:
        """Directories were changed behind our back."""
        self._listings.forget_all()

    def plain_entry(self, directory: Directory, name: bytes) -> bytes | None:
        """The entry of a plain file that is not known yet, and is from now on; None of any other."""
        if name in directory.children or directory.is_merged or is_reserved(name):
            return None
        packed, _ = self._plain(directory, [(0, name)], 0, _LONGEST_ENTRY)
        return packed[: layouts.ENTRY.size] if packed else None

    def entries(self, directory: Directory, position: int, size: int) -> Steps[bytes]:
        """The answer to READDIRPLUS: names behind a position, as far as there is room for them.

        Args:
            size: the room, in bytes.

        Raises:
            OSError: as Listings.of; of the first name.
        """
        renewed, listing = self._requests.renewed, object()
        self._requests.listings.add(listing)
        try:
            entries, end = yield from self._entries_after(directory, position, size)
        finally:
            self._requests.listings.discard(listing)
        if renewed is not None:
            return unkept_listing(entries, directory.ino, renewed)
        if end is None:
            return entries
        if not self._requests.ahead.lies_far(directory.ino):
            remember(directory)
        if position == 0 and not compares:
            assert device is not None
            device.note_end(directory.ino, end)
            self._listings.forgotten(directory.ino)
        return entries

    def _entries_after(self, directory: Directory, position: int, size: int) -> Steps[tuple[bytes, int | None]]:
        """Entries, and the position of the last, if there are no more behind it."""
        listing = yield from self._listings.of(directory, again=position == 0)
        parts: list[bytes] = []
        left = size
        end = position
        for offset, dots, special in ((DOT, b".", directory), (DOT_DOT, b"..", directory.parent or directory)):
            if position < offset:
                parts.append(_dots(special.ino, offset, dots))
                left -= len(parts[-1])
                end = offset
        names = listing.after(position)
        others = 0  # names in a row that were asked whether they are plain, and are not
        passed = 0  # names that are not asked: the more, the longer the row
        at_once = _NAMES_AT_ONCE if self._union.plain_files(directory) is None else _PLAIN_AT_ONCE
        while batch := list(islice(names, at_once)):
            done = 0
            while done < len(batch):
                place, name = batch[done]
                if passed:
                    passed -= 1
                else:
                    packed, count = self._plain(directory, batch, done, left)
                    if count:
                        parts.append(packed)
                        left -= len(packed)
                        done += count
                        end, _ = batch[done - 1]
                        others = 0
                        continue
                    if name not in directory.children:
                        others += 1
                        passed = others - 1
                room = layouts.ENTRY.size + layouts.DIRENT.size + (len(name) + 7 & ~7)
                if room > left:
                    return b"".join(parts), None
                try:
                    listed = self._requests.listed(directory, name, self._entries)
                except OSError:
                    if not parts:
                        raise
                    # What was found counts. Asked for the rest, it is the first to fail again.
                    return b"".join(parts), None
                done += 1
                if listed is None:
                    continue
                left -= room
                end = place
                inode, entry = listed
                parts += (
                    entry,
                    layouts.DIRENT.pack(inode.ino, place, len(name), inode.kind >> 12),
                    name,
                    _PADDING[len(name) & 7],
                )
                self._requests.told(inode)
            yield
        if not parts:
            self._listings.forgotten(directory.ino)
        return b"".join(parts), end

    def _plain(self, directory: Directory, names: list[tuple[int, bytes]], first: int, room: int) -> tuple[bytes, int]:
        """Entries for plain files (listing.PlainFiles) among names, from one on, and for how many names they are."""
        child = directory.children.get(names[first][1])
        if child is not None:
            return self._known(directory, names, first, room) if isinstance(child, File) else (b"", 0)
        plain = self._union.plain_files(directory)
        if plain is None:
            return b"", 0
        assert device is not None
        try:
            layers = plain.layers()
        except OSError:
            return b"", 0  # a lookup says the same
        if layers is None:
            return b"", 0
        packed, found = device.pack_plain(layers, plain.is_written, names, first, room, *self._entries.valid)
        files = plain.add(found)
        for file in files:
            self._requests.told(file)
        if len(files) < len(found):
            packed = packed[: sum(length for *_, length in found[: len(files)])]
        return packed, len(files)

    def _known(self, directory: Directory, names: list[tuple[int, bytes]], first: int, room: int) -> tuple[bytes, int]:
        """Entries for files that are known (listing.KnownFile) among names, from one on, and for how many of them."""
        known = self._union.known_files(directory, names, first)
        if not known:
            return b"", 0
        upper = directory.upper
        assert device is not None and upper is not None
        try:
            packed, count = device.pack_known(upper.fd(), upper.layer.st_dev, known, room, *self._entries.valid)
        except OSError:
            return b"", 0  # a lookup says the same
        told, children = self._requests.told, directory.children
        for _, name, *_ in islice(known, count):
            told(children[name])
        return packed, count


_PADDING = [b"\0" * (-length & 7) for length in range(8)]
_NO_ENTRY = b"\0" * layouts.ENTRY.size


def _dots(number: int, position: int, name: bytes) -> bytes:
    """A name that makes the kernel know nothing (fs/fuse/readdir.c fuse_direntplus_link)."""
    return _NO_ENTRY + layouts.DIRENT.pack(number, position, len(name), _DIRECTORY) + name + _PADDING[len(name)]
