"""Planning the steps that push an upper down, taking them, and taking them back.

Planning copies into the journal all that the lower is to get, and changes nothing else. A step is then one or two
renames on one filesystem, so that the lower is never without an object for longer than between two system calls, and
what it had is never gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options import Options, XattrPermissions
from fuseunion.offline.applying.journal import STAGED, Dress, Journal, PlanWriter, Replace
from fuseunion.offline.layers import opening, reader
from fuseunion.offline.layers.builder import Builder, Facts
from fuseunion.offline.layers.copying import Copier
from fuseunion.offline.layers.links import complete_links
from fuseunion.offline.layers.opening import View
from fuseunion.offline.layers.reader import Entry


class Target:
    """A lower directory that is to be changed, and is nobody else's meanwhile.

    Args:
        view: it, opened as an upper over nothing.

    Attributes:
        stores_ownership: owners and modes in it are stored beside the files.
    """

    def __init__(self, view: View) -> None:
        self.stores_ownership = view.union.stores_ownership
        self._builder = Builder(view.union)
        self._facts = Copier(view.union, self._builder)

    def close(self) -> None:
        """Let go of it."""
        self._builder.close()

    def directory(self, path: bytes) -> RealDir:
        """A directory of it.

        Raises:
            UserError: LAYERS where it is not there any more.
        """
        found = self._builder.find_directory(path)
        if found is None or found.upper is None:
            raise UserError(
                f"'{os.fsdecode(path)}' is no directory any more: the lower directory was changed meanwhile",
                ExitCode.LAYERS,
            )
        return found.upper

    def has_directory(self, path: bytes) -> bool:
        """Whether it has a directory at a path."""
        return self._builder.find_directory(path) is not None

    def has(self, path: bytes) -> bool:
        """Whether anything is at a path, a mark of overlayfs included."""
        parent, _, name = path.rpartition(b"/")
        found = self._builder.find_directory(parent)
        return found is not None and found.upper is not None and found.upper.stat(name) is not None

    def facts(self, path: bytes) -> Facts:
        """What a directory has."""
        found = self._builder.find_directory(path)
        assert found is not None
        return self._facts.facts(found)

    def dress(self, path: bytes, facts: Facts) -> None:
        """Give a directory what it is to have."""
        self._builder.dress(path, facts)

    def finish(self) -> None:
        """Put everything on disk."""
        self._builder.finish()


def plan(view: View, target: Target, journal: Journal, done: Callable[[int], None]) -> list[bytes]:
    """Plan the steps.

    Args:
        view: the upper over the lower.
        done: is told after each object how many were looked at.

    Returns:
        The paths of devices that may not be made here, and will be missing.

    Raises:
        OSError: of the layers; ENOSPC: nothing has changed but the journal.
    """
    complete_links(view.union, done)
    with ExitStack() as stack:
        stored = XattrPermissions.CONTAINERS if target.stores_ownership else XattrPermissions.OFF
        options = Options(opening.NOWHERE, (), xattr_permissions=stored)
        staged = stack.enter_context(opening.owned(os.path.join(journal.path, STAGED), options=options, writes=True))
        builder = Builder(staged.union)
        stack.callback(builder.close)
        planner = _Planner(Copier(view.union, builder), target, journal.writing(stack))
        for number, entry in enumerate(reader.read(view)):
            planner.add(entry)
            done(number + 1)
        builder.finish()
        journal.complete(planner.writer)
        return planner.copier.left_out


class _Planner:
    def __init__(self, copier: Copier, target: Target, writer: PlanWriter) -> None:
        self.copier = copier
        self.writer = writer
        self._target = target
        self._number = 0
        self._top: bytes | None = None
        """The directory that is staged as a whole, with what it is called there."""

    def add(self, entry: Entry) -> None:
        """Plan for one entry of the upper."""
        path = entry.path
        if self._top is not None:
            if path.startswith(self._top + b"/"):
                if not entry.is_whiteout:  # there is nothing that it could hide
                    self.copier.copy(entry, b"%d" % self._number + path[len(self._top) :])
                return
            self._top = None
        if entry.is_whiteout:
            if self._target.has(path):
                self._number += 1
                self.writer.add(Replace(self._number, path, True, False))
            return
        is_directory = isinstance(entry.inode, Directory)
        if is_directory and not entry.opaque and (not path or self._target.has_directory(path)):
            assert entry.inode is not None
            self.writer.add(Dress(path, self._target.facts(path), self.copier.facts(entry.inode)))
            return
        self._number += 1
        self.copier.copy(entry, b"%d" % self._number)
        gets = b"%d" % self._number not in self.copier.left_out
        self.writer.add(Replace(self._number, path, self._target.has(path), gets))
        if is_directory:
            self._top = path


def carry_out(journal: Journal, target: Target, done: Callable[[int], None]) -> int:
    """Take the steps that are not taken yet.

    Returns:
        How many there are.

    Raises:
        OSError, UserError: the lower was changed meanwhile, or refuses; it can be gone on with, and back.
    """
    count = 0
    for count, step in enumerate(journal.steps(), 1):
        if isinstance(step, Dress):
            target.dress(step.path, step.new)
        else:
            _forward(journal, target, step)
        done(count)
    target.finish()
    journal.note_applied()
    return count


def take_back(journal: Journal, target: Target, done: Callable[[int], None]) -> int:
    """Take back the steps that were taken, and forget the journal. Returns and raises as `carry_out`."""
    journal.note_undoing()
    count = 0
    for count, step in enumerate(journal.steps(backwards=True), 1):
        if isinstance(step, Dress):
            target.dress(step.path, step.old)
        else:
            _back(journal, target, step)
        done(count)
    target.finish()
    return count


def _forward(journal: Journal, target: Target, step: Replace) -> None:
    directory, name, number = _where(target, step)
    if step.had and journal.saved.stat(number) is None:
        directory.rename(name, journal.saved, number)
    if step.gets and journal.staged.stat(number) is not None:
        _refuse_occupied(directory, name, step.path)
        journal.staged.rename(number, directory, name)


def _back(journal: Journal, target: Target, step: Replace) -> None:
    directory, name, number = _where(target, step)
    if step.gets and journal.staged.stat(number) is None:
        directory.rename(name, journal.staged, number)
    if step.had and journal.saved.stat(number) is not None:
        _refuse_occupied(directory, name, step.path)
        journal.saved.rename(number, directory, name)


def _where(target: Target, step: Replace) -> tuple[RealDir, bytes, bytes]:
    parent, _, name = step.path.rpartition(b"/")
    return target.directory(parent), name, b"%d" % step.number


def _refuse_occupied(directory: RealDir, name: bytes, path: bytes) -> None:
    """Refuse to replace what somebody has put in a place that was empty.

    Raises:
        UserError: LAYERS.
    """
    if directory.stat(name) is not None:
        raise UserError(
            f"'{os.fsdecode(path)}' was made by somebody else meanwhile; move it away and try again", ExitCode.LAYERS
        )
