"""The owner of UPPER puts other objects in the place of files that root's daemon knows: nothing of them is touched.

The kernel has decided by the file that was looked up what may be done; whatever lies there now is another file. The
daemon answers ESTALE. The kernel then looks the name up once more (retry_estale, include/linux/namei.h), so that who
asked may meet the new object, by its own permissions.

Here the file belongs to one user, UPPER to a second, and root serves.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.arena import Arena
from tests.support.identity import acting_as
from tests.support.layers import File
from tests.support.mounts import FuseunionMount
from tests.support.product import WITH_EXTENSION
from tests.support.user import User

pytestmark = [pytest.mark.actors("root"), pytest.mark.limit(40)]

CALLER = 1000


class Scene(NamedTuple):
    """A mount of root's over an upper of the user's; `known` is the caller's, and to be exchanged."""

    mount: FuseunionMount
    upper: Path
    aside: Path
    foreign: Path


@contextmanager
def scene(arena: Arena, user: User) -> Iterator[Scene]:
    lower = arena.lower({"other": File(b"other")})
    # A link from UPPER to "../foreign/file" leads somewhere, one from the merged tree does not.
    upper, aside, foreign = (arena.directory(f"deep/{name}") for name in ("upper", "aside", "foreign"))
    (upper / "known").write_text("known")
    (foreign / "file").write_text("foreign")
    (foreign / "file").chmod(0o600)
    for path in (upper, aside):
        os.chown(path, user.uid, user.gid)
    os.chown(upper / "known", CALLER, CALLER)
    with arena.mount(lower, upper=upper) as mount:
        (mount / "known").stat()
        yield Scene(mount, upper, aside, foreign)


def exchange(seen: Scene, user: User, make: Callable[[Path], None]) -> None:
    """As the owner of UPPER, put what `make` makes, open to nobody else, in the place of the known file."""
    with acting_as(user.uid, umask=0o077):
        make(seen.aside / "new")
        os.rename(seen.upper / "known", seen.aside / "old")
        os.rename(seen.aside / "new", seen.upper / "known")


CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: os.chmod(path, 0o6755),
    "chown": lambda path: os.chown(path, CALLER, CALLER),
    "utimes": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"new"),
    "truncate": lambda path: os.truncate(path, 1),
    "read": Path.read_bytes,
    "write": lambda path: _write(path),
}


def _write(path: Path) -> None:
    with path.open("r+b", buffering=0) as opened:
        opened.write(b"x")


def facts(path: Path) -> tuple[object, ...]:
    """Everything of an object that one of the changes would change."""
    st = path.lstat()
    attributes = os.listxattr(path, follow_symlinks=False)
    return st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns, attributes


def private(path: Path) -> None:
    path.write_text("private")


def link(path: Path) -> None:
    path.symlink_to("../foreign/file")


def socket_file(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


MAKERS: dict[str, Callable[[Path], None]] = {
    "link": link,
    "file": private,
    "fifo": os.mkfifo,
    "socket": socket_file,
    "directory": os.mkdir,
}


@pytest.mark.parametrize("made", MAKERS)
@pytest.mark.parametrize("change", CHANGES)
def test_another_object_is_not_touched(arena: Arena, user: User, change: str, made: str) -> None:
    """Root's chmod made a foreign program set-uid; a private file was read by the permissions of the one before; a
    FIFO held up the whole mount until somebody opened its other end."""
    with scene(arena, user) as seen:
        exchange(seen, user, MAKERS[made])
        before = facts(seen.upper / "known"), facts(seen.foreign / "file")
        with acting_as(CALLER), pytest.raises(OSError):
            CHANGES[change](seen.mount / "known")
        assert (facts(seen.upper / "known"), facts(seen.foreign / "file")) == before
        assert (seen.mount / "other").read_bytes() == b"other"


def test_who_has_the_file_open_keeps_it(arena: Arena, user: User) -> None:
    """A descriptor is of the object, whatever its name leads to.

    With the extension module that is so while the daemon keeps one too, and nothing else is written to in any case.
    """
    with scene(arena, user) as seen, (seen.mount / "known").open("r+b", buffering=0) as opened:
        exchange(seen, user, os.mkfifo)
        if WITH_EXTENSION:
            with pytest.raises(OSError) as caught:
                opened.write(b"written")
            assert caught.value.errno == errno.ESTALE
        else:
            opened.write(b"written")
            assert (seen.aside / "old").read_bytes() == b"written"
