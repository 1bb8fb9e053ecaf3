"""System calls of the daemon fail at random while programs work on the mount; each program keeps its own books.

A program has a directory of its own, knows what must be in it, and checks each answer: a call may fail with an error
that a disk, a quota or a limit gives, and then nothing has happened; but whatever is answered must be true. A name is
missing only when it is not there, a listing is whole, a file reads as it was written last. Afterwards, without errors:
what the live mount shows is what the books say, what the next mount shows, and what the kernel's overlayfs shows.

`FUSEUNION_SEED=N make test ARGS="-k random_errors"` repeats the operations and the dice of the faults, as far as the
scheduler lets it. FUSEUNION_STRESS=1 runs more rounds with more programs.
"""

from __future__ import annotations

import collections
import errno
import itertools
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.faulty_daemon import INJECTED, TOLERATED, Faults, without_times
from tests.support.layers import Dir, File, Link, Name, Node
from tests.support.mounts import FuseunionMount

LONG = bool(os.environ.get(STRESS_VARIABLE))
ROUNDS, PROGRAMS, STEPS = (8, 6, 800) if LONG else (2, 3, 150)
SEED = int(os.environ.get("FUSEUNION_SEED", random.SystemRandom().randrange(1 << 30)))

GAP = 150
"""Calls between two that fail: whatever an operation has begun can be taken back."""

NAMES = ("a", "b", "c", "d", "e")
DIRECTORIES = ("", "low", "low/deep", "b", "low/c")


@dataclass
class Thing:
    """An object that a program knows."""

    kind: str
    content: bytes = b""
    mode: int = 0o644
    attribute: bytes | None = None
    children: dict[str, Thing] = field(default_factory=dict)


def _lower() -> dict[Name, Node]:
    found: dict[Name, Node] = {}
    for program in range(PROGRAMS):
        for path, thing in _walk(_at_first(program), f"p{program}"):
            known = found.get(path.rpartition("/")[0])
            assert known is None or isinstance(known, Dir)
            found[path] = Dir(mode=thing.mode) if thing.kind == "dir" else File(thing.content, mode=thing.mode)
        found[f"p{program}/low/e"] = Link(f"p{program}/low/d")
    return found


def _at_first(program: int) -> Thing:
    """The directory of a program as the lower has it."""
    top = Thing("dir", mode=0o755)
    low = top.children["low"] = Thing("dir", mode=0o755)
    deep = low.children["deep"] = Thing("dir", mode=0o755)
    for directory in (top, low, deep):
        for name in NAMES[:3]:
            size = program * 100 + len(name) * 7000 + len(directory.children) * 30_000
            directory.children[name] = Thing("file", name.encode() * size)
    low.children["d"] = low.children["e"] = Thing("file", b"linked" * 3000)
    return top


def _walk(thing: Thing, path: str) -> list[tuple[str, Thing]]:
    found = [(path, thing)]
    for name, child in thing.children.items():
        found += _walk(child, f"{path}/{name}")
    return found


class _Program:
    """One program and its books."""

    def __init__(self, top: Path, number: int) -> None:
        self.root = top / f"p{number}"
        self.books = _at_first(number)
        self.rng = random.Random(f"{SEED} {number}")
        self.answers: collections.Counter[str] = collections.Counter()
        self.history: collections.deque[str] = collections.deque(maxlen=40)
        self.numbers = itertools.count()

    def _ask(self, what: str, call: Callable[[], object], expected: int = 0) -> tuple[bool, object]:
        """Make a call.

        :param expected: the errno that is the true answer, 0 for none
        :returns: whether it was done, and its value
        """
        try:
            value = call()
        except OSError as error:
            code = error.errno or 0
            self.history.append(f"{what}: {errno.errorcode[code]}")
            if code != expected and code not in INJECTED:
                raise AssertionError(self._fault(what, error, expected)) from error
            self.answers[errno.errorcode[code]] += 1
            return False, None
        self.history.append(f"{what}: done")
        assert not expected, self._fault(what, value, expected)
        self.answers["done"] += 1
        return True, value

    def _fault(self, what: str, got: object, expected: object) -> str:
        before = "\n  ".join(self.history)
        return f"{what} answered {repr(got)[:200]}, not {repr(expected)[:200]}; before that:\n  {before}"

    def _pick(self) -> tuple[str, Thing | None, int]:
        """A path, its parent, if that is a directory, and the errno of reaching it."""
        directory, name = self.rng.choice(DIRECTORIES), self.rng.choice(NAMES)
        thing: Thing = self.books
        for part in directory.split("/") if directory else ():
            if part not in thing.children:
                return f"{directory}/{name}", None, errno.ENOENT
            thing = thing.children[part]
            if thing.kind != "dir":
                missing = thing.kind == "symlink"  # which leads nowhere
                return f"{directory}/{name}", None, errno.ENOENT if missing else errno.ENOTDIR
        return (f"{directory}/{name}" if directory else name), thing, 0

    def step(self) -> None:
        """Do something."""
        path, parent, code = self._pick()
        name = path.rpartition("/")[2]
        thing = parent.children.get(name) if parent is not None else None
        full = self.root / path
        if parent is None or (thing is None and self.rng.random() < 0.2):
            self._ask(f"stat {path}", full.lstat, code or errno.ENOENT)
        elif thing is None:
            self._make(path, full, parent, name)
        elif self.rng.random() < 0.15:
            self._move(path, full, parent, name, thing)
        elif thing.kind == "dir":
            self._with_directory(path, full, parent, name, thing)
        else:
            self._with_file(path, full, parent, name, thing)

    def _make(self, path: str, full: Path, parent: Thing, name: str) -> None:
        pick = self.rng.random()
        if pick < 0.5:
            done, fd = self._ask(f"create {path}", lambda: os.open(full, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
            if done:
                thing = parent.children[name] = Thing("file")
                assert isinstance(fd, int)
                self._write(path, fd, thing)
        elif pick < 0.8:
            if self._ask(f"mkdir {path}", lambda: os.mkdir(full, 0o755))[0]:
                parent.children[name] = Thing("dir", mode=0o755)
        elif self._ask(f"symlink {path}", lambda: os.symlink("target", full))[0]:
            parent.children[name] = Thing("symlink", b"target", 0o777)

    def _write(self, path: str, fd: int, thing: Thing) -> None:
        """Write over the beginning of a file; closes it."""
        rng = self.rng
        try:
            data = b"%d of %s;" % (next(self.numbers), path.encode()) * rng.choice((1, 50, 2000))
            done, count = self._ask(f"write {path} {len(data)}", lambda: os.pwrite(fd, data, 0))
            if done:
                assert isinstance(count, int) and 0 < count <= len(data)
                thing.content = data[:count] + thing.content[count:]
            if rng.random() < 0.3:
                self._ask(f"fsync {path}", lambda: os.fsync(fd))
            done, seen = self._ask(f"read back {path}", lambda: os.pread(fd, 1 << 20, 0))
            assert not done or self._is_part(seen, thing), self._fault(f"read back {path}", seen, thing.content)
        finally:
            os.close(fd)

    @staticmethod
    def _is_part(seen: object, thing: Thing) -> bool:
        """read(2) may stop early: where a page could not be read."""
        return isinstance(seen, bytes) and thing.content.startswith(seen) and bool(seen or not thing.content)

    def _with_file(self, path: str, full: Path, parent: Thing, name: str, thing: Thing) -> None:
        rng = self.rng
        pick = rng.random()
        if thing.kind == "symlink" and pick < 0.8:
            done, seen = self._ask(f"readlink {path}", lambda: os.readlink(full))
            assert not done or seen == "target", self._fault(f"readlink {path}", seen, "target")
        elif pick < 0.25 and thing.kind == "file":
            done, fd = self._ask(f"open {path}", lambda: os.open(full, os.O_RDWR))
            if done:
                assert isinstance(fd, int)
                self._write(path, fd, thing)
        elif pick < 0.45:
            self._look(path, full, thing)
        elif pick < 0.55:
            size = rng.choice((0, 10, 5000))
            if self._ask(f"truncate {path} {size}", lambda: os.truncate(full, size))[0]:
                thing.content = thing.content[:size].ljust(size, b"\0")
        elif pick < 0.65:
            mode = rng.choice((0o600, 0o644, 0o755))
            if self._ask(f"chmod {path} {mode:o}", lambda: full.chmod(mode))[0]:
                thing.mode = mode
        elif pick < 0.75:
            value = b"%d" % next(self.numbers)
            if self._ask(f"setxattr {path}", lambda: os.setxattr(full, "user.book", value))[0]:
                thing.attribute = value
        elif pick < 0.85:
            other, other_parent, code = self._pick()
            other_name = other.rpartition("/")[2]
            if other_parent is not None and other_name in other_parent.children:
                code = errno.EEXIST
            if self._ask(f"link {path} {other}", lambda: os.link(full, self.root / other), code)[0]:
                assert other_parent is not None
                other_parent.children[other_name] = thing
        elif self._ask(f"unlink {path}", full.unlink)[0]:
            del parent.children[name]

    def _look(self, path: str, full: Path, thing: Thing) -> None:
        done, st = self._ask(f"stat {path}", full.lstat)
        if done:
            assert isinstance(st, os.stat_result)
            seen, known = (st.st_size, st.st_mode & 0o7777), (len(thing.content), thing.mode)
            assert seen == known, self._fault(f"stat {path}", seen, known)
        if thing.kind == "file":
            done, content = self._ask(f"read {path}", full.read_bytes)
            assert not done or content == thing.content, self._fault(f"read {path}", content, thing.content)
        expected = errno.ENODATA if thing.attribute is None else 0
        if thing.kind == "file":
            done, value = self._ask(f"getxattr {path}", lambda: os.getxattr(full, "user.book"), expected)
            assert not done or value == thing.attribute, self._fault(f"getxattr {path}", value, thing.attribute)

    def _with_directory(self, path: str, full: Path, parent: Thing, name: str, thing: Thing) -> None:
        if self.rng.random() < 0.7:
            done, names = self._ask(f"list {path}", lambda: sorted(os.listdir(full)))
            known = sorted(thing.children)
            assert not done or names == known, self._fault(f"list {path}", names, known)
        elif self._ask(f"rmdir {path}", full.rmdir, errno.ENOTEMPTY if thing.children else 0)[0]:
            del parent.children[name]

    def _move(self, path: str, full: Path, parent: Thing, name: str, thing: Thing) -> None:
        other, other_parent, code = self._pick()
        if other_parent is None or other.startswith(path + "/") or path.startswith(other + "/") or other == path:
            return
        other_name = other.rpartition("/")[2]
        there = other_parent.children.get(other_name)
        if there is not None and there.kind == "dir":
            code = errno.EISDIR if thing.kind != "dir" else errno.ENOTEMPTY if there.children else 0
        elif there is not None and thing.kind == "dir":
            code = errno.ENOTDIR
        if self._ask(f"rename {path} {other}", lambda: full.rename(self.root / other), code)[0] and there is not thing:
            del parent.children[name]
            other_parent.children[other_name] = thing

    def check(self) -> None:
        """Everything is as the books say, now that nothing fails."""
        for path, thing in _walk(self.books, "."):
            full = self.root / path
            if thing.kind == "dir":
                assert sorted(os.listdir(full)) == sorted(thing.children), self._fault(f"list {path}", "", "")
            elif thing.kind == "file":
                seen = full.read_bytes()
                assert seen == thing.content, self._fault(f"read {path}", seen[:100], thing.content[:100])
                attribute = dict(tree.xattrs(os.fsencode(full))).get("user.book")
                assert attribute == thing.attribute, self._fault(f"getxattr {path}", attribute, thing.attribute)
            assert full.lstat().st_mode & 0o7777 == thing.mode, self._fault(f"stat {path}", full.lstat(), thing.mode)


def _start(top: Path, number: int, orders: int, answers: int) -> int:
    """A program that works STEPS steps at each order `w` and checks its books at each `c`; answers with a line."""
    pid = os.fork()
    if pid:
        return pid
    try:
        program = _Program(top, number)
        with open(orders, "rb", buffering=0) as reader:
            while order := reader.read(1):
                try:
                    if order == b"w":
                        for _ in range(STEPS):
                            program.step()
                    else:
                        program.check()
                    line = json.dumps({"counts": program.answers})
                except (AssertionError, OSError) as error:
                    line = json.dumps({"fault": f"program {number}: {type(error).__name__}: {error}"})
                os.write(answers, line.encode() + b"\n")
    finally:
        os._exit(0)


class _Programs:
    """All of them, each at the end of a pipe."""

    def __init__(self, top: Path) -> None:
        self._ends: list[tuple[int, int, int]] = []
        for number in range(PROGRAMS):
            order_reader, order_writer = os.pipe()
            answer_reader, answer_writer = os.pipe()
            os.set_inheritable(order_writer, False)
            pid = _start(top, number, order_reader, answer_writer)
            os.close(order_reader)
            os.close(answer_writer)
            self._ends.append((pid, order_writer, answer_reader))

    def all(self, order: bytes) -> list[dict[str, int]]:
        """Give all an order and wait for the ends of it; returns what each counted."""
        for _, writer, _ in self._ends:
            os.write(writer, order)
        counts = []
        for _, _, reader in self._ends:
            line = b""
            while not line.endswith(b"\n"):
                piece = os.read(reader, 1 << 16)
                assert piece, f"seed {SEED}: a program died"
                line += piece
            answer = json.loads(line)
            assert "fault" not in answer, f"seed {SEED}: {answer['fault'][:6000]}"
            counts.append(answer["counts"])
        return counts

    def end(self) -> None:
        """Stop them."""
        for pid, writer, reader in self._ends:
            os.kill(pid, 9)
            os.close(writer)
            os.close(reader)
            os.waitpid(pid, 0)


@pytest.mark.actors("root", "user")
@pytest.mark.limit(3000.0 if LONG else 120.0)
@pytest.mark.parametrize("timeout", ["1e9", "0"], ids=["remembered", "asked"])
def test_random_errors(arena: Arena, timeout: str) -> None:
    lower = arena.lower(_lower())
    faults = Faults(arena.directory("faults"), SEED)
    rng = random.Random(SEED)
    place = faults.place(arena.place)
    mount = FuseunionMount(
        place,
        [lower],
        arena.upper,
        arena.directory("merged"),
        (),
        ["--timeout", timeout],
        tolerated=TOLERATED,
        faulty=True,
    )
    mount.start()
    programs = _Programs(mount.merged)
    try:
        for number in range(ROUNDS):
            rate = rng.choice((0.002, 0.01, 0.04, 0.15))
            faults.begin(rate, GAP)
            counts = programs.all(b"w")
            faults.end()
            programs.all(b"c")
            before = tree.snapshot(mount.merged)
            if number == ROUNDS - 1 or rng.random() < 0.3:
                mount.stop()
                mount.start()
                _agree(
                    before, tree.snapshot(mount.merged), f"seed {SEED}, round {number}, rate {rate}: after a remount"
                )
                programs.all(b"c")
        mount.stop()
    except BaseException as error:
        faults.end()
        mount.abandon(error)
        raise
    finally:
        programs.end()
    if arena.actor.role is Role.ROOT:
        fields = tuple(name for name in tree.SEEN if name != "links")
        with arena.kernel(lower, upper=arena.upper) as kernel:
            found = tree.differences(without_times(before), without_times(tree.snapshot(kernel.merged)), fields)
        linked = tuple(repr(f"p{program}/low/{name}".encode()) for program in range(PROGRAMS) for name in "de")
        found = [line for line in found if not line.startswith(linked)]
        assert not found, f"seed {SEED}: overlayfs shows otherwise:\n  " + "\n  ".join(found)
    total = sum(map(collections.Counter, counts), collections.Counter[str]())
    print(f"seed {SEED}: {ROUNDS} rounds of {PROGRAMS} programs: {dict(total)}; faults: {faults.counts()}")
    assert total["done"] > PROGRAMS * STEPS // 10 and any(faults.counts().values()), "hardly anything happened"
    faults.close()


def _agree(before: tree.Tree, after: tree.Tree, when: str) -> None:
    found = tree.differences(without_times(before), without_times(after), (*tree.SEEN, "nlink"))
    assert not found, f"{when}:\n  " + "\n  ".join(found)
