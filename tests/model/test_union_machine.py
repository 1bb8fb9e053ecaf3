"""The core against the simplest model there is: a plain directory.

A plain directory is what the fuse engine promises to be like, also where overlayfs is not: directories of lowers can
be renamed, hard links of a lower file stay one file, numbers stay. The machine does the same to both and compares
results, errnos and, after each step, the whole trees; at any time the union is closed and opened again.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.linux import syscalls
from tests.support.inprocess import InProcess, in_process

NAMES = ["a", "b", "c", "d"]
PATHS = [f"/{x}" for x in NAMES] + [f"/{x}/{y}" for x in NAMES for y in NAMES]
PATHS += ["/a/a/a", "/a/b/a", "/b/c/d", "/c/a/b"]
paths = st.sampled_from(PATHS)


def _make_lowers(base: Path) -> list[Path]:
    top, bottom = base / "top", base / "bottom"
    for directory in ("a/a", "a/b", "b/c", "d"):
        (bottom / directory).mkdir(parents=True)
    for directory in ("a/b", "b", "c/a"):
        (top / directory).mkdir(parents=True)
    for name in ("a/c", "a/a/a", "b/c/d", "d/a", "d/b"):
        (bottom / name).write_text(f"bottom {name}")
    # Every name of a hard-linked file is visible: names that another lower hides count in st_nlink, in overlayfs too.
    os.link(bottom / "a/c", bottom / "a/b/a")
    (bottom / "d/d").symlink_to("a")
    (top / "c/b").write_text("top c/b")
    os.link(top / "c/b", top / "c/a/b")
    os.mknod(top / "d", stat.S_IFCHR, 0)  # hides the bottom's d and what is in it
    os.setxattr(top / "b", "user.overlay.opaque", b"y")
    (top / "b/b").write_text("top b/b")
    (top / "a/.wh.a").touch()
    return [top, bottom]


Facts = tuple[object, ...]


class UnionMachine(RuleBasedStateMachine):
    """One union over two lowers, and the plain directory that it should be like."""

    @initialize()
    def start(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="fuseunion-model-")).resolve()
        self.lowers = _make_lowers(self.base)
        for name in ("upper", "work", "plain"):
            (self.base / name).mkdir()
        self.open()
        self.numbers: dict[tuple[int, int], int] = {}
        self._copy_to_plain("")
        self.check()

    def open(self) -> None:
        self.context = in_process(self.lowers, self.base / "upper", self.base / "work")
        self.union: InProcess = self.context.__enter__()

    def close(self) -> None:
        self.context.__exit__(None, None, None)

    def teardown(self) -> None:
        if hasattr(self, "base"):
            self.close()
            shutil.rmtree(self.base)

    def plain(self, path: str) -> Path:
        return self.base / "plain" / path.lstrip("/")

    def _copy_to_plain(self, path: str, made: dict[int, Path] | None = None) -> None:
        made = {} if made is None else made
        for name in self.union.names(path):
            child = f"{path}/{name}"
            inode = self.union.find(child)
            target = self.plain(child)
            if isinstance(inode, Directory):
                target.mkdir()
                self._copy_to_plain(child, made)
            elif inode.ino in made:
                os.link(made[inode.ino], target, follow_symlinks=False)
            else:
                made[inode.ino] = target
                if stat.S_ISLNK(inode.kind):
                    assert isinstance(inode, File)
                    os.symlink(self.union.union.readlink(inode), target)
                else:
                    target.write_bytes(self.union.read(child))
            real, _ = self.union.union.stat(inode)
            if not stat.S_ISLNK(inode.kind):
                os.chmod(target, stat.S_IMODE(real.st_mode))

    # -- the two trees -------------------------------------------------------------------------------------------

    def _union_tree(self, path: str = "") -> dict[str, Facts]:
        seen: dict[str, Facts] = {}
        for name in self.union.names(path):
            child = f"{path}/{name}"
            inode = self.union.find(child)
            real, nlink = self.union.union.stat(inode)
            if isinstance(inode, Directory):
                seen[child] = (inode.ino, "directory", stat.S_IMODE(real.st_mode))
                seen.update(self._union_tree(child))
            elif stat.S_ISLNK(inode.kind):
                assert isinstance(inode, File)
                seen[child] = (inode.ino, "link", os.fsdecode(self.union.union.readlink(inode)), nlink)
            else:
                seen[child] = (inode.ino, "file", stat.S_IMODE(real.st_mode), nlink, self.union.read(child))
        return seen

    def _plain_tree(self) -> dict[str, Facts]:
        seen: dict[str, Facts] = {}
        root = str(self.base / "plain")
        for directory, subdirectories, files in os.walk(root):
            for name in subdirectories + files:
                path = os.path.join(directory, name)
                real = os.lstat(path)
                child = path[len(root) :]
                if stat.S_ISDIR(real.st_mode):
                    seen[child] = (real.st_ino, "directory", stat.S_IMODE(real.st_mode))
                elif stat.S_ISLNK(real.st_mode):
                    seen[child] = (real.st_ino, "link", os.readlink(path), real.st_nlink)
                else:
                    data = Path(path).read_bytes()
                    seen[child] = (real.st_ino, "file", stat.S_IMODE(real.st_mode), real.st_nlink, data)
        return seen

    @invariant()
    def check(self) -> None:
        """Same trees; and one union number for one plain number, for ever, whatever happens in between."""
        if not hasattr(self, "numbers"):
            return
        union, plain = self._union_tree(), self._plain_tree()
        assert {path: facts[1:] for path, facts in union.items()} == {path: facts[1:] for path, facts in plain.items()}
        pairs = {(plain[path][0], union[path][0]) for path in plain}
        assert len({number for _, number in pairs}) == len({number for number, _ in pairs}) == len(pairs)
        # A number of a plain inode that is gone may come again for another object.
        alive = dict(pairs)
        for plain_number, number in alive.items():
            if plain_number in self.previous:
                assert self.previous[plain_number] == number, "a number changed"
        self.previous = alive

    previous: dict[object, object] = {}  # noqa: RUF012 - replaced, never changed

    def both(self, on_union: Callable[[], Any], on_plain: Callable[[], Any]) -> None:
        results: list[int | None] = []
        for action in (on_union, on_plain):
            try:
                action()
                results.append(None)
            except OSError as error:
                results.append(error.errno)
        assert results[0] == results[1], [os.strerror(code) if code else "done" for code in results]

    def has_parent(self, path: str) -> bool:
        """True when the parent is a directory and no link leads there: the kernel resolves links, not the union."""
        parent = self.plain(path).parent
        return parent.is_dir() and parent.resolve() == parent

    def is_file(self, path: str) -> bool:
        return self.has_parent(path) and self.plain(path).is_file() and not self.plain(path).is_symlink()

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule(path=paths, data=st.binary(max_size=20))
    def write(self, path: str, data: bytes) -> None:
        if self.is_file(path):
            self.union.write(path, data, 3)
            with self.plain(path).open("r+b") as file:
                file.seek(3)
                file.write(data)

    @rule(path=paths, size=st.integers(0, 30))
    def truncate(self, path: str, size: int) -> None:
        if self.is_file(path):
            self.union.setattr(path, Change(size=size))
            os.truncate(self.plain(path), size)

    @rule(path=paths, mode=st.sampled_from([0o600, 0o755, 0o4711]))
    def chmod(self, path: str, mode: int) -> None:
        if self.has_parent(path) and self.plain(path).exists() and not self.plain(path).is_symlink():
            self.union.setattr(path, Change(mode=mode))
            os.chmod(self.plain(path), mode)

    @rule(path=paths)
    def create(self, path: str) -> None:
        if self.has_parent(path):
            self.create_both(path)

    def create_both(self, path: str) -> None:
        def plain() -> None:
            fd = os.open(self.plain(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, b"new")
            os.close(fd)

        self.both(lambda: self.union.create(path, b"new"), plain)

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        if self.has_parent(path):
            self.mkdir_both(path)

    def mkdir_both(self, path: str) -> None:
        self.both(lambda: self.union.mkdir(path), lambda: self.plain(path).mkdir(mode=0o755))

    @rule(path=paths)
    def symlink(self, path: str) -> None:
        if self.has_parent(path):
            self.both(lambda: self.union.symlink("a", path), lambda: os.symlink("a", self.plain(path)))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        if self.has_parent(path):
            self.both(lambda: self.union.unlink(path), lambda: os.unlink(self.plain(path)))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        if self.has_parent(path):
            self.both(lambda: self.union.rmdir(path), lambda: os.rmdir(self.plain(path)))

    @rule(source=paths, new=paths)
    def link(self, source: str, new: str) -> None:
        file = self.plain(source)
        if not self.has_parent(source) or not self.has_parent(new) or not os.path.lexists(file):
            return
        if file.is_symlink() or not file.is_dir():
            self.both(
                lambda: self.union.link(source, new),
                lambda: os.link(file, self.plain(new), follow_symlinks=False),
            )

    @rule(source=paths, new=paths, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, source: str, new: str, flags: int) -> None:
        if not self.has_parent(source) or not self.has_parent(new) or not os.path.lexists(self.plain(source)):
            return
        if source.startswith(new + "/") or new.startswith(source + "/") or source == new:
            return  # the kernel's own business, before it asks a filesystem
        if flags == 2 and not os.path.lexists(self.plain(new)):
            return
        self.both(
            lambda: self.union.rename(source, new, flags),
            lambda: syscalls.renameat2(
                syscalls.AT_FDCWD, bytes(self.plain(source)), syscalls.AT_FDCWD, bytes(self.plain(new)), flags
            ),
        )

    @rule(path=paths, again=st.sampled_from(["directory", "file", "nothing"]), mounted_anew=st.booleans())
    def remove_tree(self, path: str, again: str, mounted_anew: bool) -> None:
        """rm -r, and perhaps something new under the same name; then what was removed may not come back."""
        plain = self.plain(path)
        if not self.has_parent(path) or not os.path.lexists(plain):
            return
        below = os.walk(plain, topdown=False) if not plain.is_symlink() else ()
        for directory, names, files in below:
            for name in [*files, *names]:
                child = os.path.join(directory, name)
                self._remove(child.removeprefix(str(self.base / "plain")))
        self._remove(path)
        self.check()  # now, because plain inode numbers are soon used again
        if again == "directory":
            self.mkdir_both(path)
        elif again == "file":
            self.create_both(path)
        if mounted_anew:
            self.remount()

    def _remove(self, path: str) -> None:
        plain = self.plain(path)
        if plain.is_dir() and not plain.is_symlink():
            self.both(lambda: self.union.rmdir(path), plain.rmdir)
        else:
            self.both(lambda: self.union.unlink(path), plain.unlink)

    @rule()
    def remount(self) -> None:
        self.close()
        self.open()


TestUnionMachine = UnionMachine.TestCase
TestUnionMachine.settings = settings(
    max_examples=int(os.environ.get("FUSEUNION_EXAMPLES", "60")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
