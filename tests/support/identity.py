"""Doing something with another user's rights, as a set-user-id program would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator


@contextlib.contextmanager
def acting_as(uid: int, umask: int = 0o022, groups: Collection[int] = ()) -> Iterator[None]:
    """Act as a user whose group has the same number; 0 stays root.

    :param groups: the supplementary groups

    Only root, or the root of a user namespace, can act as others; an ordinary user acts under their own ids.
    """
    if os.geteuid():
        assert uid == os.geteuid(), "an ordinary user cannot become another"
        previous = os.umask(umask)
        try:
            yield
        finally:
            os.umask(previous)
        return
    before = os.umask(umask)
    own_groups = os.getgroups()
    try:
        os.setgroups(list(groups))
        if uid:
            os.setegid(uid)
            os.seteuid(uid)
        yield
    finally:
        if uid:
            os.seteuid(0)
            os.setegid(0)
        os.setgroups(own_groups)
        os.umask(before)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Act with another file mode creation mask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
