"""Changing whose the objects of a tree are, and nothing else.

chown(2) does more than it says: it clears set-id bits and removes file capabilities (fs/open.c chown_common,
security/commoncap.c cap_inode_killpriv). With one owner for everything that is right, unless somebody asks to keep
them: a user's set-user-ID program must not become root's. The owner before does not matter, because stored owners can
be forged. With a map they stay, since they mean the same as before.

An owner is written in more places than the inode: in the qualifiers of ACLs, in the root id of a capability, and, in an
upper with stored ownership, in its store. There the store is the ownership; the real owner is only the user who may
open the files, and stays.

`examine` finds out what has to happen to one object, `Step.apply` does it. Nothing is written before every object was
examined once, so that a rule that does not fit is found before anything has changed.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fuseunion.core.ids import acl, capability
from fuseunion.core.ids.identity import KEEP, IdMap
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.stored_names import PREFIX
from fuseunion.offline.walk import Found

_CAPABILITIES = frozenset((b"security.capability", PREFIX + b"security.capability"))
_ACLS = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))
_SET_ID = stat.S_ISUID | stat.S_ISGID


class NotCoveredError(Exception):
    """A rule does not say what becomes of an id."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Rule(Protocol):
    """What becomes of owners. `owner` is for inodes, `qualifier` for ids in ACLs and capabilities."""

    @property
    def repeatable(self) -> bool:
        """True when it changes nothing that it has changed before."""

    @property
    def keeps_privileges(self) -> bool:
        """True when set-id bits and file capabilities stay."""

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The new owner."""

    def qualifier(self, number: int) -> int:
        """The new id of a user or group that is mentioned, but owns nothing by that."""


@dataclass(frozen=True, slots=True)
class OneOwner:
    """Everything belongs to one user and group; whom ACLs mention does not change.

    Attributes:
        keeps_privileges: set-id bits and file capabilities stay.
    """

    uid: int
    gid: int
    keeps_privileges: bool = False

    @property
    def repeatable(self) -> bool:
        return True

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        return self.uid, self.gid

    def qualifier(self, number: int) -> int:
        return number


@dataclass(frozen=True, slots=True)
class Shift:
    """Every id moves as a map says.

    An id that lies only among the new ones was moved before: a command that was interrupted can be given again,
    unless old and new ranges overlap.
    """

    ids: IdMap

    @property
    def repeatable(self) -> bool:
        return not any(
            old.disk < new.shown + new.length and new.shown < old.disk + old.length
            for old in self.ids.ranges
            for new in self.ids.ranges
        )

    @property
    def keeps_privileges(self) -> bool:
        return True

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        return self.qualifier(uid), self.qualifier(gid)

    def qualifier(self, number: int) -> int:
        moved = self.ids.shown_or_none(number)
        if moved is not None:
            return moved
        if self.ids.disk_or_none(number) is None:
            raise NotCoveredError(number)
        return number


@dataclass(slots=True)
class Step:
    """What has to happen to one object.

    Attributes:
        store: where ownership is stored, None where the inode has it.
        before, after: the owner as it is seen, (uid, gid).
        mode: permissions to set after chown, or None: those that chown would change, or without set-id bits.
        xattrs: attributes to write afterwards.
        removed: attributes to remove.
    """

    store: OwnershipStore | None
    before: tuple[int, int]
    after: tuple[int, int]
    mode: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    removed: frozenset[bytes] = frozenset()

    @property
    def needed(self) -> bool:
        """False when everything is as it should be."""
        return self.before != self.after or self.mode is not None or bool(self.xattrs or self.removed)

    @property
    def clears(self) -> bool:
        """True when set-id bits or capabilities go."""
        return bool(self.removed) or (self.mode is not None and not self.mode & _SET_ID)

    def apply(self, found: Found) -> None:
        """Make the change.

        Raises:
            OSError: as chown(2) and setxattr(2).
        """
        held = found.held
        if self.store is not None:
            if self.before != self.after or self.mode is not None:
                mode = KEEP if self.mode is None else self.mode
                self.store.change(held, found.st, uid=self.after[0], gid=self.after[1], mode=mode)
        else:
            if self.before != self.after:
                held.chown(*self.after)
            if self.mode is not None:
                held.chmod(self.mode)
        for name in self.removed:
            try:
                held.removexattr(name)
            except OSError as error:
                # chown has removed it; and an ordinary user may not even ask for that (cap_inode_removexattr).
                if error.errno != errno.ENODATA and name in held.listxattr():
                    raise
        for name, value in self.xattrs.items():
            held.setxattr(name, value)


def examine(found: Found, rule: Rule, store: OwnershipStore | None) -> Step:
    """Find out what a rule asks for one object.

    Args:
        store: of the upper, None where real owners count.

    Raises:
        NotCoveredError: the rule does not cover an owner or a qualifier.
        OSError: EOVERFLOW for a capability of another user namespace, which chown would destroy; EINVAL for an
            attribute that is broken.
    """
    seen = found.st if store is None else store.load(found.held, found.st)
    before = seen.st_uid, seen.st_gid
    step = Step(store, before, rule.owner(*before))
    clears = store is None and step.before != step.after
    names = frozenset(found.held.listxattr())
    if seen.st_mode & _SET_ID and not stat.S_ISDIR(seen.st_mode):
        if not rule.keeps_privileges:
            step.mode = stat.S_IMODE(seen.st_mode) & ~_SET_ID
        elif clears:
            step.mode = stat.S_IMODE(seen.st_mode)
    if not rule.keeps_privileges:
        step.removed = names & _CAPABILITIES
    for name in names & _ACLS:
        _examine_value(found, name, step, lambda value: _shift_acl(value, rule), always=False)
    for name in (names & _CAPABILITIES) - step.removed:
        _examine_value(found, name, step, lambda value: _shift_capability(value, rule), always=clears)
    return step


def _examine_value(found: Found, name: bytes, step: Step, change: Callable[[bytes], bytes], *, always: bool) -> None:
    value = found.held.getxattr(name)
    changed = change(value)
    if always or changed != value:
        step.xattrs[name] = changed


def _shift_acl(value: bytes, rule: Rule) -> bytes:
    return acl.unparse(
        tuple(
            entry._replace(who=rule.qualifier(entry.who)) if entry.tag in (acl.Tag.USER, acl.Tag.GROUP) else entry
            for entry in acl.parse(value)
        )
    )


def _shift_capability(value: bytes, rule: Rule) -> bytes:
    parsed = capability.parse(value)
    try:
        return capability.unparse(parsed._replace(rootid=rule.qualifier(parsed.rootid)))
    except NotCoveredError:
        if parsed.rootid == 0:
            return value  # version 2 says nothing of a root: that of the reader is meant
        raise
