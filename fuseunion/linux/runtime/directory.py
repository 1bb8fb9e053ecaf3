"""The runtime directory: where each mount of a user has a socket, and each ranch a note, until the next boot.

    root of the machine     /run/fuseunion, else /tmp/fuseunion-0
    everybody else          $XDG_RUNTIME_DIR/fuseunion, else /run/user/UID/fuseunion, else /tmp/fuseunion-UID

UID is the user's on the machine, also for the root of a user namespace, so that mounts that were made in one (by
podman, for instance) are found from outside. A mount takes the first that can be had; who looks for mounts looks in
all.

Only a directory that is the user's alone counts (linux/owned.py), with mode 0700, reached without a symbolic link, in a
directory where nobody else can exchange it: the user's own, or one of root's with the sticky bit. Whatever else has the
name is left alone, and a mount does without.

Nothing in it is ever believed about who owns what: a socket says who listens there by the kernel's word (unix(7),
SO_PEERCRED).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from fuseunion.linux import mountinfo, namespaces, owned

NAME = "fuseunion"

SUFFIX = ".socket"
"""What the name of a daemon's status socket ends with."""

CONTROL = ".control"
"""What that of its control socket ends with instead."""

PAUSE = ".pause"
"""What that of the socket ends with at which a pause is asked for (pauses.py): who connects gets one."""

_NOBODY = 65534
"""Who owns what belongs to nobody of a user namespace, as root's directories do there (user_namespaces(7))."""


def uid_outside() -> int:
    """The user's number outside of the present user namespace, as far as that namespace tells."""
    uid = os.geteuid()
    try:
        numbers = list(map(int, namespaces.id_map("uid")))
    except OSError:
        return uid
    for inside, outside, count in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def candidates() -> tuple[tuple[str, str], ...]:
    """The directories that may be it, as pairs of the one that it lies in and its name, the best first."""
    uid = uid_outside()
    last = ("/tmp", f"{NAME}-{uid}")
    if uid == 0:
        return (("/run", NAME), last)
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    parents = dict.fromkeys((*([given] if given.startswith("/") else []), f"/run/user/{uid}"))
    return (*((parent, NAME) for parent in parents), last)


def make() -> int | None:
    """A descriptor of the runtime directory, which is made where it is missing; None where there can be none."""
    for parent, name in candidates():
        fd = _opened(parent, name, make=True)
        if fd is not None:
            return fd
    return None


def existing() -> Iterator[int]:
    """A descriptor of each runtime directory that there is; the caller closes them."""
    for parent, name in candidates():
        fd = _opened(parent, name, make=False)
        if fd is not None:
            yield fd


def is_a_view(fd: int) -> bool:
    """Whether a runtime directory may be one that a union shows.

    There a socket that somebody listens at looks dead, because it is another object, and to remove it would write a
    whiteout. So nothing is removed in it.
    """
    try:
        fstype = mountinfo.filesystem_type(os.fstat(fd).st_dev) or ""
    except OSError:
        return True  # without /proc nobody can tell
    return fstype == "overlay" or fstype.startswith("fuse")


def _opened(parent: str, name: str, *, make: bool) -> int | None:
    """A descriptor of one candidate; None for one that is missing, or not the user's alone."""
    try:
        parent_fd = owned.open_without_links(parent)
    except OSError:
        return None  # missing, or not ours
    try:
        if not _keeps_names(os.fstat(parent_fd)):
            return None
        if make:
            try:
                os.mkdir(name, 0o700, dir_fd=parent_fd)
            except FileExistsError:
                pass  # as it mostly is
        fd = owned.open_directory(name, parent_fd)
    except OSError:
        return None  # a full or read-only filesystem; a link, a file, another user's
    finally:
        os.close(parent_fd)
    if os.fstat(fd).st_mode & 0o077:
        os.close(fd)
        return None
    return fd


def _keeps_names(st: os.stat_result) -> bool:
    """Whether nobody but this user and root can exchange what this user has in a directory."""
    if owned.objection(st) is None:
        return True
    roots = st.st_uid == 0 or (st.st_uid == _NOBODY and not namespaces.in_first_user_namespace())
    return roots and bool(st.st_mode & stat.S_ISVTX)
