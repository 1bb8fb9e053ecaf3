"""A directory is recognised whenever it is opened again: what was put in its place answers ESTALE and is not touched.

Its descriptor is closed where the cache could have closed it, after each single system call of an operation too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.directory import Directory
from tests.support import tree
from tests.support.faults import interrupted
from tests.support.inprocess import InProcess, in_process

Make = Callable[[Path], object]
Call = Callable[[InProcess], object]


def _fill(path: Path) -> None:
    path.mkdir()
    for name in ("file", "second", "lower"):
        (path / name).write_text(f"of somebody else: {name}")
    (path / "empty").mkdir()


MAKERS: dict[str, Make] = {
    "directory": _fill,
    "link": lambda path: path.symlink_to("../foreign"),
    "fifo": os.mkfifo,
    "file": lambda path: path.write_text("file"),
    "nothing": lambda path: None,
}

IN_UPPER: dict[str, Call] = {
    "create": lambda union: union.create("d/new", b"new"),
    "mkdir": lambda union: union.mkdir("d/new"),
    "symlink": lambda union: union.symlink("target", "d/new"),
    "mknod": lambda union: union.mknod("d/new", stat.S_IFIFO | 0o644),
    "link": lambda union: union.link("d/file", "d/new"),
    "link in": lambda union: union.link("other/file", "d/new"),
    "link out": lambda union: union.link("d/file", "other/new"),
    "unlink": lambda union: union.unlink("d/file"),
    "unlink lower": lambda union: union.unlink("d/lower"),
    "rmdir": lambda union: union.rmdir("d/empty"),
    "rename": lambda union: union.rename("d/file", "d/new"),
    "rename over": lambda union: union.rename("d/file", "d/second"),
    "rename in": lambda union: union.rename("other/file", "d/new"),
    "rename in over": lambda union: union.rename("other/file", "d/file"),
    "rename out": lambda union: union.rename("d/file", "other/new"),
    "rename out over": lambda union: union.rename("d/second", "other/file"),
    "rename lower": lambda union: union.rename("d/lower", "d/new"),
    "exchange": lambda union: union.rename("other/file", "d/file", 2),
    "copy up": lambda union: union.write("d/lower", b"written"),
    "copy up a directory": lambda union: union.create("d/below/new"),
    "write": lambda union: union.write("d/file", b"written"),
    "chmod of a file": lambda union: union.setattr("d/file", Change(mode=0o600)),
    "chown of a file": lambda union: union.setattr("d/file", Change(uid=os.geteuid(), gid=os.getegid())),
    "chmod": lambda union: union.setattr("d", Change(mode=0o700)),
    "chown": lambda union: union.setattr("d", Change(uid=os.geteuid(), gid=os.getegid())),
    "utimes": lambda union: union.setattr("d", Change(atime_ns=1, mtime_ns=1)),
    "setxattr": lambda union: union.setxattr("d", b"user.new", b"new"),
}

OF_THE_NAME: dict[str, Call] = {
    "rmdir of it": lambda union: union.rmdir("d"),
    "rename of it": lambda union: union.rename("d", "moved"),
    "rename over it": lambda union: union.rename("other/empty", "d"),
    "exchange of it": lambda union: union.rename("other", "d", 2),
}
"""What goes by the name itself at its end, so that only what was put there before can be told."""

READING: dict[str, Call] = {
    "list": lambda union: union.names("d"),
    "read": lambda union: union.read("d/file"),
    "look up": lambda union: union.find("d/not yet seen"),
    "getxattr": lambda union: union.union.listxattr(union.find("d")),
}


def _build(root: Path) -> None:
    for name in ("upper/d/empty", "upper/other/empty", "lower/d/below", "lower/lower only", "work", "aside"):
        (root / name).mkdir(parents=True)
    for name in ("upper/d/file", "upper/d/second", "upper/other/file", "lower/d/lower", "lower/lower only/file"):
        (root / name).write_text(name)
    _fill(root / "foreign")


class Scene:
    """A union of which the directory `place`, which it knows, is exchanged."""

    def __init__(self, root: Path, union: InProcess, place: Path, make: Make) -> None:
        self.root = root
        self.union = union
        self.place = place
        self._make = make
        self._forgetful = False
        self._reopened: set[RealDir] = set()
        self._before: dict[bytes, tree.Entry] = {}
        for path in ("d", "d/file", "d/second", "d/lower", "d/empty", "d/below", "other/file", "other/empty"):
            union.find(path)
        make(root / "aside/new")

    def exchange(self) -> None:
        """Put the other object in its place, and let each directory lose its descriptor before it is used again."""
        os.rename(self.place, self.root / "aside/old")
        if os.path.lexists(self.root / "aside/new"):
            os.rename(self.root / "aside/new", self.place)
        self._before = self._foreign()
        self._forgetful = True

    def _foreign(self) -> dict[bytes, tree.Entry]:
        seen = dict(tree.snapshot(self.root / "foreign"))
        if self.place.is_dir() and not self.place.is_symlink():
            seen |= {b"new/" + path: entry for path, entry in tree.snapshot(self.place).items()}
        elif os.path.lexists(self.place):
            st = self.place.lstat()
            assert st.st_nlink == 1 and not os.listxattr(self.place, follow_symlinks=False)
        return seen

    def check(self) -> None:
        """Nothing of somebody else's was touched."""
        changed = tree.differences(self._before, self._foreign(), tree.EXACT)
        assert not changed, "what was put there changed:\n  " + "\n  ".join(changed)

    def lose(self, real: RealDir) -> None:
        """As the cache does, once for each directory."""
        if self._forgetful and not real._pinned and real not in self._reopened:
            self._reopened.add(real)
            fd = real.layer.descriptors.hand_over(real)
            if fd is not None:
                real.forget_descriptor()
                os.close(fd)


@contextmanager
def scene(root: Path, patch: pytest.MonkeyPatch, path: str, made: str) -> Iterator[Scene]:
    _build(root)
    with in_process([root / "lower"], root / "upper", root / "work") as union, patch.context() as patched:
        seen = Scene(root, union, root / path, MAKERS[made])
        used = RealDir.fd

        def fd(real: RealDir) -> int:
            seen.lose(real)
            return used(real)

        patched.setattr(RealDir, "fd", fd)
        yield seen


@pytest.mark.parametrize("made", MAKERS)
@pytest.mark.parametrize("call", IN_UPPER | OF_THE_NAME | READING)
def test_what_is_in_its_place_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, made: str) -> None:
    with scene(tmp_path, monkeypatch, "upper/d", made) as seen:
        seen.exchange()
        with pytest.raises(OSError) as caught:
            (IN_UPPER | OF_THE_NAME | READING)[call](seen.union)
        wanted = {errno.ESTALE, errno.ENOENT} if call in OF_THE_NAME else {errno.ESTALE}
        assert caught.value.errno in wanted, caught.value
        seen.check()


@pytest.mark.parametrize("call", IN_UPPER)
def test_exchanged_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Before each system call of the operation, until there is none more."""
    done = 0
    refused: list[int | None] = []
    for number in range(200):
        root = tmp_path / str(number)
        with scene(root, monkeypatch, "upper/d", "directory") as seen:
            with interrupted(number, seen.exchange) as reached:
                try:
                    IN_UPPER[call](seen.union)
                    done += 1
                except OSError as error:
                    refused.append(error.errno)
            if not reached.call:
                break
            seen.check()
            assert (root / "lower/d/lower").read_text() == "lower/d/lower"
    assert not reached.call, "200 calls are not the end of it"
    assert done
    assert set(refused) <= {errno.ESTALE}


OF_A_LOWER: dict[str, Call] = {
    "read": lambda union: union.read("lower only/file"),
    "write": lambda union: union.write("lower only/file", b"written"),
    "create": lambda union: union.create("lower only/new"),
    "list": lambda union: union.names("lower only"),
    "rename": lambda union: union.rename("lower only", "moved"),
}


@pytest.mark.parametrize("made", ["directory", "link", "nothing"])
@pytest.mark.parametrize("call", OF_A_LOWER)
def test_a_directory_of_a_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, made: str) -> None:
    """Nothing of what was put there is read, listed or copied up."""
    with scene(tmp_path, monkeypatch, "lower/lower only", made) as seen:
        seen.union.find("lower only/file")
        seen.exchange()
        with pytest.raises(OSError) as caught:
            OF_A_LOWER[call](seen.union)
        assert caught.value.errno == errno.ESTALE
        assert not (tmp_path / "upper/lower only").exists()
        seen.check()


def test_the_next_lookup_finds_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene(tmp_path, monkeypatch, "upper/other", "directory") as seen:
        known = seen.union.find("other")
        assert isinstance(known, Directory)
        seen.exchange()
        with pytest.raises(OSError) as caught:
            seen.union.union.opendir(known)
        assert caught.value.errno == errno.ESTALE
        found = seen.union.union.lookup(seen.union.union.root, b"other")
        assert isinstance(found, Directory) and found is not known and found.ino != known.ino
        assert seen.union.names("other") == ["empty", "file", "lower", "second"]
        seen.union.create("other/new", b"new")
        assert (tmp_path / "upper/other/new").read_bytes() == b"new"
        with pytest.raises(OSError) as caught:
            seen.union.union.lookup(known, b"not yet seen")
        assert caught.value.errno == errno.ESTALE
        assert sorted(os.listdir(tmp_path / "aside/old")) == ["empty", "file"]


def test_the_next_lookup_finds_the_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answered ESTALE until the kernel happened to forget the one before."""
    with scene(tmp_path, monkeypatch, "upper/other", "nothing") as seen:
        (tmp_path / "new").write_text("exchanged")
        (tmp_path / "new").rename(tmp_path / "upper/other/file")
        with pytest.raises(OSError) as caught:
            seen.union.read("other/file")
        assert caught.value.errno == errno.ESTALE
        assert seen.union.read("other/file") == b"exchanged"


def test_what_we_move_stays_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed, exchanged, copied up, with what is beneath: each is opened again under its new name."""
    with scene(tmp_path, monkeypatch, "upper/d", "nothing") as seen:
        union = seen.union
        union.create("d/below/deep")
        union.rename("d", "moved")
        union.rename("moved", "other", 2)
        for path in ("other", "other/below", "moved"):
            union.find(path)
        seen._forgetful = True
        assert union.names("other") == ["below", "empty", "file", "lower", "second"]
        assert union.names("other/below") == ["deep"]
        assert union.names("moved") == ["empty", "file"]
        union.create("other/below/more")
        union.rmdir("moved/empty")
        union.mkdir("moved/empty")
        union.create("moved/empty/new")
        assert (tmp_path / "upper/moved/empty/new").exists()


def test_a_lower_that_numbers_its_directories_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the inode number is as it was: libfuse filesystems without use_ino, fs/fat."""
    with scene(tmp_path, monkeypatch, "lower/lower only", "nothing") as seen:
        known = seen.union.find("lower only")
        assert isinstance(known, Directory)
        identity = known.top._known
        assert identity is not None
        device, number = identity._id
        identity._id = device, number + 1
        seen._forgetful = True
        assert seen.union.names("lower only") == ["file"]
        assert identity._id == (device, number)


def test_what_is_mounted_over_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lstat of a mount point is of what is mounted; once that is gone, the directory beneath is the one known."""
    with scene(tmp_path, monkeypatch, "lower/lower only", "nothing") as seen:
        root = seen.union.union.lowers[0].root
        with monkeypatch.context() as mounted:
            mounted.setattr(RealDir, "is_mount_point", lambda *_: True)
            child = root.child(b"lower only", os.stat(tmp_path))
        assert child.names() == [b"file"]


def test_a_tree_that_was_put_there_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanged between the check and the removal: it is known for another in work, and goes back."""
    for path, made in (("positive", True), ("only", False)):
        root = tmp_path / path
        _build(root)
        if not made:
            (root / "lower/d").rename(root / "lower/away")
        (root / "upper/d/empty").rmdir()
        for below in ("file", "second"):
            (root / "upper/d" / below).unlink()
        os.mknod(root / "upper/d/lower", stat.S_IFCHR)
        os.mknod(root / "upper/d/below", stat.S_IFCHR)
        _fill(root / "aside/new")
        before = tree.snapshot(root / "aside/new")
        with in_process([root / "lower"], root / "upper", root / "work") as union, monkeypatch.context() as patched:
            union.find("d")
            name = "install_over" if made else "take"
            taking = getattr(WorkDirectory, name)

            def late(*arguments: Any, root: Path = root, taking: Callable[..., Any] = taking, **named: Any) -> Any:
                if (root / "aside/new").exists():
                    os.rename(root / "upper/d", root / "aside/old")
                    os.rename(root / "aside/new", root / "upper/d")
                return taking(*arguments, **named)

            patched.setattr(WorkDirectory, name, late)
            with pytest.raises(OSError) as caught:
                union.rmdir("d")
            assert caught.value.errno == errno.ESTALE
            assert not tree.differences(before, tree.snapshot(root / "upper/d"), tree.SEEN)
