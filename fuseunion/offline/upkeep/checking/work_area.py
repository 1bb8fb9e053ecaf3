"""What lies in the work directory of an upper that is not mounted: what a killed mount left, the hard-link index, the
ownership database, what the kernel's overlayfs left.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from functools import partial

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import link_entries
from fuseunion.core.marks.link_migration import listed, migrate
from fuseunion.core.ops.copy_up.unshown_links import lower_tokens
from fuseunion.core.ownership.facts import DATABASE_FILE, Facts
from fuseunion.core.tree.file import File
from fuseunion.core.tree.place import InLower
from fuseunion.core.union import Union
from fuseunion.errors import UserError
from fuseunion.linux import owned
from fuseunion.mounting.checks import volatile
from fuseunion.offline.layers import reader
from fuseunion.offline.upkeep.checking.described import Had, at_name, at_names
from fuseunion.offline.upkeep.checking.findings import Finding, Repair, Severity
from fuseunion.steps import in_one_piece

_INNER = b"work"
_LINKS = b"links"
_INDEX = b"index"
_VOLATILE = b"incompat"
_DIRTY = b"dirty"
_MOST_OWNERS = 1000
"""In one record of the journal."""
_OURS = frozenset({_INNER, _LINKS, _INDEX, DATABASE_FILE, *(DATABASE_FILE + end for end in (b"-wal", b"-shm"))})


class WorkArea:
    """Goes over a work directory.

    Args:
        layer: the work directory.
        union: the upper over its lowers, without its index; None where the lowers are not known.
        numbers: of the objects in the upper.
    """

    def __init__(self, layer: Layer, union: Union | None, numbers: Container[int]) -> None:
        self._layer = layer
        self._root = layer.root
        self._union = union
        self._numbers = numbers

    def findings(self) -> Iterator[Finding]:
        """What is wrong.

        Raises:
            OSError: of the layers.
        """
        names = sorted(self._root.names())
        for name in names:
            if name not in _OURS:
                text = "is a foreign file in the work directory, with which nothing is mounted; move it away"
                yield Finding("foreign-file", Severity.ERROR, name, text, in_work=True)
        if _INNER in names:
            yield from self._of_inner()
        if _INDEX in names:
            yield from self._of_kernel_index()
        if _LINKS in names:
            yield from self._of_links()
        if DATABASE_FILE in names:
            yield from self._of_database()

    # -- WORK/work ---------------------------------------------------------------------------------------------------

    def _of_inner(self) -> Iterator[Finding]:
        inner = self._root.child(_INNER)
        for name in sorted(inner.names()):
            path = _INNER + b"/" + name
            if name != _VOLATILE:
                text = "was left by a mount that was killed"
                yield Finding("work-file", Severity.LEFTOVER, path, text, _tree_removal(inner, name), True)
                continue
            try:
                volatile.refuse_older(self._layer.root_fd, self._layer.label)
                text = "says that the upper was mounted volatile since the machine started; sync it before it stops"
                yield Finding("volatile", Severity.NOTE, path, text, in_work=True)
            except UserError:
                text = (
                    "says that the upper was mounted volatile and not synced before the machine stopped: files may be "
                    "damaged; discard the upper, or if you trust it remove this"
                )
                yield Finding("dirty-volatile", Severity.ERROR, path, text, in_work=True)
        inner.close()

    # -- the kernel's index ------------------------------------------------------------------------------------------

    def _of_kernel_index(self) -> Iterator[Finding]:
        index = self._root.child(_INDEX)
        for name in sorted(index.names()):
            st = index.stat(name)
            if st is None:
                continue
            path = _INDEX + b"/" + name
            if st.st_ino in self._numbers or st.st_size == 0:
                text = "is of the kernel's index, which is not true any more once another program has written"
                yield Finding("kernel-index-entry", Severity.LEFTOVER, path, text, _tree_removal(index, name), True)
            else:
                text = "is of the kernel's index, and perhaps the only name of its data; mount with index=on"
                yield Finding("kernel-index-orphan", Severity.ERROR, path, text, in_work=True)

    # -- our index ---------------------------------------------------------------------------------------------------

    def _of_links(self) -> Iterator[Finding]:
        links = self._root.child(_LINKS)
        reason = owned.objection(links.own_stat())
        if reason is not None:
            text = f"is the hard-link index, and {reason}: nothing is mounted with it; remove it"
            yield Finding("foreign-index", Severity.ERROR, _LINKS, text, in_work=True)
            return
        dirty, groups = False, _Groups(links)
        for name, is_directory in sorted(listed(links)):
            entry = None if is_directory else link_entries.parse(name)
            path = _LINKS + b"/" + name
            if name == _DIRTY and not is_directory:
                dirty = True
            elif is_directory and link_entries.number_in(name) is not None:
                text = "is of an older version, and is looked at once it has its present form"
                repair = Repair("gives it its present form", partial(migrate, links), partial(at_name, links, name))
                yield Finding("older-index", Severity.LEFTOVER, path, text, repair, True)
            elif entry is None:
                text = "is nothing of the hard-link index"
                yield Finding("strange-index-entry", Severity.NOTE, path, text, in_work=True)
            else:
                groups.add(name, entry)
        yield from self._of_groups(links, groups, dirty=dirty)
        if dirty:
            text = "says that a mount was killed: the index was checked"
            if self._union is None:
                text = "says that a mount was killed; the next one checks the index, or this command with --lower"
                yield Finding("killed", Severity.NOTE, _LINKS + b"/" + _DIRTY, text, in_work=True)
                return
            removal = Repair("removes it", partial(links.unlink, _DIRTY), partial(at_name, links, _DIRTY))
            yield Finding("killed", Severity.LEFTOVER, _LINKS + b"/" + _DIRTY, text, removal, True)

    def _of_groups(self, links: RealDir, groups: _Groups, *, dirty: bool) -> Iterator[Finding]:
        asked = [key for key in groups.all_keys() if dirty or not groups.has_name_in_upper(key)]
        if not asked:
            return
        shown = _shown(self._union, groups) if self._union is not None else None
        found = in_one_piece(lower_tokens(self._union.state, {*asked})) if self._union is not None else {}
        for key in asked:
            in_upper = groups.has_name_in_upper(key)
            covered = {token for _, token in groups.tokens(key)}
            is_known = bool(covered) and covered <= found.get(key, set())
            if not in_upper and (groups.only_number(key) or (is_known and shown is not None and key not in shown.keys)):
                text = f"keeps {groups.says_size(key)} of a file that no name shows"
                yield Finding("dangling-links", Severity.LEFTOVER, groups.path(key), text, groups.removal(key), True)
                continue
            if not in_upper and not is_known:
                text = "is of a file of which no name is in the upper: whether one shows it only its own lowers tell"
                yield Finding("unjudged-links", Severity.NOTE, groups.path(key), text, in_work=True)
            for name, token in groups.tokens(key):
                if dirty and shown is not None and token in shown.tokens:
                    text = "counts a name as gone that is there, because a mount was killed"
                    repair = Repair("removes it", partial(links.unlink, name), partial(at_name, links, name))
                    yield Finding("untrue-link", Severity.ERROR, _LINKS + b"/" + name, text, repair, True)

    # -- stored owners -----------------------------------------------------------------------------------------------

    def _of_database(self) -> Iterator[Finding]:
        from fuseunion.core.ownership.database_store import DatabaseStore

        try:
            store = DatabaseStore(self._layer.root_fd)
        except OSError as error:
            text = f"holds the stored owners and cannot be read ({error.strerror})"
            yield Finding("broken-database", Severity.ERROR, DATABASE_FILE, text, in_work=True)
            return
        held = {*_numbers_in(self._root.child(_LINKS))} if self._root.stat(_LINKS) is not None else set()
        try:
            stray = [number for number in store.numbers() if number not in self._numbers and number not in held]
        finally:
            store.close()
        if stray:
            text = f"holds owners of {len(stray)} objects that are not in the upper"
            work_fd = self._layer.root_fd
            repair = Repair("forgets them", partial(_forget_owners, work_fd, stray), partial(_owners, work_fd, stray))
            yield Finding("stray-owners", Severity.LEFTOVER, DATABASE_FILE, text, repair, True)


def _numbers_in(links: RealDir) -> Iterator[int]:
    """The inode numbers of the copies that the index holds."""
    for name, _ in listed(links):
        st = links.stat(name)
        if st is not None:
            yield st.st_ino


def _tree_removal(directory: RealDir, name: bytes) -> Repair:
    return Repair("removes it", partial(trees.remove, directory, name), partial(at_name, directory, name))


def _owners(work_fd: int, numbers: list[int]) -> Had:
    from fuseunion.core.ownership.database_store import DatabaseStore

    store = DatabaseStore(work_fd)
    try:
        rows = {str(number): store.of_number(number) for number in numbers[:_MOST_OWNERS]}
    finally:
        store.close()
    had: Had = {"columns": list(Facts._fields), "owners": rows}
    return had if len(numbers) == len(rows) else had | {"more": True}


def _forget_owners(work_fd: int, numbers: list[int]) -> None:
    from fuseunion.core.ownership.database_store import DatabaseStore

    store = DatabaseStore(work_fd)
    try:
        store.forget_numbers(numbers)
    finally:
        store.close()


class _Groups:
    """The entries of the index, by their keys."""

    def __init__(self, links: RealDir) -> None:
        self.links = links
        self._entries: dict[bytes, list[tuple[bytes, link_entries.LinkEntry]]] = {}

    def add(self, name: bytes, entry: link_entries.LinkEntry) -> None:
        self._entries.setdefault(entry.key, []).append((name, entry))

    def all_keys(self) -> list[bytes]:
        return sorted(self._entries)

    def only_number(self, key: bytes) -> bool:
        """A copy of no lower file with several names: no lower name can show it."""
        return all(entry.lower_nlink == 0 for _, entry in self._entries[key])

    def _copy(self, key: bytes) -> os.stat_result | None:
        for name, entry in self._entries[key]:
            if entry.token is None:
                return self.links.stat(name)
        return None

    def has_name_in_upper(self, key: bytes) -> bool:
        st = self._copy(key)
        return st is not None and st.st_nlink > 1

    def says_size(self, key: bytes) -> str:
        st = self._copy(key)
        return "what is known" if st is None else f"{st.st_size} bytes"

    def path(self, key: bytes) -> bytes:
        return _LINKS + b"/" + self._entries[key][0][0]

    def tokens(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        for name, entry in self._entries[key]:
            if entry.token is not None:
                yield name, entry.token

    def removal(self, key: bytes) -> Repair:
        # The copy first, as LinkGroup.remove does.
        names = sorted((name for name, _ in self._entries[key]), key=len)
        return Repair("removes them", partial(_unlink_all, self.links, names), partial(at_names, self.links, names))


def _unlink_all(real: RealDir, names: list[bytes]) -> None:
    for name in names:
        try:
            real.unlink(name)
        except FileNotFoundError:
            continue  # by what was cut off


class _Shown:
    """What the merged tree shows of lower files: their keys, and the tokens of the names that do."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.tokens: set[bytes] = set()


def _shown(union: Union, groups: _Groups) -> _Shown:
    """Go over the merged tree.

    Raises:
        OSError: of the layers: what cannot be looked at may show anything.
    """
    shown = _Shown()
    wanted = {*groups.all_keys()}
    numbers = union.state.numbers
    for entry in reader.merged(union):
        inode = entry.inode
        if not isinstance(inode, File) or not isinstance(inode.place, InLower):
            continue
        found = union.lower_stat(entry.directory, entry.name) if entry.directory is not None else None
        if found is None:
            continue
        key = link_entries.key_of(numbers.number(found.st_dev, found.st_ino), found)
        if key in wanted:
            shown.keys.add(key)
            own = inode.place.real.own_stat()
            shown.tokens.add(link_entries.token_of(numbers.number(own.st_dev, own.st_ino), entry.name))
    return shown
