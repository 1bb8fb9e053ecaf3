"""fuseunion chown: change whose the files of an unmounted upper are.

An upper that was written under one id map is of no use under another, or as real root: Apptainer and CondaTainer make
an upper as the user and want it to be root's, a container engine moves one between ranges of subordinate ids.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.core.ids.identity import IdMap
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options import MAX_ID
from fuseunion.mounting.options.values import parse_id_map
from fuseunion.offline.owner_change import NotCoveredError, OneOwner, Rule, Shift, Step, examine
from fuseunion.offline.upkeep.holding import hold
from fuseunion.offline.walk import Found, walk

HELP = """\
Usage: fuseunion chown UPPER --to root|UID:GID [--keep-set-id] [--work DIR] [--dry-run]
       fuseunion chown UPPER --map DISK:SHOWN:LEN... [--work DIR] [--dry-run]

Changes the owner of everything in the upper directory UPPER, which must not be mounted. Permissions, whiteouts,
ACLs, hard links and times of modification stay as they are. With --to, files lose their set-id bits and capabilities,
as with chown(1); with --map they keep them. Where ownership is stored in attributes or in the work directory's
database, the stored ownership is changed.

Options:
  --to OWNER             the new owner of everything
  --keep-set-id          with --to: keep set-id bits and file capabilities. Every set-id program in UPPER then runs with
                         the rights of the new owner
  --map DISK:SHOWN:LEN   ids DISK, DISK+1, ... become SHOWN, SHOWN+1, ..., users and groups alike; may be repeated.
                         ACLs and file capabilities follow. Every id that occurs must be covered
  --work DIR             the work directory of UPPER, when that is not the default one
  --dry-run              print what would change, and change nothing
  -h, --help             print this help

Examples:
  fuseunion chown upper --to root
  fuseunion chown upper --to 1000:1000 --dry-run
  fuseunion chown tree --to root --keep-set-id
  fuseunion chown upper --map 0:100000:65536
  fuseunion chown upper --map 1000:0:1 --map 100000:1:65535
"""


def main(arguments: list[str]) -> int:
    """Change the owners in one upper.

    Raises:
        UserError: USAGE; BUSY where it is mounted; LAYERS where --map does not fit what is there; FAILURE where the
            system refuses.
    """
    parser = CommandParser("chown", HELP)
    parser.flag("--dry-run")
    parser.flag("--keep-set-id")
    parser.values("--map")
    for name in ("--to", "--work"):
        parser.value(name)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1 or (asked.to is None) == (not asked.map):
        raise UserError("give one directory and either --to or --map; see fuseunion chown --help")
    if asked.keep_set_id and asked.to is None:
        raise UserError("--keep-set-id goes with --to; --map keeps set-id bits and capabilities anyway")
    rule = _shift(asked.map) if asked.to is None else one_owner(asked.to, keep_set_id=asked.keep_set_id)
    with ExitStack() as stack:
        held = hold(stack, asked.operands[0], asked.work)
        with _named(held.path, b""):
            store = held.store()
        if store is not None:
            stack.callback(store.close)
        upper = Tree(held.root_fd, held.path, store)
        total, changes, cleared = survey(upper, rule, show=asked.dry_run)
        if asked.dry_run:
            print(f"{changes} of {total} objects would change")
        else:
            change(upper, rule, total)
            note = f", {cleared} lost set-id bits or capabilities" if cleared else ""
            print(f"changed {changes} of {total} objects{note}")
    return ExitCode.OK


def one_owner(text: str, *, keep_set_id: bool) -> OneOwner:
    """What --to says.

    Raises:
        UserError: USAGE.
    """
    if text == "root":
        return OneOwner(0, 0, keep_set_id)
    numbers = re.fullmatch(r"([0-9]{1,30}):([0-9]{1,30})", text, re.ASCII)
    if numbers is None or max(int(numbers[1]), int(numbers[2])) > MAX_ID:
        raise UserError(f"--to {text}: expected root or UID:GID, in numbers")
    return OneOwner(int(numbers[1]), int(numbers[2]), keep_set_id)


def _shift(texts: list[str]) -> Shift:
    try:
        return Shift(IdMap([triple for text in texts for triple in parse_id_map(text, "--map")], "id"))
    except ValueError as error:
        raise UserError(f"--map: {error}") from None


@dataclass(frozen=True, slots=True)
class Tree:
    """What is given another owner.

    Attributes:
        root_fd: of its root.
        path: for messages.
        store: where its ownership is stored, None where the inodes have it.
    """

    root_fd: int
    path: str
    store: OwnershipStore | None


def _objects(upper: Tree, rule: Rule) -> Iterator[tuple[Found, Step]]:
    """Each object once, however many names it has."""
    linked: set[int] = set()
    with _named(upper.path):
        for found in walk(upper.root_fd):
            if found.st.st_nlink > 1 and not stat.S_ISDIR(found.st.st_mode):
                if found.st.st_ino in linked:
                    continue
                linked.add(found.st.st_ino)
            with _named(upper.path, found.path):
                step = examine(found, rule, upper.store)
            yield found, step


def survey(upper: Tree, rule: Rule, *, show: bool) -> tuple[int, int, int]:
    """Look at everything before anything changes.

    Returns:
        How many objects there are, how many change, how many lose set-id bits or capabilities.
    """
    total = changes = cleared = 0
    for found, step in _objects(upper, rule):
        total += 1
        changes += step.needed
        cleared += step.clears
        if show and step.needed:
            path = os.fsdecode(found.path or b".")
            lost = "  loses set-id bits or capabilities" if step.clears else ""
            print(f"{step.before[0]}:{step.before[1]} -> {step.after[0]}:{step.after[1]}  {path!r}{lost}")
    return total, changes, cleared


def change(upper: Tree, rule: Rule, total: int) -> None:
    """Give everything its owner, with a bar on a terminal.

    Args:
        total: how many objects there are.

    Raises:
        UserError: FAILURE: the system refuses, or ^C came between two objects.
    """
    with Progress("chown", total) as progress, _Interruption() as interruption:
        for done, (found, step) in enumerate(_objects(upper, rule)):
            if interruption.came and rule.repeatable:
                raise UserError(
                    f"stopped after {done} of {total} objects; the same command completes it", ExitCode.FAILURE
                )
            if step.needed:
                with _named(upper.path, found.path):
                    step.apply(found)
            progress(done + 1)


@contextmanager
def _named(upper: str, path: bytes | None = None) -> Iterator[None]:
    """Turn what goes wrong with one object into one line that names it.

    Args:
        path: of the object in the upper; None takes the one that the error names.
    """
    try:
        yield
    except NotCoveredError as error:
        raise UserError(
            f"id {error.number} of '{_join(upper, path)}' is not covered by --map; add a range for it,"
            " nothing was changed",
            ExitCode.LAYERS,
        ) from None
    except OSError as error:
        name = _join(upper, error.filename if path is None else path)
        # chown(2): EPERM without the privilege, EINVAL for an id that the user namespace does not map.
        known = error.errno in (errno.EPERM, errno.EACCES, errno.EINVAL)
        hint = "; run it as root, or in a user namespace that maps both owners" if known else ""
        raise UserError(f"cannot change the owner of '{name}': {error.strerror}{hint}", ExitCode.FAILURE) from None


def _join(upper: str, path: bytes | None) -> str:
    return os.path.join(upper, os.fsdecode(path)) if path else upper


class _Interruption:
    """Between two objects is the place to stop: within one, its set-id bits would be lost.

    A rule that cannot be given again is not stopped at all: nobody could tell the old ids from the new.
    """

    def __init__(self) -> None:
        self.came = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def __enter__(self) -> _Interruption:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
