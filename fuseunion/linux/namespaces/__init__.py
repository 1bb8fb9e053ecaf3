"""User and mount namespaces: where this process is, and how it makes one for itself (user_namespaces(7))."""

import os

from fuseunion.linux import syscalls

_EVERY_ID = ["0", "0", str(2**32 - 1)]


def id_map(kind: str, process: int | str = "self") -> list[str]:
    """The id map of a user namespace: triples of the first id inside, the first outside and how many, in a row.

    Args:
        kind: "uid" or "gid".
        process: in the namespace; one in another sees the ids outside as its own namespace has them.

    Raises:
        OSError: there is no /proc.
    """
    with open(f"/proc/{process}/{kind}_map") as file:
        return file.read().split()


def maps_every_id(kind: str, process: int | str = "self") -> bool:
    """Whether every id has a number there, the same as on the machine. Arguments and errors as of `id_map`."""
    return id_map(kind, process) == _EVERY_ID


def in_first_user_namespace() -> bool:
    """Whether root here is the machine's root: only the first user namespace maps every id to itself.

    Without /proc the answer is no: root is then taken for that of any namespace, which may do less.
    """
    try:
        return maps_every_id("uid")
    except OSError:
        return False


def enter_user_namespace() -> None:
    """Go to new user and mount namespaces, in which the user keeps the present ids and is allowed to mount.

    Raises:
        OSError: EPERM, ENOSPC or EACCES where they are forbidden.
    """
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    # An unprivileged process may map its own ids only, and its group only once setgroups(2) is given up.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter_mount_namespace() -> None:
    """Go to a new mount namespace, whose mounts nobody outside sees.

    Raises:
        OSError: EPERM for an ordinary user.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    keep_mounts_private()


def keep_mounts_private() -> None:
    """Let no mount that is made from now on leave this mount namespace.

    Raises:
        OSError: EPERM where mounts are forbidden.
    """
    syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_PRIVATE, b"")
