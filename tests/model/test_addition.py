"""A lower is added to a union that is in use: against a union that was made with it, for random trees and changes.

The layers hold what may meet in a stack: files over directories and the other way round, whiteouts and opaque marks in
their forms, redirects, hard links within and across the lowers. Before the lower is added the union is changed, some of
it is known, some files and listings are open; in the middle of the looking others go on. Then the views must be equal,
what was open reads on, the same changes have the same results on both, and a new union shows the same with the same
numbers.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseunion.core.disk.layer import Layer
from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.live.refresh import Forgotten
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.steps import in_one_piece
from tests.support.inprocess import InProcess, in_process

NAMES = ["a", "b", "c", "d", "e"]
SEEDS = range(int(os.environ.get("FUSEUNION_SEEDS", "40")))
PREFIX = "trusted" if os.geteuid() == 0 else "user"


def fill(rng: random.Random, layer: Path, others: list[Path], *, upper_marks: bool, depth: int = 0) -> None:
    """Random content of a layer, or of a directory in it."""
    for name in rng.sample(NAMES, rng.randrange(1, 5)):
        path = layer / name
        kind = rng.random()
        if kind < 0.4 and depth < 3:
            path.mkdir()
            fill(rng, path, [other / name for other in others], upper_marks=upper_marks, depth=depth + 1)
            if upper_marks and rng.random() < 0.2:
                os.setxattr(path, f"{PREFIX}.overlay.opaque", b"y")
            elif upper_marks and rng.random() < 0.1:
                (path / ".wh..wh..opq").touch()
            elif upper_marks and rng.random() < 0.15:
                target = rng.choice([rng.choice(NAMES), "/" + rng.choice(NAMES), f"/{rng.choice(NAMES)}/a"])
                os.setxattr(path, f"{PREFIX}.overlay.redirect", target.encode())
        elif kind < 0.5 and upper_marks:
            os.mknod(path, stat.S_IFCHR, 0)
        elif kind < 0.57 and upper_marks:
            (layer / f".wh.{name}").touch()
        elif kind < 0.65:
            path.symlink_to(rng.choice(NAMES))
        else:
            files = [other / each for other in (layer, *others) for each in NAMES]
            files = [each for each in files if each.is_file() and not each.is_symlink()]
            if files and rng.random() < 0.3:
                os.link(rng.choice(files), path)
            else:
                path.write_bytes(rng.randbytes(rng.randrange(1, 20)))
                path.chmod(rng.choice((0o644, 0o600, 0o755)))


def paths(rng: random.Random) -> str:
    return "".join(f"/{rng.choice(NAMES)}" for _ in range(rng.choice((1, 1, 2, 2, 3))))


def step(rng: random.Random) -> Callable[[InProcess], object]:
    """One random operation."""
    path, other, data = paths(rng), paths(rng), rng.randbytes(5)
    return rng.choice(
        [
            lambda union: union.write(path, data),
            lambda union: union.write(path, data, 3),
            lambda union: union.create(path, data),
            lambda union: union.mkdir(path),
            lambda union: union.unlink(path),
            lambda union: union.rmdir(path),
            lambda union: union.rename(path, other),
            lambda union: union.rename(path, other, 2),
            lambda union: union.link(path, other),
            lambda union: union.symlink("x", path),
            lambda union: union.setattr(path, Change(mode=0o640)),
            lambda union: union.find(path) and None,
            lambda union: union.names(path),
        ]
    )


def answer(union: InProcess, operation: Callable[[InProcess], object]) -> object:
    try:
        return operation(union)
    except OSError as error:
        return error.errno
    except AssertionError:
        return "of another kind"


def seen(union: InProcess, since: int, *, numbers: bool = False) -> dict[str, tuple[object, ...]]:
    """The tree, in which whatever happened since a moment happened at one moment.

    It is looked at twice: names that are met complete what is known of a file with several names (link_names.py).
    """
    union.tree()
    return {
        path: tuple("now" if isinstance(fact, int) and fact >= since else fact for fact in facts)
        if not numbers
        else facts
        for path, facts in union.tree(numbers=numbers).items()
    }


class Stage:
    """The directories of one seed, and the union that is in use."""

    def __init__(self, base: Path, rng: random.Random) -> None:
        self.base, self.rng = base, rng
        self.lowers: list[Path] = []
        for number in range(rng.choice((1, 2, 3, 5))):
            lower = base / f"lower{number}"
            lower.mkdir()
            fill(rng, lower, self.lowers, upper_marks=number > 0)
            self.lowers.insert(0, lower)
        self.new = base / "new"
        self.new.mkdir()
        fill(rng, self.new, self.lowers, upper_marks=True)
        for name in ("upper", "work"):
            (base / "store" / name).mkdir(parents=True)
        self.modes = {"redirect_dir": rng.random() < 0.5, "metacopy": rng.random() < 0.3}
        self.upper = (base / "store/upper", base / "store/work") if rng.random() < 0.9 else (None, None)
        self.since = os.stat(self.new).st_mtime_ns - 10**9

    def union(self, *, with_new: bool = False, copied: bool = False) -> ExitStack:
        """A union, entered; `union` of it is in the attribute of the same name."""
        lowers = [self.new, *self.lowers] if with_new else self.lowers
        upper, work = self.upper
        if copied and upper is not None:
            shutil.rmtree(self.base / "copy", ignore_errors=True)
            subprocess.run(["cp", "-a", self.base / "store", self.base / "copy"], check=True)
            upper, work = self.base / "copy/upper", self.base / "copy/work"
        stack = ExitStack()
        self.last = stack.enter_context(in_process(lowers, upper, work, **self.modes))
        return stack


def add(union: Union, path: Path, between: Callable[[], object]) -> list[Forgotten]:
    """Add a layer; returns the names that may show something else."""
    layer = Layer(os.open(path, os.O_RDONLY), writable=False, label=str(path), descriptors=union.lowers[0].descriptors)
    addition = union.addition(layer)
    try:
        for _ in addition.look():
            between()
        before = addition.plan(frozenset())
        told = {(each.directory.ino, name) for each in before.names for name in each.names}
        plan = addition.plan(told)
        assert (plan.names, plan.going) == ([], 0) and before.going <= len(told)
        addition.finish(plan)
        return before.names
    finally:
        addition.close()


def known(directory: Directory, path: str = "") -> Iterator[tuple[str, Inode]]:
    for name, child in directory.children.items():
        yield f"{path}/{os.fsdecode(name)}", child
        if isinstance(child, Directory):
            yield from known(child, f"{path}/{os.fsdecode(name)}")


def check_table(union: Union) -> None:
    """Who is known under a name knows it, and is in the table."""
    table = union.state.table
    for path, child in known(union.root):
        assert isinstance(child, Directory | File)
        assert table.find(child.ino) is child, path
        assert not child.removed, path
        assert os.fsencode(path.rpartition("/")[2]) in [name for _, name in child.names()], path


@pytest.mark.parametrize("seed", SEEDS)
def test_as_a_new_union(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    stage = Stage(tmp_path, rng)
    with stage.union():
        live = stage.last
        for _ in range(rng.randrange(25)):
            answer(live, step(rng))
        if rng.random() < 0.3:
            live.forget()
        if rng.random() < 0.7:
            live.tree()
        opened = []
        for path, inode in known(live.union.root):
            if isinstance(inode, File) and stat.S_ISREG(inode.kind) and rng.random() < 0.5:
                handle = live.union.open(inode, os.O_RDONLY)
                opened.append((path, handle, os.pread(handle.fd, 100, 0)))
        listings = [
            live.union.opendir(inode)
            for _, inode in [*known(live.union.root), ("", live.union.root)]
            if isinstance(inode, Directory) and rng.random() < 0.3
        ]
        for listing in listings:
            in_one_piece(live.union.names(listing, again=False))
        before = live.tree()
        numbers = {path: (inode, inode.ino) for path, inode in known(live.union.root) if isinstance(inode, Directory)}
        moves = rng.random() < 0.3

        under_way = []
        for inode in {inode.ino: inode for _, inode in known(live.union.root)}.values():
            if isinstance(inode, File) and not inode.in_upper and rng.random() < 0.1 and stage.upper[0] is not None:
                job = live.union.copy_job(inode)
                if job is not None:
                    job.move()
                    under_way.append(job)

        def between() -> None:
            if moves and rng.random() < 0.3:
                answer(live, step(rng))

        moves = moves and not under_way
        try:
            forgotten = add(live.union, stage.new, between)
        except OSError as error:
            if "metacopy" not in str(error) and "Invalid" not in str(error):
                raise
            check_table(live.union)
            if not moves:
                assert live.tree() == before
            for job in under_way:
                job.close()
            for _, handle, _ in opened:
                live.union.release_file(handle)
            for listing in listings:
                live.union.release_directory(listing)
            return
        for job in under_way:
            job.publish()
            job.close()
        assert live.union.lowers[0].label == str(stage.new)
        check_table(live.union)
        for path, (inode, number) in numbers.items():
            if not moves:
                assert inode.ino == number, path
        with stage.union(with_new=True, copied=True):
            fresh = stage.last
            if not moves:
                check_forgotten(live, forgotten, before)
            for path, handle, data in opened:
                if not moves:
                    assert os.pread(handle.fd, 100, 0) == data, path
            for listing in listings:
                for name in in_one_piece(live.union.names(listing, again=False)):
                    inode = live.union.lookup(listing.directory, name)
                    if inode is not None:
                        live.union.release(inode)
            assert seen(live, stage.since) == seen(fresh, stage.since)
            for _ in range(15):
                operation = step(rng)
                assert answer(live, operation) == answer(fresh, operation)
                check_table(live.union)
            assert seen(live, stage.since) == seen(fresh, stage.since)
        for _, handle, _ in opened:
            live.union.release_file(handle)
        for listing in listings:
            live.union.release_directory(listing)
        live.forget()
        assert live.union.known == 1, "nothing is left in the table"
        after = live.tree(numbers=True)
    with stage.union(with_new=True):
        assert stage.last.tree(numbers=True) == after, "mounted again"


def check_forgotten(live: InProcess, forgotten: list[Forgotten], before: dict[str, tuple[object, ...]]) -> None:
    """Every name that shows something else is among those that the kernel is told of."""
    told: set[tuple[int, bytes]] = set()
    for each in forgotten:
        told |= {(each.directory.ino, name) for name in each.names}
    table = live.union.state.table
    now = live.tree()
    for path in {*before, *now}:
        if (path in before) == (path in now):
            continue
        parent, _, name = path.rpartition("/")
        if parent and parent not in now:
            continue
        directory = live.find(parent)
        if isinstance(directory, Directory) and (not parent or parent in before) and table.find(directory.ino):
            above = parent
            fresh = False
            while above:  # beneath a name that was told, everything is looked up anew
                upper, _, last = above.rpartition("/")
                found = live.find(upper)
                fresh = fresh or (found.ino, os.fsencode(last)) in told
                above = upper
            assert fresh or (directory.ino, os.fsencode(name)) in told, path


@pytest.mark.parametrize("moved", [False, True])
def test_data_elsewhere(tmp_path: Path, moved: bool) -> None:
    """A file of which the upper has the attributes alone does not get the data of another: that is refused."""
    for name in ("old/d", "new/d", "other/d", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "old/d/f").write_bytes(b"old")
    (tmp_path / "new/d/f").write_bytes(b"another")
    (tmp_path / "other/d/g").write_bytes(b"g")
    path = "/d/f"
    if moved:  # as overlayfs leaves it
        path, copy = "/g", tmp_path / "upper/g"
        copy.touch()
        os.truncate(copy, 3)
        os.setxattr(copy, f"{PREFIX}.overlay.metacopy", b"")
        os.setxattr(copy, f"{PREFIX}.overlay.redirect", b"/d/f")
    with in_process([tmp_path / "old"], tmp_path / "upper", tmp_path / "work", metacopy=True) as union:
        if not moved:
            union.setattr(path, Change(mode=0o600))
        before = union.tree()
        assert union.read(path) == b"old"
        with pytest.raises(OSError, match="metacopy") as refusal:
            add(union.union, tmp_path / "new", lambda: None)
        assert str(refusal.value).startswith(f"[Errno 16] '{path[1:]}': ")
        assert union.tree() == before and union.read(path) == b"old"
        add(union.union, tmp_path / "other", lambda: None)
        assert union.read(path) == b"old" and union.read("/d/g") == b"g"


def test_a_moved_directory(tmp_path: Path) -> None:
    """A redirect of the upper leads to the place in the new lower too, also where nothing else there is known."""
    for name in ("old/a/b", "new/a/b", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "old/a/b/f").write_bytes(b"old")
    (tmp_path / "new/a/b/f").write_bytes(b"new")
    (tmp_path / "new/a/b/g").write_bytes(b"g")
    with in_process([tmp_path / "old"], tmp_path / "upper", tmp_path / "work", redirect_dir=True) as union:
        union.mkdir("/c")
        union.rename("/a/b", "/c/d")
        assert union.read("/c/d/f") == b"old"
        add(union.union, tmp_path / "new", lambda: None)
        assert union.read("/c/d/f") == b"new" and union.names("/c/d") == ["f", "g"] and union.names("/a") == []
    with in_process(
        [tmp_path / "new", tmp_path / "old"], tmp_path / "upper", tmp_path / "work", redirect_dir=True
    ) as union:
        assert union.read("/c/d/f") == b"new" and union.names("/c/d") == ["f", "g"] and union.names("/a") == []
