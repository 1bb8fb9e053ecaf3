"""Few descriptors: many lowers, many directories and many open files under a small limit.

The limit is set for the process that mounts, which an ordinary user cannot raise again.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node
from tests.support.mounts import FuseunionMount
from tests.support.product import WITH_EXTENSION

pytestmark = pytest.mark.actors("user", "userns")


def _limit(number: int) -> None:
    """For this process, which runs one test as an actor and ends with it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def _names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def _count(mount: FuseunionMount) -> int:
    return len(processes.descriptors(mount.daemon))


@pytest.mark.parametrize(("lowers", "directories", "limit"), [(6, 300, 1024), (14, 60, 512), (200, 3, 512)])
def test_everything_is_found(arena: Arena, lowers: int, directories: int, limit: int) -> None:
    """Every name of every layer is listed and can be changed, and again when all have been seen."""
    made = []
    expected = set()
    for number in range(lowers):
        description: dict[Name, Node] = {f"common/{number}": File(b"c")}
        for directory in range(directories):
            description[f"d{directory}/l{number}/file"] = File(b"f")
            expected |= {f"d{directory}", f"d{directory}/l{number}", f"d{directory}/l{number}/file"}
        expected |= {"common", f"common/{number}"}
        made.append(arena.lower(description))
    _limit(limit)
    with arena.mount(*made) as mount:
        for _ in range(2):
            assert _names(mount.merged) == expected
            assert _count(mount) <= max(limit // 2, lowers) + 64
        for directory in range(0, directories, 2):
            (mount / f"d{directory}/l0/file").write_bytes(b"changed")
            (mount / f"d{directory}").rename(mount / f"moved{directory}")
        assert len(os.listdir(mount / "common")) == lowers


@pytest.mark.limit(120)
def test_deep_directories(arena: Arena) -> None:
    """A rename between two directories that are deeper than the cache is large."""
    deep = "/".join("abcdefghij" * 40)
    lower = arena.lower({f"{deep}/from": File(b"x"), f"other/{deep}": Dir()})
    _limit(256)
    with arena.mount(lower) as mount:
        source, target = (os.open(mount.merged, os.O_RDONLY) for _ in range(2))
        for name in deep.split("/"):
            source = _step(source, name)
        target = _step(target, "other")
        for name in deep.split("/"):
            target = _step(target, name)
        os.rename("from", "to", src_dir_fd=source, dst_dir_fd=target)
        assert os.listdir(target) == ["to"]
        assert os.listdir(source) == []
        os.close(source)
        os.close(target)


def _step(fd: int, name: str) -> int:
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    os.close(fd)
    return below


def test_open_files_leave_room_for_the_rest(arena: Arena) -> None:
    """Opens beyond what the daemon can hold answer ENFILE; names, attributes and changes go on meanwhile.

    With the extension module an open file needs no descriptor of the daemon.
    """
    lower = arena.lower({f"d{number % 50}/{number}": File(b"x") for number in range(400)})
    _limit(256)
    with arena.mount(lower) as mount:
        child = os.fork()
        if child == 0:
            os._exit(_open_all(mount.merged))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        for number in range(400):
            assert (mount / f"d{number % 50}/{number}").read_bytes() == b"x"


def _open_all(merged: Path) -> int:
    """Runs in a process of its own; its exit status tells what was wrong."""
    held = []
    try:
        for number in range(230):
            held.append(os.open(merged / f"d{number % 50}/{number}", os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.ENFILE or len(held) < 64:
            return 2
    else:
        if not WITH_EXTENSION:
            return 3
    if len(list(merged.rglob("*"))) != 450:
        return 4
    (merged / "d0" / "0").chmod(0o600)
    (merged / "new").mkdir()
    (merged / "d1").rename(merged / "new" / "d1")
    os.close(held.pop())
    os.close(os.open(merged / "d2" / "2", os.O_RDONLY))
    (merged / "new" / "d1").rename(merged / "d1")
    return 0


def test_a_deleted_open_file_costs_one_descriptor(arena: Arena) -> None:
    """The descriptor that serves the user serves the daemon too, also when the last one closes after a rename over."""
    lower = arena.lower({f"{number}": File(b"lower") for number in range(40)})
    with arena.mount(lower) as mount:
        before = _count(mount)
        held = []
        for number in range(40):
            path = mount / f"{number}"
            held.append(os.open(path, os.O_RDWR))
            os.pwrite(held[-1], b"U", 0)
            path.unlink()
        assert _count(mount) - before <= 40 + 3
        for fd in held:
            assert os.fstat(fd).st_nlink == 0
            assert os.pread(fd, 10, 0) == b"Uower"
            os.fchmod(fd, 0o600)
            second = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            os.close(fd)
            assert os.pread(second, 10, 0) == b"Uower"
            assert os.fstat(second).st_mode & 0o777 == 0o600
            os.close(second)
