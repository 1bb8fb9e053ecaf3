"""Many new files in a directory, most of which the daemon makes without Python: each as in a plain directory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File
from tests.support.product import WITH_EXTENSION

pytestmark = pytest.mark.actors("root", "user")

MODES = [0o600, 0o644, 0o666, 0o755, 0o777, 0o000, 0o444, 0o2755, 0o4711, 0o1644]


def _fill(directory: Path, names: range) -> list[tuple[str, int, int, int, bytes]]:
    """Make files with many modes; what each has then."""
    made = []
    for number in names:
        path = directory / f"file{number}"
        mode = MODES[number % len(MODES)]
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode), "w+b", buffering=0) as file:
            file.write(b"contents of %d" % number)
            file.seek(0)
            st = os.fstat(file.fileno())
            assert st.st_ino == os.lstat(path).st_ino
            made.append((path.name, st.st_mode, st.st_gid, st.st_nlink, file.read()))
    return made


def _alone(arena: Arena, merged: Path, operation: str) -> int:
    (report,) = json.loads(arena.place.fuseunion("status", "--json", merged).stdout)["mounts"]
    return int(report["alone"].get(operation, 0))


@pytest.mark.parametrize("umask", [0, 0o22, 0o77])
@pytest.mark.parametrize("mode", [0o755, 0o2775], ids=["usual", "set-group-ID"])
def test_as_in_a_plain_directory(arena: Arena, mode: int, umask: int) -> None:
    plain = arena.directory("plain")
    before = os.umask(umask)
    try:
        with arena.mount(arena.lower({"merged": Dir(mode=mode)})) as mount:
            (mount / "new").mkdir()
            for directory in (mount / "new", plain):
                directory.chmod(mode)
            os.chown(plain, -1, os.stat(mount / "merged").st_gid)
            expected = _fill(plain, range(60))
            assert _fill(mount / "new", range(60)) == expected
            os.chown(plain, -1, os.stat(mount / "merged").st_gid)
            assert _fill(mount / "merged", range(60)) == expected
            for directory in (mount / "new", mount / "merged"):
                assert sorted(os.listdir(directory)) == sorted(os.listdir(plain))
                assert os.stat(directory).st_mtime_ns >= os.stat(directory / "file59").st_ctime_ns - 10**7
            if WITH_EXTENSION:
                assert _alone(arena, mount.merged, "mknod") >= 60
                assert _alone(arena, mount.merged, "getattr") >= 30
            seen = {name: os.lstat(mount / name).st_ino for name in ("new/file1", "merged/file2")}
            mount.stop()
            mount.start()
            assert {name: os.lstat(mount / name).st_ino for name in seen} == seen
            assert (mount / "new/file59").read_bytes() == b"contents of 59"
    finally:
        os.umask(before)


def test_over_what_lies_there(arena: Arena) -> None:
    """A name of a lower, a whiteout, a directory that was removed, one that another program made in the meantime."""
    lower = arena.lower({"d": Dir(), "d/there": File(b"lower"), "d/deleted": File(b"lower"), "d/sub": Dir()})
    with arena.mount(lower) as mount:
        _fill(mount / "d", range(20))
        with pytest.raises(FileExistsError):
            os.open(mount / "d/there", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        (mount / "d/deleted").unlink()
        (mount / "d/sub").rmdir()
        for name in ("deleted", "sub"):
            (mount / "d" / name).write_bytes(b"new")
            assert (mount / "d" / name).read_bytes() == b"new"
        (mount / "d/file3").unlink()
        (mount / "d/file3").write_bytes(b"again")
        (mount / "d/file4").rename(mount / "d/file3")
        assert (mount / "d/file3").read_bytes() == b"contents of 4"
        for path in list((mount / "d").iterdir()):
            path.unlink()
        _fill(mount / "d", range(5))
        assert sorted(os.listdir(mount / "d")) == [f"file{number}" for number in range(5)]
        assert stat.S_ISREG(os.lstat(arena.upper / "d/file0").st_mode)
        mount.stop()
        mount.start()
        assert sorted(os.listdir(mount / "d")) == [f"file{number}" for number in range(5)]


@pytest.mark.skipif(not WITH_EXTENSION, reason="without it there is one way")
def test_removed_while_it_is_used(arena: Arena) -> None:
    """A directory goes and comes again under its name: files are made in the new one, the old one is shown as gone."""
    with arena.mount(arena.lower({"d": Dir()})) as mount:
        for turn in range(5):
            path = mount / "d/sub"
            path.mkdir()
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            _fill(path, range(10))
            assert len(os.listdir(arena.upper / "d/sub")) == 10
            for name in os.listdir(path):
                (path / name).unlink()
            assert os.fstat(fd).st_nlink in (1, 2)
            path.rmdir()
            assert os.fstat(fd).st_nlink == 0, turn
            with pytest.raises(FileNotFoundError):
                os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
            os.close(fd)
