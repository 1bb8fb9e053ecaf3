"""One more lower while the union is used: on top of the lowers, below the upper.

What every name shows afterwards is what a new union with that list of lowers shows. Lowers are counted from the bottom
(format/numbers.py), so no number that is known changes. The names that are known are resolved once more, with the new
stacks, and compared with what they show:

    a directory that is still one     keeps its inode, and is made of what it is made of then
    a file that is the same object    keeps its inode
    anything else                     loses the name, as by an unlink or a rename over it, and who has it open keeps it.
                                      All that is known beneath a directory loses its names too; who is in there is in
                                      an empty directory without a name

The table is gone through several times by the same function. First in steps, which fills `_meanings`: nothing is
changed by that, and others go on. Then in one piece, which takes from there what is still true and looks up only the
rest. All that can fail is done before the first change; the changes are made in memory alone, and cannot fail. On disk
nothing changes.

Gone through are the directories whose stack is another, and, of the others, those of the upper: in them there may be
absolute redirects, which lead to places in the new lower. No such mark in a lower leads to a layer above it.
"""

from __future__ import annotations

import copy
import errno
import os
import stat
from collections.abc import Iterable, Set
from typing import NamedTuple, TypeAlias

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.wh_files import is_reserved, name_hidden_by
from fuseunion.core.format.link_entries import key_of
from fuseunion.core.format.numbers import ROOT
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.marks.origin_mark import OriginReader
from fuseunion.core.ops.live.refresh import Forgotten
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.lookup import FoundDirectory, FoundFile, resolve
from fuseunion.core.tree.place import InLower
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import opened
from fuseunion.linux.objects.recognition import DiskId, id_of
from fuseunion.steps import Steps, in_one_piece

_TOLD_AT_ONCE = 256
"""Names in one message."""

Stack: TypeAlias = tuple[RealDir, ...]
"""The lowers of a directory, topmost first."""


class _Gone(NamedTuple):
    """The name does not lead to the inode any more."""


_GONE = _Gone()

_Outcome: TypeAlias = "Stack | _Gone | None"
"""What becomes of a known name: the lowers of a directory; None for a file that stays."""


class _Meaning(NamedTuple):
    """What a name will show, and what that was concluded from: while that is the same, it is true."""

    child: Inode
    changes: int
    stack: Stack
    of: tuple[object, ...]
    outcome: _Outcome


class Switch(NamedTuple):
    """What becomes of one directory.

    Attributes:
        gone: the known names that go.
        names: those that may show something else than before, where nothing is known of them here.
    """

    directory: Directory
    stack: Stack
    gone: list[tuple[bytes, Inode]]
    names: list[bytes]


class Plan(NamedTuple):
    """What is done when a lower is added.

    Attributes:
        names: will show something else, or may, and the kernel remembers what they show now.
        going: how many of these go from what they lead to. While there are such, somebody could write to a file by a
            name that leads to another: the layer is not to be added then.
    """

    switches: list[Switch]
    names: list[Forgotten]
    going: int


class Addition:
    """A lower that is about to be added.

    Args:
        layer: which belongs to this until it was added.

    Raises:
        OSError: EXDEV where the numbers of what is known would be other ones at the next mount.
    """

    def __init__(self, state: State, layer: Layer) -> None:
        self._state = state
        self._layer = layer
        self._added = False
        self._shown = _with_lower(state, layer)
        self._listed: dict[RealDir, frozenset[bytes]] = {}
        self._meanings: dict[Directory, dict[bytes, _Meaning]] = {}
        devices = [each.st_dev for each in reversed(self._shown.lowers)]
        if state.upper is not None:
            devices.append(state.upper.layer.st_dev)
        if not state.numbers.agrees(devices):
            raise OSError(
                errno.EXDEV,
                "it is on a filesystem of its own, below which the upper's would be counted anew; unmount, and mount "
                "again with it",
            )

    def look(self) -> Steps[None]:
        """Look at what will be shown, and refuse what cannot be; may be done again.

        Raises:
            OSError: what is in the way, in words, as its strerror; nothing has changed.
        """
        yield from self._plan()

    def plan(self, renewed: Set[tuple[int, bytes]]) -> Plan:
        """What will be done, and what the kernel remembers that would not be true then.

        Args:
            renewed: the numbers of directories and the names in them that it does not remember any more.

        Returns:
            The plan, which is good until somebody else may have changed the tree.

        Raises:
            OSError: as `look`.
        """
        found: list[Forgotten] = []
        count = 0
        switches = in_one_piece(self._plan())
        for switch in switches:
            number = switch.directory.ino
            lost = [name for name, _ in switch.gone if (number, name) not in renewed]
            count += len(lost)
            names = lost + [name for name in switch.names if (number, name) not in renewed]
            for start in range(0, len(names), _TOLD_AT_ONCE):
                found.append(Forgotten(switch.directory, names[start : start + _TOLD_AT_ONCE]))
        return Plan(switches, found, count)

    def finish(self, plan: Plan) -> list[Forgotten]:
        """Add the layer. Precondition: no operation is in the middle of several steps.

        Args:
            plan: in which nothing is `going`.

        Returns:
            The directories that are made of other parts, and what has another count of names.
        """
        # Nothing may fail here.
        state = self._state
        self._added = True
        state.lowers = self._shown.lowers
        state.numbers.index(self._layer.st_dev)
        state.origins = OriginReader(self._shown.root.lowers, state.numbers)
        forgotten: list[Forgotten] = []
        gone: list[Inode] = []
        for switch in plan.switches:
            _made_of(switch.directory, switch.stack)
            lost: list[Inode] = []
            for name, inode in switch.gone:
                lost += _lose(switch.directory, name, inode)
            gone += lost
            forgotten.append(Forgotten(switch.directory, inodes=[switch.directory.ino]))
            for inode in lost:
                forgotten.append(
                    Forgotten(inode if isinstance(inode, Directory) else switch.directory, inodes=[inode.ino])
                )
        for inode in gone:
            if state.table.find(inode.ino) is inode:
                state.table.drop_if_unused(inode)
        for switch in plan.switches:
            if state.table.find(switch.directory.ino) is switch.directory:
                state.table.drop_if_unused(switch.directory)
        return forgotten

    def close(self) -> None:
        """Close the layer, if it was not added."""
        if not self._added:
            self._layer.close()
        self._meanings.clear()
        self._listed.clear()

    # -- going through the table -------------------------------------------------------------------------------------

    def _plan(self) -> Steps[list[Switch]]:
        root = self._state.root
        if self._shown.lowers[1:] != self._state.lowers:
            raise OSError(errno.EBUSY, "another lower was added meanwhile; try again")
        plan: list[Switch] = []
        waiting: list[tuple[Directory, Stack]] = [(root, self._shown.root.lowers)]
        while waiting:
            directory, stack = waiting.pop()
            if directory.removed or directory.exchanged:
                continue  # the next lookup of its name finds what is there
            changed = stack is not directory.lowers
            touched = (yield from self._touched(directory, stack)) if changed else frozenset()
            meanings = self._meanings.setdefault(directory, {})
            gone: list[tuple[bytes, Inode]] = []
            kept: set[bytes] = set()
            for name, child in list(directory.children.items()):
                if directory.children.get(name) is not child:
                    continue  # gone while others went on
                if name not in touched and not _may_lead_away(child):
                    continue
                if child.exchanged:
                    continue
                outcome = self._outcome(directory, stack, name, child, meanings)
                if isinstance(outcome, _Gone):
                    gone.append((name, child))
                else:
                    kept.add(name)
                    if isinstance(child, Directory) and outcome is not None:
                        waiting.append((child, outcome))
                yield
            if changed:
                lost = {name for name, _ in gone}
                plan.append(Switch(directory, stack, gone, [name for name in touched if name not in kept | lost]))
        return plan

    def _touched(self, directory: Directory, stack: Stack) -> Steps[frozenset[bytes]]:
        """The names of a directory that may show something else with other lowers.

        Where lowers only come on top, these are the names that they hold or hide.
        """
        before = directory.lowers
        count = len(stack) - len(before)
        if count > 0 and stack[count:] == before:
            parts: Iterable[RealDir] = stack[:count]
        else:
            parts = {*stack, *before}
        names: set[bytes] = set()
        for real in parts:
            known = self._listed.get(real)
            if known is None:
                try:
                    known = self._listed[real] = yield from _names(real)
                except PermissionError:
                    # Nobody is told what is in it. What is known in the directory is looked up; that something is not
                    # there was not remembered, but where names may be looked up and not listed.
                    known = frozenset(directory.children)
                except OSError as error:
                    raise _refusal(directory, b"", error) from error
            names |= known
        return frozenset(names)

    def _outcome(
        self, directory: Directory, stack: Stack, name: bytes, child: Inode, meanings: dict[bytes, _Meaning]
    ) -> _Outcome:
        of: tuple[object, ...] = ()
        if isinstance(child, Directory):
            of = child.upper, child.lowers
        elif isinstance(child, File):
            of = child.place, child.data, child.group, child.lower_links
        known = meanings.get(name)
        if (
            known is not None
            and known.child is child
            and known.changes == directory.changes
            and known.stack is stack
            and all(one is other for one, other in zip(known.of, of, strict=True))
        ):
            return known.outcome
        outcome = self._resolved(directory, stack, name, child)
        meanings[name] = _Meaning(child, directory.changes, stack, of, outcome)
        return outcome

    # -- one name ----------------------------------------------------------------------------------------------------

    def _resolved(self, directory: Directory, stack: Stack, name: bytes, child: Inode) -> _Outcome:
        whole = stack if directory.upper is None else (directory.upper, *stack)
        try:
            with opened(directory.upper):
                found = resolve(self._shown, whole, name)
        except MalformedError as error:
            if isinstance(child, File):
                if child.has_upper:
                    raise _refusal(directory, name, _other_data()) from error
                return _GONE  # who looks it up is told why
            raise _refusal(directory, name, error) from error
        except OSError as error:
            raise _refusal(directory, name, error) from error
        if isinstance(child, Directory):
            return self._of_directory(directory, name, child, found)
        if isinstance(child, File) and isinstance(found, FoundFile):
            return self._of_file(directory, name, child, found)
        return _GONE

    def _of_directory(
        self, parent: Directory, name: bytes, directory: Directory, found: FoundDirectory | FoundFile | None
    ) -> _Outcome:
        in_upper = isinstance(found, FoundDirectory) and found.stack[0].layer.writable
        if in_upper != (directory.upper is not None):
            if directory.upper is None and not in_upper:
                return _GONE
            raise _refusal(parent, name, OSError(errno.ESTALE, "was exchanged in the upper"))
        if not isinstance(found, FoundDirectory):
            return _GONE
        before = {_where(real): real for real in directory.lowers}
        lowers = found.stack[1:] if in_upper else found.stack
        stack = tuple(before.get(_where(real), real) for real in lowers)
        return directory.lowers if stack == directory.lowers else stack

    def _of_file(self, parent: Directory, name: bytes, file: File, found: FoundFile) -> _Outcome:
        same_data = _id_of(found.data) == _id_of(file.data)
        if found.real.layer.writable:
            if file.has_upper and not same_data:
                raise _refusal(parent, name, _other_data())
            return None
        if file.lower_links is not None:
            same = file.lower_links.lower_id == id_of(found.st)
        elif isinstance(file.place, InLower):
            same = file.place.disk_id == id_of(found.st) and found.st.st_nlink == 1 and same_data
        else:
            same = self._is_of_group(file, found)
        return None if same and stat.S_IFMT(found.real.shown(name, found.st).st_mode) == file.kind else _GONE

    def _is_of_group(self, file: File, found: FoundFile) -> bool:
        """Whether a copy that was met under a name in the upper is that of a lower file (_known_lower_file)."""
        state, st = self._state, found.st
        if state.upper is None or file.group is None or st.st_nlink < 2 or not state.numbers.knows(st.st_dev):
            return False
        return state.upper.links.get(key_of(state.numbers.number(st.st_dev, st.st_ino), st)) is file.group


def _with_lower(state: State, layer: Layer) -> State:
    """A state that lookups can be made in as they will be."""
    shown = copy.copy(state)
    shown.lowers = (layer, *state.lowers)
    shown.root = Directory(ROOT, None, b"", state.root.upper, (layer.root, *state.root.lowers))
    return shown


def _names(real: RealDir) -> Steps[frozenset[bytes]]:
    found: set[bytes] = set()
    for names in real.scan():
        for name in names:
            shown = name_hidden_by(name) if is_reserved(name) else name
            if shown is not None:
                found.add(shown)
        yield
    return frozenset(found)


def _may_lead_away(child: Inode) -> bool:
    """Whether the upper's part of it may say where the lowers have it, or its data."""
    if isinstance(child, Directory):
        return child.upper is not None
    return isinstance(child, File) and child.has_upper and child.data is not None


def _where(real: RealDir) -> tuple[object, ...]:
    """What is the same for two that name one directory of a layer."""
    root, names = real.way()
    return (id(root), *names)


def _id_of(data: InLower | None) -> DiskId | None:
    return None if data is None else data.disk_id


def _made_of(directory: Directory, stack: Stack) -> None:
    stays = set(map(id, stack))
    for real in directory.lowers:
        if id(real) not in stays:
            real.close()  # files that were found in it still are there
    directory.made_of(stack)
    directory.forget_answers()
    directory.holders = None
    directory.default_acl = None


def _lose(directory: Directory, name: bytes, inode: Inode) -> list[Inode]:
    """A known name goes, with all that is known beneath it; returns what it led to."""
    lost: list[Inode] = []
    waiting = [(directory, name, inode)]
    while waiting:
        parent, name, inode = waiting.pop()
        parent.children.pop(name, None)
        if isinstance(inode, File):
            inode.remove_name(parent, name)
            inode.stale()
        elif isinstance(inode, Directory):
            waiting += [(inode, below, child) for below, child in inode.children.items()]
            inode.mark_removed()
        lost.append(inode)
    return lost


def _other_data() -> OSError:
    return OSError(errno.EBUSY, "its data, which is in a lower (metacopy), would be other data, or none")


def _refusal(directory: Directory, name: bytes, error: OSError) -> OSError:
    """What is said of a name that is in the way."""
    names = [name] if name else []
    node = directory
    while node.parent is not None:
        names.append(node.name)
        node = node.parent
    path = os.fsdecode(b"/".join(reversed(names))) or "."
    return OSError(error.errno, f"'{path}': {error.strerror}")
