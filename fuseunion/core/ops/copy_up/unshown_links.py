"""Groups of the link index that no name of the union shows any more.

A lower file can have names outside of the lowers (`cp -al`, the caches of pnpm and uv, ostree). Its count of links
never comes to zero in the union, so the count cannot tell that the last name has gone. Then the lowers are asked: they
are gone through once, for all groups in question, and a group whose every lower name is known not to show the lower
file is at its end, if its copy has no name in the upper either.

That counts only where each of the names that went is found in the lowers: they may be other ones than those that the
index is about, or none at all, where an upper is opened alone.

What cannot be found out is not believed: where a lower cannot be read to its end, everything stays. A name that is
hidden by anything but its own whiteout counts as shown, so that its group stays longer than it would have to;
`fuseunion check --repair`, which looks at the merged tree, finds it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Set

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format.link_entries import guard_in, guard_of, key_of, token_of
from fuseunion.core.marks.link_index import LinkGroup
from fuseunion.core.marks.link_migration import listed
from fuseunion.core.tree.state import State
from fuseunion.steps import Steps

_AT_ONCE = 64
"""Names between two steps."""


def drop(state: State) -> Steps[int]:
    """Look for groups that are at their end, among those that may be, and remove them with their copies.

    Returns:
        How many there were.
    """
    if state.upper is None or not state.upper.links.suspects:
        return 0
    links = state.upper.links
    keys = frozenset(links.suspects)
    lowers = state.lowers
    try:
        tokens = yield from lower_tokens(state, keys)
    except OSError as error:
        state.log.info("the link index keeps what may be shown by no name: %s", error)
        for key in keys:
            links.trusted(key)
        return 0
    # From here on in one piece.
    if state.lowers is not lowers:
        return 0  # one more was added meanwhile, and may hold names of them: at the next look
    ended = 0
    for key in keys:
        try:
            group = links.unshown(key, tokens.get(key, set()))
        except OSError as error:
            state.log.warning("the link index cannot be looked at: %s", error)
            continue
        ended += group is not None and _ended(state, group)
    return ended


def _ended(state: State, group: LinkGroup) -> bool:
    """Remove a group, unless a name of it is known after all."""
    upper = state.writable().layer
    known = None
    if group.copy_ino is not None:
        known = state.table.find_upper((upper.st_dev, group.copy_ino))
    real, name = group.copy
    try:
        st = real.stat(name) if group.copy_ino is not None else None
        if known is not None:
            if not known.removed:
                return False
            known.unlinked()
        group.end()
        if known is not None:
            known.stale()
        elif upper.ownership is not None and st is not None:
            upper.ownership.forget(st)
    except OSError as error:
        state.log.warning("the link index keeps inode %d: %s", group.number, error)
        return False
    return True


def lower_tokens(state: State, keys: Set[bytes]) -> Steps[dict[bytes, set[bytes]]]:
    """The tokens of all the names that the files of some groups have in the lowers.

    Raises:
        OSError: of a lower; EACCES for a directory whose names may be looked up, but not listed.
    """
    guards = {guard_in(key) for key in keys}
    found: dict[bytes, set[bytes]] = {}
    for root in state.root.lowers:
        waiting = [root]
        while waiting:
            directory = waiting.pop()
            number = None
            for count, (name, is_directory) in enumerate(_names(directory)):
                if count % _AT_ONCE == 0:
                    yield
                if is_directory:
                    waiting.append(directory.child(name))
                    continue
                st = directory.stat(name)
                if st is None or stat.S_ISDIR(st.st_mode) or guard_of(st) not in guards:
                    continue
                key = key_of(state.numbers.number(st.st_dev, st.st_ino), st)
                if key in keys:
                    if number is None:
                        own = directory.own_stat()
                        number = state.numbers.number(own.st_dev, own.st_ino)
                    found.setdefault(key, set()).add(token_of(number, name))
            yield
            directory.close()
    return found


def _names(directory: RealDir) -> list[tuple[bytes, bool]]:
    """What a lower directory holds; nothing where something is mounted, or where nobody gets in.

    Raises:
        OSError: EACCES for one that may be searched all the same.
    """
    try:
        return listed(directory)
    except PermissionError as error:
        if error.errno == errno.EACCES and not os.access(b".", os.X_OK, dir_fd=directory.fd(), effective_ids=True):
            return []
        raise
    except OSError as error:
        if error.errno == errno.EXDEV:
            return []
        raise
