"""`fuseunion check`: everything that can be wrong with an upper that is not mounted.

Looking changes nothing: the upper is opened as it lies there, and the union that says what its lowers show has a work
directory of its own, which is thrown away. Repairing goes over it again after each round, since what one finding hides
is seen only when it has gone.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.ownership.store_choice import detect
from fuseunion.core.tree.state import Settings
from fuseunion.core.union import Union
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.checks.placement import Part
from fuseunion.mounting.sources import scratch
from fuseunion.offline.layers.opening import opened_directories
from fuseunion.offline.upkeep.checking.findings import Finding, Repair, Severity
from fuseunion.offline.upkeep.checking.journal import RepairJournal
from fuseunion.offline.upkeep.checking.objects import Objects
from fuseunion.offline.upkeep.checking.work_area import WorkArea
from fuseunion.offline.upkeep.holding import HeldUpper

_ROUNDS = 4


class Outcome(NamedTuple):
    """One finding, and what became of it.

    Attributes:
        repaired: it was put right.
        why_not: what the system answered.
    """

    finding: Finding
    repaired: bool = False
    why_not: OSError | None = None


@contextmanager
def looked_at(held: HeldUpper, lowers: Sequence[str]) -> Iterator[list[Finding]]:
    """What is wrong; repairs are made within the block.

    Args:
        lowers: directories, topmost first; none where they are not known.

    Raises:
        UserError: LAYERS, for a lower that cannot be opened; OSError: of the layers.
    """
    with ExitStack() as stack:
        descriptors = Descriptors()
        upper = Layer(_again(held.root_fd), writable=True, label=held.path, descriptors=descriptors)
        union = stack.enter_context(_union(upper, lowers, descriptors)) if lowers else None
        if union is None:
            stack.callback(upper.close)
        stores = held.has_database or detect(held.root_fd) is not None
        objects = Objects(upper.root, union, stores=stores)
        found = list(objects.findings())
        if held.work_fd is not None:
            work = Layer(_again(held.work_fd), writable=True, label=held.work_path)
            stack.callback(work.close)
            found += WorkArea(work, union, objects.numbers).findings()
        yield found


def look(held: HeldUpper, lowers: Sequence[str], journal: RepairJournal | None = None) -> list[Outcome]:
    """What is wrong.

    Args:
        journal: of the upper; None where it is of no interest.

    Raises:
        As `looked_at`.
    """
    cut_off = [] if journal is None else _of_journal(journal)
    with looked_at(held, lowers) as findings:
        return [Outcome(finding) for finding in cut_off + findings]


def repair(held: HeldUpper, lowers: Sequence[str], journal: RepairJournal) -> list[Outcome]:
    """Put right what can be, and tell of everything that was found.

    Raises:
        As `looked_at`; UserError: LAYERS, FAILURE: the journal cannot be used or written.
    """
    objection = journal.objection()
    if objection is not None:
        raise UserError(objection, ExitCode.LAYERS)
    cut_off = _of_journal(journal)
    repaired: list[Outcome] = []
    for _ in range(_ROUNDS):
        with looked_at(held, lowers) as findings:
            became = {id(finding): Outcome(finding) for finding in findings}
            wanted = [each for each in findings if each.repair is not None and each.severity is not Severity.NOTE]
            for step, finding, why_not in journal.steps(wanted):
                became[id(finding)] = _repaired(journal, step, finding, why_not)
            outcomes = [*became.values()]
        repaired += [outcome for outcome in outcomes if outcome.repaired]
        rest = [outcome for outcome in outcomes if not outcome.repaired]
        if len(rest) == len(outcomes):
            break
    _remove_work(held)
    if repaired:
        syscalls.syncfs(held.root_fd)
    journal.finish()
    return [Outcome(finding, repaired=True) for finding in cut_off] + repaired + rest


def _of_journal(journal: RepairJournal) -> list[Finding]:
    path = os.fsencode(journal.path)
    if journal.objection() is not None:
        text = "is a journal of repairs that is not yours alone, and is not believed; with it nothing is repaired"
        return [Finding("foreign-journal", Severity.NOTE, path, text)]
    cut_off = journal.cut_off()
    if cut_off is None:
        return []
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(cut_off.since))
    text = f"says that a repair of {since} was cut off, {cut_off.taken} of {cut_off.steps} known steps were taken"
    going_on = Repair("goes on", journal.finish, dict)
    return [Finding("cut-off-repair", Severity.LEFTOVER, path, text, going_on)]


def _repaired(journal: RepairJournal, step: int, finding: Finding, why_not: OSError | None) -> Outcome:
    assert finding.repair is not None
    if why_not is None:
        try:
            finding.repair.call()
        except OSError as error:
            why_not = error
    journal.note(step, why_not)
    return Outcome(finding, repaired=why_not is None, why_not=why_not)


def _remove_work(held: HeldUpper) -> None:
    """Remove a default work directory in which nothing is left, as an unmount does."""
    if held.work_fd is None or not held.default_work:
        return
    if set(os.listdir(held.work_fd)) - {"links", "work"}:
        return
    if not (_rmdir(b"links", held.work_fd) and _rmdir(b"work", held.work_fd)):
        return
    parent, last = os.path.split(os.path.abspath(held.work_path))
    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _rmdir(os.fsencode(last), fd)
    finally:
        os.close(fd)


def _rmdir(name: bytes, parent_fd: int) -> bool:
    """Remove an empty directory; False where it is not empty, or no directory."""
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


@contextmanager
def _union(upper: Layer, lowers: Sequence[str], descriptors: Descriptors) -> Iterator[Union]:
    with ExitStack() as stack:
        fds = stack.enter_context(opened_directories(lowers, [Part.LOWER] * len(lowers)))
        layers = [
            Layer(_again(fd), writable=False, label=path, descriptors=descriptors)
            for fd, path in zip(fds, lowers, strict=True)
        ]
        for layer in layers:
            layer.ownership = detect(layer.root_fd)
        private = scratch.make(None)
        stack.callback(private.remove)
        work = WorkDirectory(_again(private.root_fd), private.label, descriptors=descriptors)
        union = Union(layers, upper, work, Settings(metacopy=True))
        stack.callback(union.close)
        yield union


def _again(fd: int) -> int:
    """A descriptor of the same directory, which keeps no lock (flock(2))."""
    return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
