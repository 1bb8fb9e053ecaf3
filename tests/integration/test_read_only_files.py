"""Files that their owner may not write: the owner may chmod, touch, move, link and delete them all the same.

For root nothing is read-only, so what matters here runs as an ordinary user, on files of that user.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import acl
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Link, Name, Node, Symlink, build
from tests.support.twin import Twin

MODES = (0o400, 0o444, 0o555, 0o4555, 0o2544)
UNREADABLE = (0o000, 0o200, 0o111)

STEPS: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o640),
    "chmod to less": lambda path: path.chmod(0o000),
    "touch": lambda path: os.utime(path, ns=(1, 2)),
    "rename": lambda path: path.rename(path.with_name("moved")),
    "rename to another directory": lambda path: path.rename(path.parent.parent / "moved"),
    "link": lambda path: os.link(path, path.with_name("second")),
    "unlink": lambda path: path.unlink(),
    "chown to the same owner": lambda path: os.chown(path, os.geteuid(), os.getegid()),
    "setfacl": lambda path: os.setxattr(path, acl.ACCESS, acl.with_named_user(os.geteuid(), owner=4)),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.kept"),
    "open for writing": lambda path: path.write_bytes(b"changed"),
    "open to truncate": lambda path: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
    "truncate": lambda path: os.truncate(path, 1),
    "read": lambda path: path.read_bytes(),
    "replace": lambda path: (path.parent / "other").rename(path),
}


def _description(modes: tuple[int, ...]) -> dict[Name, Node]:
    described: dict[Name, Node] = {}
    for mode in modes:
        for step in STEPS:
            name = f"{mode:o}/{step}"
            # What nobody can read is closed later: a copy cannot be made of it.
            made = mode if mode & 0o400 else 0o600
            described[f"{name}/file"] = File(b"contents", mode=made, xattrs={"user.kept": b"kept"})
            described[f"{name}/other"] = File(b"other", mode=mode if mode & 0o400 else 0o600)
    return described


def _use(root: Path, mode: int) -> list[tuple[str, str]]:
    """What each step answers."""
    answers = []
    for name, step in STEPS.items():
        path = root / f"{mode:o}" / name / "file"
        if not mode & 0o400:
            path.chmod(mode)
        try:
            result = step(path)
            answers.append((name, f"done {result!r}" if isinstance(result, bytes) else "done"))
        except OSError as error:
            answers.append((name, os.strerror(error.errno or 0)))
    return answers


@pytest.mark.parametrize("place", ["lower", "upper"])
def test_what_the_owner_may_do(arena: Arena, place: str) -> None:
    """Every step answers as on a plain directory, on a file of a lower and of the upper."""
    lower = arena.lower(_description(MODES) if place == "lower" else {})
    if place == "upper":
        build(arena.upper, _description(MODES + UNREADABLE))
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        for mode in MODES if place == "lower" else MODES + UNREADABLE:
            twin.both(lambda root, m=mode: _use(root, m))  # type: ignore[misc]
        twin.remount()


def test_an_acl_that_closes_the_file_to_its_owner(arena: Arena) -> None:
    """The attributes of a lower file are copied although its ACL forbids its owner to write."""
    closed = acl.with_named_user(os.geteuid(), owner=4)
    attributes = {"user.a": b"1", "user.z": b"2", acl.ACCESS: closed}
    lower = arena.lower(
        {
            "file": File(b"contents", xattrs=attributes),
            "directory": Dir(xattrs={"user.a": b"1", acl.ACCESS: acl.with_named_user(os.geteuid(), owner=5)}),
            "directory/file": File(b"x"),
        }
    )
    with arena.mount(lower) as mount:
        os.utime(mount / "file", ns=(1, 1))
        assert {name: os.getxattr(mount / "file", name) for name in attributes} == attributes
        (mount / "directory").chmod(0o700)
        assert os.getxattr(mount / "directory", "user.a") == b"1"
        assert (mount / "directory" / "file").read_bytes() == b"x"


def test_names_and_special_files(arena: Arena) -> None:
    """Several names of a read-only file, links, fifos and sockets keep their numbers when they are moved."""
    lower = arena.lower(
        {
            "a": File(b"linked", mode=0o444),
            "d/b": Link("a"),
            "d/link": Symlink("b"),
            "d/fifo": Device(mode=0o400, kind=stat.S_IFIFO),
            "d/socket": Device(mode=0o000, kind=stat.S_IFSOCK),
            "d/sub/f": File(b"f", mode=0o400),
            "e": Dir(mode=0o555),
        }
    )
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        numbers = {name: os.lstat(mount / name).st_ino for name in ("a", "d/link", "d/fifo", "d/socket", "d/sub/f")}
        twin.both(lambda root: os.utime(root / "a", ns=(1, 1)))
        twin.both(lambda root: (root / "d/fifo").chmod(0o000))
        twin.both(lambda root: os.utime(root / "d/link", ns=(1, 1), follow_symlinks=False))
        twin.both(lambda root: (root / "d").rename(root / "moved"))
        twin.both(lambda root: (root / "e").rename(root / "moved" / "e"))
        twin.remount()
        for name, number in numbers.items():
            assert os.lstat(mount / name.replace("d/", "moved/")).st_ino == number, name
        assert os.lstat(mount / "moved/b").st_ino == numbers["a"]


def test_mkdir_of_a_closed_directory_over_a_whiteout(arena: Arena) -> None:
    """A directory that is made without write permission hides the deleted one of the lower."""
    modes = (0o555, 0o500, 0o000, 0o700)
    lower = arena.lower({f"{mode:o}/old": File(b"old") for mode in modes} | {f"file{mode:o}": File() for mode in modes})
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        for mode in modes:
            for name in (f"{mode:o}", f"file{mode:o}"):
                twin.both(lambda root, n=name: _remove(root / n))  # type: ignore[misc]
                twin.both(lambda root, n=name, m=mode: (root / n).mkdir(m))  # type: ignore[misc]
        twin.remount()
        for mode in modes:
            twin.both(lambda root, n=f"{mode:o}": (root / n).chmod(0o755))  # type: ignore[misc]
        twin.remount()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_a_git_checkout_can_be_moved(arena: Arena) -> None:
    """The objects of a git repository are read-only."""
    lower = arena.directory("lower")

    def git(directory: Path, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*", "-C", directory, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    repository = lower / "repository"
    repository.mkdir()
    git(repository, "init", "--quiet")
    (repository / "file").write_text("contents")
    git(repository, "add", "file")
    git(repository, "commit", "--quiet", "--message", "first")
    arena.guard(lower)
    with arena.mount(lower) as mount:
        (mount / "repository").rename(mount / "moved")
        git(mount / "moved", "fsck", "--strict")
        assert git(mount / "moved", "status", "--porcelain") == ""
        (mount / "moved" / "file").write_text("changed")
        git(mount / "moved", "commit", "--quiet", "--all", "--message", "second")
        git(mount / "moved", "gc", "--quiet")
        assert len(git(mount / "moved", "log", "--oneline").splitlines()) == 2
