"""The owner of a layer puts other directories in the place of those that root's daemon knows: nothing happens in them.

The daemon forgets the descriptors of directories that were not used for long: it is given few, and others are used. The
directory belongs to one user, the layer to a second, and root serves. Where the daemon answers ESTALE, the kernel looks
the path up once more (retry_estale, include/linux/namei.h), so that who asked may meet what is there by its own
permissions: here they let nobody in.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import tree
from tests.support.arena import Arena
from tests.support.identity import acting_as
from tests.support.interpreter import Interpreter
from tests.support.mounts import FuseunionMount
from tests.support.product import WITH_EXTENSION
from tests.support.user import User

pytestmark = [pytest.mark.actors("root"), pytest.mark.limit(40)]

CALLER = 1000
LIMIT = 256
OTHERS = LIMIT // 2 + 10
"""Directories that do not all fit into the daemon's cache (core/disk/descriptors.py)."""

REFUSED = frozenset({errno.ESTALE, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EPERM})


class Scene(NamedTuple):
    """A mount of root's over layers of the user's; `known` in one of them is the caller's, and to be exchanged."""

    mount: FuseunionMount
    layer: Path
    foreign: Path
    user: User

    def forget(self) -> None:
        """Let the daemon use so many other directories that it closes the descriptor of the known one."""
        for number in range(OTHERS):
            os.listdir(self.mount / f"others/{number}")

    def exchange(self, make: Callable[[Path], object]) -> tree.Tree:
        """As the owner of the layer, put what `make` makes in the place of the known directory; how that looks."""
        self.forget()
        with acting_as(self.user.uid, umask=0o077):
            os.rename(self.layer / "known", self.layer / "old")
            make(self.layer)
        return self.look()

    def look(self) -> dict[bytes, tree.Entry]:
        """All that belongs to others than the caller."""
        seen = dict(tree.snapshot(self.foreign))
        if (self.layer / "known").is_dir():
            seen |= {b"known/" + path: entry for path, entry in tree.snapshot(self.layer / "known").items()}
        return seen

    def check(self, before: tree.Tree) -> None:
        """It is as it was, and the mount lives."""
        changed = tree.differences(before, self.look(), tree.EXACT)
        assert not changed, "what was put there changed:\n  " + "\n  ".join(changed)
        assert (self.mount / "other").read_bytes() == b"other"


class _Limited(Interpreter):
    """Gives the product few descriptors."""

    def command(self, *arguments: str) -> list[str]:
        return ["prlimit", f"--nofile={LIMIT}:{LIMIT}", *Interpreter.command(self, *arguments)]


def _fill(path: Path, owner: int, mode: int) -> None:
    path.mkdir()
    for name in ("file", "second"):
        (path / name).write_text(f"{name} of {owner}")
        os.chown(path / name, owner, owner)
    (path / "empty").mkdir()
    for made in (path / "empty", path):
        os.chown(made, owner, owner)
    path.chmod(mode)


@contextmanager
def scene(arena: Arena, user: User, where: str) -> Iterator[Scene]:
    upper, lower, foreign = (arena.directory(f"deep/{name}") for name in ("upper", "lower", "foreign"))
    layer = upper if where == "upper" else lower
    _fill(layer / "known", CALLER, 0o755)
    _fill(layer / "secret", 0, 0o700)  # root's, in a directory of the user's
    _fill(foreign / "directory", 0, 0o700)
    (lower / "other").write_text("other")
    for number in range(OTHERS):
        (lower / f"others/{number}").mkdir(parents=True)
    os.chown(layer, user.uid, user.gid)
    mount = arena.mount(lower, upper=upper, work=arena.directory("deep/work"))
    usual = mount.place.interpreter
    mount.place = replace(mount.place, interpreter=_Limited(usual.executable, usual.python_path))
    with mount:
        for name in ("known/file", "known/second", "known/empty"):
            (mount / name).stat()
        yield Scene(mount, layer, foreign, user)


MAKERS: dict[str, Callable[[Path], object]] = {
    "its own": lambda layer: _fill(layer / "known", os.geteuid(), 0o700),
    "root's": lambda layer: os.rename(layer / "secret", layer / "known"),
    "link": lambda layer: (layer / "known").symlink_to("../foreign/directory"),
    "fifo": lambda layer: os.mkfifo(layer / "known"),
    "nothing": lambda layer: None,
}

CALLS: dict[str, Callable[[Path], object]] = {
    "create": lambda known: (known / "new").write_text("new"),
    "mkdir": lambda known: (known / "new").mkdir(),
    "symlink": lambda known: (known / "new").symlink_to("file"),
    "link": lambda known: os.link(known / "file", known / "new"),
    "unlink": lambda known: (known / "file").unlink(),
    "rmdir": lambda known: (known / "empty").rmdir(),
    "rename": lambda known: (known / "file").rename(known / "new"),
    "rename over": lambda known: (known / "file").rename(known / "second"),
    "write": lambda known: (known / "file").write_text("written"),
    "chmod of a file": lambda known: (known / "file").chmod(0o666),
    "chmod": lambda known: known.chmod(0o777),
    "utimes": lambda known: os.utime(known, (1, 1)),
    "setxattr": lambda known: os.setxattr(known, "user.new", b"new"),
    "list": os.listdir,
    "read": lambda known: (known / "file").read_bytes(),
}


@pytest.mark.parametrize("where", ["upper", "lower"])
@pytest.mark.parametrize("made", MAKERS)
def test_nothing_happens_in_another_directory(arena: Arena, user: User, made: str, where: str) -> None:
    """A user of the mount could unlink, create and change in a directory that is closed to that user."""
    with scene(arena, user, where) as seen:
        before = seen.exchange(MAKERS[made])
        for name, call in CALLS.items():
            with acting_as(CALLER):
                try:
                    call(seen.mount / "known")
                except OSError as error:
                    code = error.errno
                else:
                    code = 0
            assert code in REFUSED, f"{name}: {errno.errorcode.get(code, 'done')}"
            seen.check(before)


@pytest.mark.parametrize(
    ("call", "where"), [(call, "upper") for call in CALLS] + [(call, "lower") for call in ("list", "read", "write")]
)
def test_the_first_call_meets_it(arena: Arena, user: User, call: str, where: str) -> None:
    """Each kind of call is the one that finds out. Here what was put there is root's."""
    with scene(arena, user, where) as seen:
        before = seen.exchange(MAKERS["root's"])
        with acting_as(CALLER), pytest.raises(OSError) as caught:
            CALLS[call](seen.mount / "known")
        assert caught.value.errno in REFUSED
        seen.check(before)


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_who_looks_again_finds_what_is_there(arena: Arena, user: User, where: str) -> None:
    """The mount does not go on answering ESTALE; what a program has open is what it opened."""
    with scene(arena, user, where) as seen:
        held = os.open(seen.mount / "known", os.O_RDONLY | os.O_DIRECTORY)
        try:
            seen.exchange(MAKERS["its own"])
            if WITH_EXTENSION:  # the kernel opens directories without asking, so a listing is the first that is refused
                with pytest.raises(OSError) as caught:
                    os.listdir(seen.mount / "known")
                assert caught.value.errno == errno.ESTALE
            assert sorted(os.listdir(seen.mount / "known")) == ["empty", "file", "second"]
            st = (seen.mount / "known").stat()
            assert (st.st_uid, st.st_mode & 0o777) == (user.uid, 0o700)
            assert (seen.mount / "known/file").read_text() == f"file of {user.uid}"
            (seen.mount / "known/new").write_text("new")
            assert (seen.mount / "known/new").read_text() == "new"
            if where == "upper":
                assert (seen.layer / "known/new").read_text() == "new"
            with pytest.raises(OSError) as caught:
                os.open("not yet seen", os.O_RDONLY, dir_fd=held)
            assert caught.value.errno == errno.ESTALE
        finally:
            os.close(held)
