"""New objects: owner, mode, umask, set-group-id directories, default ACLs. A plain directory decides."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import acl
from tests.support.arena import Arena
from tests.support.identity import acting_as, umask
from tests.support.layers import Dir, File, Name, Node
from tests.support.twin import Twin

CREATIONS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)),
    "open-setuid": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o6777)),
    "mkdir": lambda path: os.mkdir(path, 0o777),
    "mkdir-sticky": lambda path: os.mkdir(path, 0o1770),
    "fifo": lambda path: os.mkfifo(path, 0o666),
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o664),
    "symlink": lambda path: os.symlink("target", path),
}

DEFAULT_ACL = acl.with_named_user(1001, 6, group=5, other=4)


def _create_all(directory: Path, mask: int) -> None:
    with umask(mask):
        for name, creation in CREATIONS.items():
            creation(directory / f"{name}-{mask:o}")


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def test_mode_and_umask(arena: Arena) -> None:
    """The umask applies, in lower and in new directories, and where a deleted name is taken again."""
    description: dict[Name, Node] = {"lower": Dir(mode=0o777)}
    for name in CREATIONS:
        for mask in (0o000, 0o027, 0o077):
            description[f"again/{name}-{mask:o}"] = File(b"old")
    lower = arena.lower(description)
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: (root / "new").mkdir())
        twin.both(lambda root: _empty(root / "again"))
        for directory in ("lower", "new", "again"):
            for mask in (0o000, 0o027, 0o077):
                twin.both(lambda root, d=directory, m=mask: _create_all(root / d, m))  # type: ignore[misc]
        twin.remount()


@pytest.mark.actors("root", "userns")
def test_owner_and_set_group_id_directories(arena: Arena) -> None:
    """Owner and group are the caller's, or the directory's group under set-group-id, which directories hand on."""
    lower = arena.lower(
        {
            "open": Dir(mode=0o777),
            "setgid": Dir(mode=0o2777, gid=1001),
            "setgid-other": Dir(mode=0o2777, gid=1000),
            "again/x": File(),
            "again": Dir(mode=0o2777, gid=1001),
        }
    )
    with arena.mount(lower, options=["allow_other"]) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: (root / "again/x").unlink())

        def create(root: Path) -> None:
            for uid in (0, 1000):
                with acting_as(uid, 0o022):
                    for directory in ("open", "setgid", "setgid-other"):
                        for name, creation in CREATIONS.items():
                            creation(root / directory / f"{name}-{uid}")
                        (root / directory / f"mkdir-{uid}" / "inner").mkdir()
            with acting_as(1000, 0o002):
                (root / "again/x").mkdir()

        twin.both(create)
        twin.remount()


@pytest.mark.actors("root", "userns")
def test_default_acl(arena: Arena) -> None:
    """A default ACL replaces the umask and is inherited, from lower, copied and new directories."""
    attributes = {acl.DEFAULT: DEFAULT_ACL}
    lower = arena.lower(
        {"lower": Dir(xattrs=attributes), "copied/x": File(), "copied": Dir(xattrs=attributes, mode=0o2775, gid=1001)}
    )
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: (root / "new").mkdir())
        twin.both(lambda root: os.setxattr(root / "new", acl.DEFAULT, DEFAULT_ACL))
        twin.both(lambda root: (root / "copied/x").unlink())
        twin.both(lambda root: (root / "copied/x").mkdir())
        for directory in ("lower", "copied", "copied/x", "new"):
            for mask in (0o000, 0o077):
                twin.both(lambda root, d=directory, m=mask: _create_all(root / d, m))  # type: ignore[misc]
        twin.both(lambda root: _create_all(root / "lower/mkdir-0", 0o022))
        twin.remount()


@pytest.mark.actors("root", "userns")
def test_access_acl(arena: Arena) -> None:
    """An access ACL grants and denies, follows chmod, and survives copy-up and remount."""
    lower = arena.lower({"f": File(b"x", mode=0o600), "g": File(b"x", xattrs={acl.ACCESS: acl.with_named_user(1000)})})
    with arena.mount(lower, options=["allow_other"]) as mount:
        twin = Twin(arena, mount)

        def read_as_other(root: Path) -> list[str]:
            answers = []
            for name in ("f", "g"):
                try:
                    with acting_as(1000):
                        answers.append((root / name).read_text())
                except PermissionError:
                    answers.append("denied")
            return answers

        assert twin.both(read_as_other) == ["denied", "x"]
        twin.both(lambda root: os.setxattr(root / "f", acl.ACCESS, acl.with_named_user(1000, 4)))
        assert twin.both(read_as_other) == ["x", "x"]
        twin.both(lambda root: (root / "g").chmod(0o700))
        assert twin.both(read_as_other) == ["x", "denied"]
        twin.both(lambda root: os.removexattr(root / "f", acl.ACCESS))
        twin.both(read_as_other)
        twin.both(lambda root: os.setxattr(root / "f", acl.ACCESS, acl.encode(*MINIMAL)))
        twin.remount()


MINIMAL = (acl.Rule(acl.Tag.USER_OBJ, 6), acl.Rule(acl.Tag.GROUP_OBJ, 4), acl.Rule(acl.Tag.OTHER, 0))
