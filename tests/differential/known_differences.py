"""Every difference between fuseunion and an oracle that is meant, with its reason.

A difference is data: which call, what the oracle answers, what fuseunion answers. It may not leave the two sides in
different states, so both answers are errors, or the call only reads. Whatever is not listed fails the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tests.differential.operations import Call, Operation, Outcome, World
from tests.support import tree
from tests.support.product import WITH_EXTENSION


class Oracle(Enum):
    """What fuseunion is compared with."""

    KERNEL = "kernel overlayfs"
    PLAIN = "plain directory"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference; None matches every answer."""

    oracles: frozenset[Oracle]
    calls: frozenset[Call]
    expected: str | None
    got: str | None
    reason: str
    attributes: str = ""
    """Only for extended attributes whose name begins so."""
    nothing_asked: bool = False
    """Only for -1 as both ids."""
    position: int | None = None
    """Only where the values differ in this one of their fields."""

    def covers(self, oracle: Oracle, operation: Operation, expected: Outcome, got: Outcome) -> bool:
        """Whether this is the difference that was seen."""
        return (
            oracle in self.oracles
            and operation.call in self.calls
            and operation.name.startswith(self.attributes)
            and (not self.nothing_asked or operation.number == operation.second == -1)
            and (self.position is None or _without(expected, self.position) == _without(got, self.position))
            and (self.expected is None or self.expected == expected.error)
            and (self.got is None or self.got == got.error)
        )


def _without(outcome: Outcome, position: int) -> object:
    value = outcome.value
    return (*value[:position], *value[position + 1 :]) if isinstance(value, tuple) else outcome


_BOTH = frozenset(Oracle)
# In what operations.py says of a file's status.
_NLINK = 5
_CHANGING_WHAT_IS_OPEN = frozenset({Call.FD_CHMOD, Call.FD_CHOWN, Call.FD_UTIMENS, Call.FD_SETXATTR})
_OPENING = frozenset({Call.OPEN, Call.READ, Call.WRITE, Call.APPEND, Call.OPEN_TRUNCATE})

KNOWN = (
    Difference(
        _BOTH,
        _OPENING,
        "ENXIO",
        "EACCES",
        "a mount of fuseunion is nodev unless `-o dev` asks otherwise, as every FUSE mount; so a device node cannot be "
        "opened (mount(2), MS_NODEV), where the other looks for its driver and finds none",
    ),
    Difference(
        frozenset({Oracle.KERNEL}),
        frozenset({Call.REMOVEXATTR}),
        "ENODATA",
        None,
        "removing an ACL that is not there succeeds on a local filesystem and here; in overlayfs it does in the upper, "
        "but not for an object of a lower (fs/overlayfs/inode.c ovl_set_or_remove_acl)",
        attributes="system.posix_acl_",
    ),
    Difference(
        frozenset({Oracle.KERNEL}),
        frozenset({Call.FD_STAT}),
        None,
        None,
        "an open file of a lower that was deleted has no links, as on a local filesystem; overlayfs still shows those "
        "of the lower",
        position=_NLINK,
    ),
    Difference(
        frozenset({Oracle.PLAIN}),
        frozenset({Call.STATVFS}),
        None,
        None,
        "a plain directory may lie on another filesystem than upper",
    ),
    Difference(
        _BOTH if WITH_EXTENSION else frozenset(),
        frozenset({Call.CHOWN, Call.FD_CHOWN}),
        "EPERM",
        None,
        "chown(2) with -1 for both ids, of a set-ID file of somebody else's, changes nothing and succeeds: the kernel "
        "sends the same request before a write to it, which is allowed (fs/fuse/dir.c fuse_setattr)",
        nothing_asked=True,
    ),
)


def is_known(oracle: Oracle, operation: Operation, expected: Outcome, got: Outcome) -> bool:
    """Whether a difference between two outcomes is listed."""
    return any(difference.covers(oracle, operation, expected, got) for difference in KNOWN)


def with_known(oracle: Oracle, expected: tree.Tree, got: tree.Tree, since: int) -> tree.Tree:
    """What is expected of a tree, with the differences that are meant.

    What is written to a fifo changes its times on a local filesystem, but neither in overlayfs nor here: the kernel
    tells no filesystem of it whose inodes keep no times (fs/pipe.c pipe_write, S_NOCMTIME; docs/differences.md).

    Args:
        since: when the operations began.
    """
    if oracle is not Oracle.PLAIN:
        return expected
    written = {path for path, entry in expected.items() if entry.kind == "fifo" and entry.mtime >= since}
    return {**expected, **{path: expected[path]._replace(mtime=got[path].mtime) for path in written & got.keys()}}


def is_left_out(oracle: Oracle, operation: Operation, ours: World) -> bool:
    """Whether neither side is asked, because what the oracle does is known to be wrong, even where it says an error.

    Removing an ACL, even one that is not there, takes the set-group-ID bit of an object in overlayfs, unless the user
    is in its group (fs/overlayfs/inode.c ovl_set_acl; docs/differences.md). And it copies an open directory of a lower
    that was removed up to its name, in the place of an empty one that has been made there since
    (fs/overlayfs/copy_up.c ovl_copy_up_workdir).
    """
    if oracle is not Oracle.KERNEL:
        return False
    return (
        operation.call is Call.REMOVEXATTR and operation.name == "system.posix_acl_access" and operation.uid != 0
    ) or (operation.call in _CHANGING_WHAT_IS_OPEN and ours.is_removed_directory(operation.slot))


def is_withheld(oracle: Oracle, operation: Operation, expected: Outcome) -> bool:
    """Whether the oracle refused what fuseunion is documented to do better; then fuseunion is not asked.

    A directory that a lower holds cannot be renamed in overlayfs without redirect_dir (overlayfs.rst, "renaming
    directories": EXDEV); in fuseunion it can (docs/differences.md), which the plain directory checks. And an open file
    of a lower, over whose name another was moved, cannot be changed by its descriptor in overlayfs, whose copy-up finds
    the name taken (fs/overlayfs/copy_up.c ovl_link_up, ovl_copy_up_tmpfile).
    """
    if oracle is not Oracle.KERNEL:
        return False
    return (operation.call is Call.RENAME and expected.error == "EXDEV") or (
        operation.call in _CHANGING_WHAT_IS_OPEN and expected.error == "EEXIST"
    )
