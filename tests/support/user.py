"""The ordinary user that the tests become, with subordinate ids (subuid(5))."""

from __future__ import annotations

import fcntl
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

NAME = "fuseunion-test"
OTHER_GROUP = 60_010
"""Of which the ordinary user is a member besides the primary group, if root runs the tests."""
_SUBORDINATES = 65536


class Range(NamedTuple):
    """A range of subordinate ids."""

    first: int
    size: int


class User(NamedTuple):
    """Who the ordinary user is."""

    name: str
    uid: int
    gid: int
    home: str
    subuids: Range
    subgids: Range


def _ranges(database: str) -> dict[str, Range]:
    found: dict[str, Range] = {}
    path = Path(database)
    for line in path.read_text().splitlines() if path.exists() else []:
        name, start, count = line.split(":")
        found.setdefault(name, Range(int(start), int(count)))
    return found


def _free_start(ranges: dict[str, Range]) -> int:
    return max([200_000, *(known.first + known.size for known in ranges.values())])


def ordinary_user() -> User:
    """The user `fuseunion-test`, made with subordinate ids if root runs the tests; else the user who runs them.

    :raises AssertionError: an ordinary user runs the tests and has no subordinate ids
    """
    if os.geteuid() == 0:
        with _databases_to_ourselves():
            _make()
        entry = pwd.getpwnam(NAME)
    else:
        entry = pwd.getpwuid(os.geteuid())
    uids, gids = _ranges("/etc/subuid"), _ranges("/etc/subgid")
    remedy = f"give them with: usermod --add-subuids 200000-265535 --add-subgids 200000-265535 {entry.pw_name}"
    assert entry.pw_name in uids and entry.pw_name in gids, f"{entry.pw_name} has no subordinate ids; {remedy}"
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, uids[entry.pw_name], gids[entry.pw_name])


@contextmanager
def _databases_to_ourselves() -> Iterator[None]:
    """While it lasts no other worker of the tests looks at the user or makes it: two that make it at once spoil it."""
    held = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _make() -> None:
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", NAME], check=True)
    for database, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        ranges = _ranges(database)
        if NAME not in ranges:
            start = _free_start(ranges)
            subprocess.run(["usermod", option, f"{start}-{start + _SUBORDINATES - 1}", NAME], check=True)
