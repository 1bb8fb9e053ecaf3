"""Random changes in a ranch and in a plain copy of the same tree: once collected, the union shows what the copy holds.

The lower belongs to root, and the ranch consists of links; or it holds files with several names, and the ranch of
private copies. Some collectings are killed at a random change and finished by `doctor --repair`. The number of a failed
example is in the message: the same number does the same.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.linux import syscalls
from tests.engines.ranching import Facts, forked, is_link, of_directory, of_union, raw, run_until_killed
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Link, Name, Node, Symlink, build
from tests.support.user import OTHER_GROUP

pytestmark = [pytest.mark.actors("user", "denied", "userns", "lone"), pytest.mark.limit(600)]

EXAMPLES = 400 if os.environ.get("FUSEUNION_STRESS") else 12

PLAIN: dict[Name, Node] = {
    "a": File(b"a", mode=0o644, xattrs={"user.mine": b"value"}),
    "b": File(b"b", mode=0o444),
    "run": File(b"run", mode=0o4755),
    "link": Symlink(target="a"),
    "fifo": Device(mode=0o644),
    "d/a": File(b"d/a", mode=0o644),
    "d/b": File(b"d/b", mode=0o604),
    "d/e/a": File(b"d/e/a", mode=0o644),
    "d/e/b": File(b"d/e/b", mode=0o755),
    "d/e/f": Dir(mode=0o755),
    "shared": Dir(mode=0o2755, gid=OTHER_GROUP),
    "shared/a": File(b"shared", mode=0o644, gid=OTHER_GROUP),
    "read-only": Dir(mode=0o555),
    "read-only/a": File(b"read-only", mode=0o644),
}
SEVERAL: dict[Name, Node] = {
    "a": File(b"several", mode=0o644),
    "b": Link(target="a"),
    "d/a": Link(target="a"),
    "d/b": File(b"two", mode=0o444, xattrs={"user.mine": b"value"}),
    "d/e/a": Link(target="d/b"),
    "d/e/b": File(b"single", mode=0o755),
    "link": Symlink(target="a"),
    "d/link": Link(target="link"),
    "fifo": Device(mode=0o644),
    "d/e/fifo": Link(target="fifo"),
    "e": Dir(mode=0o755),
}
NAMES = ("a", "b", "c", "d", "e", "link")


class Both:
    """A ranch and a plain copy of what it shows, changed in the same way.

    Args:
        options: of the ranch.
    """

    def __init__(self, root: Path, lower: Path, options: list[str], choice: random.Random) -> None:
        self.root, self.lower, self.options, self.choice = root, lower, options, choice
        self.merged, self.plain, self.upper = root / "merged", root / "plain", root / "upper"
        self.merged.mkdir(parents=True)
        _copy(lower, self.plain)
        # The root shows the attributes of UPPER.
        self.upper.mkdir()
        shutil.copystat(self.plain, self.upper)
        self.before = of_directory(self.plain)
        self.log: list[str] = []

    # -- the ranch -------------------------------------------------------------------------------------------------

    def run(self, *arguments: str | Path, code: int = 0) -> None:
        self.log.append(" ".join(str(argument) for argument in arguments))
        done = forked(*arguments)
        assert done == code, f"{arguments}: {done}"

    def make(self) -> None:
        self.run("--engine", "ranch", *self.options, self.lower, self.upper, self.merged)

    def sync(self) -> None:
        """Collecting a second time changes nothing."""
        self.run("sync", self.merged)
        self.check()
        before = raw(self.upper)
        self.run("sync", self.merged)
        assert raw(self.upper) == before, "the second sync changed UPPER"

    def umount(self) -> None:
        """Take the ranch down, perhaps after a try that was killed."""
        if self.choice.random() < 0.3:
            number = self.choice.randrange(60)
            self.log.append(f"kill umount before its change {number}")
            if not run_until_killed(number, "umount", self.merged):
                self.run("doctor", "--repair", self.upper)
        if (self.root / ".upper.fuseunion-ranch").exists():
            self.run("umount", self.merged)
        self.check()

    def check(self) -> None:
        """The union shows the plain copy."""
        wrong = _compare(of_directory(self.plain), of_union(self.lower, self.upper), self.before)
        assert not wrong, "\n".join(wrong)

    # -- changes ---------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """One random change."""
        name, make = self.choice.choice(CHANGES)
        step = make(self)
        if step is None:
            return
        answers = []
        for root in (self.plain, self.merged):
            try:
                step(root)
                answers.append("done")
            except OSError as error:
                answers.append(os.strerror(error.errno or 0))
        self.log.append(f"{name}: {answers[0]}")
        assert answers[0] == answers[1], f"{name}: the ranch says {answers[1]}, a plain directory {answers[0]}"

    def paths(self, *kinds: Callable[[int], bool]) -> list[str]:
        """What there is now of some kinds, from the root; what its owner closed is left out."""
        found = []
        for directory, directories, files in os.walk(self.plain):
            for name in [*directories, *files]:
                path = os.path.join(directory, name)
                with contextlib.suppress(PermissionError):
                    if any(kind(os.lstat(path).st_mode) for kind in kinds):
                        found.append(os.path.relpath(path, self.plain))
        return sorted(found)

    def pick(self, *kinds: Callable[[int], bool]) -> str | None:
        found = self.paths(*kinds)
        path = self.choice.choice(found) if found else None
        self.log.append(f"  {path}")
        return path

    def place(self) -> str:
        """A name somewhere, which may be taken."""
        directory = self.choice.choice(["", *self.paths(stat.S_ISDIR)])
        path = os.path.join(directory, self.choice.choice(NAMES))
        self.log.append(f"  {path}")
        return path

    def private(self, *kinds: Callable[[int], bool]) -> str | None:
        """Something that can be changed in place: a file of the lower is promoted for it."""
        path = self.pick(*kinds)
        if path is None:
            return None
        with contextlib.suppress(PermissionError):
            if is_link(self.merged / path):
                if os.lstat(self.merged / path).st_nlink > 1:
                    return None  # promote makes a file of its own of it (docs/engines.md)
                self.run("promote", self.merged, path)
        return path


Step = Callable[[Path], object]
CHANGES: list[tuple[str, Callable[[Both], Step | None]]] = []


def change(function: Callable[[Both], Step | None]) -> Callable[[Both], Step | None]:
    CHANGES.append((function.__name__, function))
    return function


@change
def write(both: Both) -> Step | None:
    path, text = both.private(stat.S_ISREG), str(both.choice.random())
    return None if path is None else lambda root: (root / path).write_text(text)


@change
def create(both: Both) -> Step:
    path = both.place()
    return lambda root: os.close(os.open(root / path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


@change
def replace(both: Both) -> Step:
    path, text = both.place(), str(both.choice.random())

    def step(root: Path) -> None:
        new = root / "new"
        new.write_text(text)
        try:
            os.replace(new, root / path)
        except OSError:
            new.unlink()
            raise

    return step


@change
def replace_by_an_equal_file(both: Both) -> Step | None:
    path = both.pick(stat.S_ISREG)
    if path is None:
        return None

    def step(root: Path) -> None:
        try:
            shutil.copy2(root / path, root / "new")
            # Through a link, the copy has the bits that only root's file may have.
            (root / "new").chmod(stat.S_IMODE((root / "new").stat().st_mode) & 0o777)
            os.replace(root / "new", root / path)
        except OSError:
            (root / "new").unlink(missing_ok=True)
            raise

    return step


@change
def unlink(both: Both) -> Step | None:
    path = both.pick(lambda mode: not stat.S_ISDIR(mode))
    return None if path is None else lambda root: os.unlink(root / path)


@change
def remove_a_tree(both: Both) -> Step | None:
    path = both.pick(stat.S_ISDIR)
    if path is None:
        return None
    # What cannot be removed whole is removed in the order of the names on disk, which is not the same.
    whole = all(os.access(directory, os.R_OK | os.W_OK | os.X_OK) for directory, *_ in os.walk(both.plain / path))
    return (lambda root: shutil.rmtree(root / path)) if whole else None


@change
def make_directory(both: Both) -> Step:
    path = both.place()
    return lambda root: os.mkdir(root / path)


@change
def a_directory_in_the_place_of_a_file(both: Both) -> Step | None:
    path = both.pick(lambda mode: not stat.S_ISDIR(mode))
    if path is None:
        return None

    def step(root: Path) -> None:
        os.unlink(root / path)
        os.mkdir(root / path)

    return step


@change
def rename(both: Both) -> Step | None:
    path, target = both.pick(lambda mode: True), both.place()
    return None if path is None else lambda root: os.rename(root / path, root / target)


@change
def rename_back(both: Both) -> Step | None:
    """Something to where something was in the beginning."""
    path, target = both.pick(lambda mode: True), both.choice.choice(sorted(both.before)).lstrip("/")
    both.log.append(f"  {target}")
    return None if path is None or not target else lambda root: os.rename(root / path, root / target)


@change
def link(both: Both) -> Step | None:
    path, target = both.pick(lambda mode: not stat.S_ISDIR(mode)), both.place()
    return None if path is None else lambda root: os.link(root / path, root / target, follow_symlinks=False)


@change
def make_symbolic_link(both: Both) -> Step:
    path = both.place()
    return lambda root: os.symlink("target", root / path)


@change
def make_fifo(both: Both) -> Step:
    path = both.place()
    return lambda root: os.mkfifo(root / path, 0o600)


@change
def chmod(both: Both) -> Step | None:
    path = both.private(lambda mode: not stat.S_ISLNK(mode))
    mode = both.choice.choice([0o644, 0o600, 0o4755, 0o2755, 0o1777, 0o444, 0o555, 0o200, 0o000])
    return None if path is None else lambda root: os.chmod(root / path, mode)


@change
def open_up(both: Both) -> Step | None:
    """Much would stay closed otherwise."""
    path = both.pick(stat.S_ISDIR)
    return None if path is None else lambda root: os.chmod(root / path, 0o755)


@change
def touch(both: Both) -> Step | None:
    path, when = both.private(lambda mode: True), both.choice.randrange(10**15)
    return None if path is None else lambda root: os.utime(root / path, ns=(when, when), follow_symlinks=False)


@change
def chown(both: Both) -> Step | None:
    path, (uid, gid) = (
        both.private(lambda mode: True),
        both.choice.choice([(-1, OTHER_GROUP), (5, 7), (-1, os.getegid())]),
    )
    return None if path is None else lambda root: os.chown(root / path, uid, gid, follow_symlinks=False)


@change
def set_attribute(both: Both) -> Step | None:
    path, value = both.private(stat.S_ISREG, stat.S_ISDIR), os.fsencode(str(both.choice.random()))
    return None if path is None else lambda root: os.setxattr(root / path, "user.mine", value)


# -- the plain copy ------------------------------------------------------------------------------------------------


def _given(uid: int, gid: int) -> tuple[int, int]:
    """Whose a copy of something of this owner is, if we make it: ours, but for a group of ours."""
    return (
        uid if uid == os.geteuid() else os.geteuid(),
        gid if gid in {os.getegid(), *os.getgroups()} and gid != 65534 else os.getegid(),
    )


def _without(mode: int, owner: tuple[int, int], given: tuple[int, int]) -> int:
    return mode & ~((owner[0] != given[0]) * stat.S_ISUID | (owner[1] != given[1]) * stat.S_ISGID)


def _copy(source: Path, target: Path) -> None:
    """Copy a tree as a user without privileges can."""
    first: dict[tuple[int, int], Path] = {}
    pending = [(source, target)]
    made = []
    while pending:
        old, new = pending.pop()
        st = os.lstat(old)
        if (st.st_dev, st.st_ino) in first:
            os.link(first[st.st_dev, st.st_ino], new, follow_symlinks=False)
            continue
        if stat.S_ISDIR(st.st_mode):
            new.mkdir()
            pending += [(old / name, new / name) for name in os.listdir(old)]
        elif stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(old), new)
        elif stat.S_ISREG(st.st_mode):
            shutil.copyfile(old, new)
        else:
            os.mkfifo(new)
        if not stat.S_ISDIR(st.st_mode):
            first[st.st_dev, st.st_ino] = new
        made.append((old, new, st))
    for old, new, st in reversed(made):
        if not stat.S_ISLNK(st.st_mode):
            for name in os.listxattr(old):
                os.setxattr(new, name, os.getxattr(old, name))
        owner = (st.st_uid, st.st_gid)
        os.chown(new, *_given(*owner), follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            new.chmod(_without(stat.S_IMODE(st.st_mode), owner, _given(*owner)))
        os.utime(new, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def _compare(plain: dict[str, Facts], union: dict[str, Facts], before: dict[str, Facts]) -> list[str]:
    """What differs, but for what only an owner with privileges could have kept, and for the moment of a change."""
    oldest = max(facts.mtime for facts in before.values()) + 1
    wrong = [f"{path}: only in one of them" for path in sorted(plain.keys() ^ union.keys())]
    for path in sorted(plain.keys() & union.keys()):
        wanted, found = plain[path], union[path]
        owner = (found.uid, found.gid)
        if owner != (wanted.uid, wanted.gid):
            given = _given(*owner)
            found = found._replace(uid=given[0], gid=given[1], mode=_without(found.mode, owner, given))
        if wanted.mtime > oldest and found.mtime > oldest:
            found = found._replace(mtime=wanted.mtime)
        if wanted != found:
            wrong.append(f"{path}: {found}, expected {wanted}")
    return wrong


# -- the tests -----------------------------------------------------------------------------------------------------


@pytest.fixture
def of_root(arena: Arena) -> Path:
    """A lower that is made before the test becomes its actor."""
    return build(arena.root / "of-root", PLAIN)


def _try(arena: Arena, lower: Path, options: list[str]) -> None:
    # Nothing here survives a power failure, and waiting for the disk would take most of the time.
    os.fsync = syscalls.syncfs = lambda fd: None
    for number in range(EXAMPLES):
        with _example(arena, lower, options, number) as both:
            for _ in range(both.choice.randrange(1, 4)):
                both.make()
                for _ in range(both.choice.randrange(12)):
                    both.change()
                    if both.choice.random() < 0.1:
                        both.sync()
                both.umount()


@contextlib.contextmanager
def _example(arena: Arena, lower: Path, options: list[str], number: int) -> Iterator[Both]:
    root = arena.root / f"example{number}"
    both = Both(root, lower, options, random.Random(number))
    try:
        yield both
    except BaseException as error:
        error.add_note(f"example {number}:\n" + "\n".join(both.log))
        raise
    subprocess.run(["chmod", "-R", "u+rwX", root], check=True)
    subprocess.run(["rm", "-r", root], check=True)


@pytest.mark.root
def test_over_a_lower_of_root(arena: Arena, of_root: Path) -> None:
    arena.guard(of_root)
    _try(arena, of_root, [])


def test_over_a_lower_with_hard_links(arena: Arena) -> None:
    _try(arena, arena.lower(SEVERAL), ["--copy", "*"])
