"""Which ids the command may have, and how its user namespaces are mapped (user_namespaces(7), subuid(5)).

Two user namespaces, one in the other, for whoever is not root:

    outer   our own processes: those that mount, and the daemon
    inner   the command

The inner one keeps the command from tracing ours. Both name the ids alike, but for one: the overflow id (65534). To the
daemon this number is to mean "somebody who has no number here", so `nobody` of the inner namespace is given another one
in the outer. Without subordinate ids there is one id, which is root's inside, or that of --user.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from typing import NamedTuple

from fuseunion.core.ids.identity import overflow_id
from fuseunion.linux import namespaces

Triple = tuple[int, int, int]
"""The first id inside, the first outside, how many."""

_NOBODY = 4_000_000_000
"""What `nobody` is in the outer namespace: far from what anybody has."""

_LIMIT = 339
"""Triples in one map (kernel/user_namespace.c UID_GID_MAP_MAX_EXTENTS), less those of the user and of nobody."""


class Ranges(NamedTuple):
    """The maps of one kind of id.

    Attributes:
        kind: "uid" or "gid".
        outer, inner: as they are written to /proc/PID/uid_map.
    """

    kind: str
    outer: tuple[Triple, ...]
    inner: tuple[Triple, ...]

    @property
    def is_single(self) -> bool:
        """Whether there is one id and no other."""
        return sum(count for _, _, count in self.outer) == 1


class Plan(NamedTuple):
    """Both kinds; `None` in their place means that no user namespace is made."""

    uids: Ranges
    gids: Ranges

    @property
    def is_single(self) -> bool:
        """Whether neither owners nor groups can be given away."""
        return self.uids.is_single


def with_subordinates() -> Plan | None:
    """All ids that this user has; None where there are no subordinate ones."""
    uid, gid = os.getuid(), os.getgid()
    uids = _subordinates("/etc/subuid", uid, [])
    gids = _subordinates("/etc/subgid", uid, ["-g"])
    if not uids or not gids:
        return None
    return Plan(_ranges("uid", uid, uids), _ranges("gid", gid, gids))


def single() -> Plan:
    """The user's own id, as root's."""
    return Plan(
        Ranges("uid", ((0, os.getuid(), 1),), ((0, 0, 1),)), Ranges("gid", ((0, os.getgid(), 1),), ((0, 0, 1),))
    )


def as_they_are() -> Plan:
    """The user's own id, as itself."""
    uid, gid = os.getuid(), os.getgid()
    return Plan(Ranges("uid", ((uid, uid, 1),), ((uid, uid, 1),)), Ranges("gid", ((gid, gid, 1),), ((gid, gid, 1),)))


def strangers(kind: str) -> bool:
    """Whether the overflow id means nobody who has a number in this user namespace."""
    numbers = [int(number) for number in namespaces.id_map(kind)]
    nobody = overflow_id(kind)
    return not any(first <= nobody < first + count for first, count in zip(numbers[::3], numbers[2::3], strict=True))


def is_single_here() -> bool:
    """Whether this user namespace knows one id."""
    return sum(int(count) for count in namespaces.id_map("uid")[2::3]) == 1


def write(plan: Plan, process: int) -> str | None:
    """Write the maps of an outer namespace, with newuidmap(1) and newgidmap(1) where there is more than one id.

    Returns:
        Why it cannot be done, or None.
    """
    if plan.is_single:
        for name, text in (("setgroups", "deny"), ("uid_map", _lines(plan.uids)), ("gid_map", _lines(plan.gids))):
            try:
                with open(f"/proc/{process}/{name}", "w") as file:
                    file.write(text)
            except OSError as error:
                return f"/proc/{process}/{name}: {error.strerror}"
        return None
    for ranges in plan:
        numbers = [str(number) for triple in ranges.outer for number in triple]
        try:
            done = subprocess.run(
                [f"new{ranges.kind}map", str(process), *numbers], capture_output=True, text=True, check=False
            )
        except OSError as error:
            return f"new{ranges.kind}map: {error.strerror}; install the package uidmap"
        if done.returncode:
            return done.stderr.strip() or f"new{ranges.kind}map failed"
    return None


def write_inner(plan: Plan, user: tuple[int, int] | None, process: int) -> None:
    """Write the maps of an inner namespace.

    Args:
        user: who the single id is there.

    Raises:
        OSError: of the files in /proc.
    """
    for index, ranges in enumerate(plan):
        triples = ranges.inner
        if ranges.is_single and user is not None:
            triples = tuple((user[index], outside, count) for _, outside, count in triples)
        if ranges.kind == "gid" and plan.is_single:
            with open(f"/proc/{process}/setgroups", "w") as file:
                file.write("deny")
        with open(f"/proc/{process}/{ranges.kind}_map", "w") as file:
            file.write("".join(f"{inside} {outside} {count}\n" for inside, outside, count in triples))


def _lines(ranges: Ranges) -> str:
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges.outer)


def _subordinates(database: str, uid: int, group: list[str]) -> list[tuple[int, int]]:
    """First id and number of each range; of the file, else of what the machine's name service knows (getsubids(1))."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    found: list[tuple[int, int]] = []
    try:
        with open(database) as file:
            for line in file:
                owner, _, rest = line.strip().partition(":")
                first, _, count = rest.partition(":")
                if owner in (name, str(uid)) and first.isdigit() and count.isdigit() and int(count):
                    found.append((int(first), int(count)))
    except OSError:
        pass  # no such database
    if not found:
        try:
            told = subprocess.run(["getsubids", *group, name], capture_output=True, text=True, check=False).stdout
        except OSError:
            return []  # an older package uidmap: there is only the file
        for line in told.splitlines():
            fields = line.split()  # 0: NAME FIRST COUNT
            if len(fields) == 4 and fields[2].isdigit() and fields[3].isdigit() and int(fields[3]):
                found.append((int(fields[2]), int(fields[3])))
    return found[:_LIMIT]


def _ranges(kind: str, own: int, subordinates: list[tuple[int, int]]) -> Ranges:
    outer: list[Triple] = [(0, own, 1)]
    nobody = overflow_id(kind)
    following = 1
    for first, count in subordinates:
        before = min(count, max(nobody - following, 0))
        after = count - before
        if before:
            outer.append((following, first, before))
        if after and following + before == nobody:
            outer.append((_NOBODY, first + before, 1))
            before, after = before + 1, after - 1
        if after:
            outer.append((following + before, first + before, after))
        following += count
    # A range of the inner namespace has to lie in one range of the outer (kernel/user_namespace.c map_id_range_down).
    inner = tuple((nobody if inside == _NOBODY else inside, inside, count) for inside, _, count in outer)
    return Ranges(kind, tuple(outer), inner)
