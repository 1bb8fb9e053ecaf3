"""An upper without space for its work directory is shown read-only, as overlayfs does it, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.mountinfo import mount_at

pytestmark = [pytest.mark.root, pytest.mark.actors("root", "user")]

SAYS = "is on a full filesystem (No space left on device), so it is mounted read-only"
FILESYSTEMS = ["tmpfs without inodes", "ext4 without blocks", "ext4 without inodes"]


@pytest.fixture
def disk(request: pytest.FixtureRequest, arena: Arena) -> Iterator[Path]:
    """A small filesystem of the actor's, not full yet, with an upper over a lower that lies elsewhere."""
    root = arena.directory("disk")
    kind = getattr(request, "param", FILESYSTEMS[0])
    if kind.startswith("tmpfs"):
        libc.mount("tmpfs", str(root), "tmpfs", 0, "nr_inodes=40")
    else:
        image = arena.root / "image"
        with image.open("wb") as file:
            file.truncate(4 << 20)
        inodes = ["-N", "64"] if kind.endswith("inodes") else []
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", *inodes, image], check=True)
        subprocess.run(["mount", "-o", "loop", image, root], check=True)
    for name in ("", "upper"):
        (root / name).mkdir(exist_ok=True)
        arena.actor.own(root / name)
    (root / "upper/new").write_text("of the upper")
    (root / "upper/file").write_text("changed")
    os.mknod(root / "upper/gone", 0o20000, 0)
    for path in (root / "upper").iterdir():
        arena.actor.own(path)
    yield root
    subprocess.run(["umount", root], check=True)


def _fill(directory: Path, *, leave: int = 0) -> list[Path]:
    """Use up blocks and inodes, but for some inodes; returns the files to remove."""
    made: list[Path] = []
    for size in (1 << 16, 1 << 10, 0):
        while True:
            path = directory / f"fill-{len(made)}"
            try:
                path.touch()
                made.append(path)
                path.write_bytes(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break
    for _ in range(leave):
        made.pop().unlink()
    return made


def _lower(arena: Arena) -> Path:
    lower = arena.root / "lower"
    lower.mkdir()
    for name in ("file", "gone", "below"):
        (lower / name).write_text("of the lower")
    return lower


def _is_read_only(merged: Path) -> bool:
    return bool(os.statvfs(merged).f_flag & os.ST_RDONLY)


def _check(merged: Path) -> None:
    """What is shown is the union of both."""
    assert sorted(os.listdir(merged)) == ["below", "file", "new"]
    assert (merged / "file").read_text() == "changed"
    assert (merged / "new").read_text() == "of the upper"
    assert (merged / "below").read_text() == "of the lower"


def _mount_read_only(arena: Arena, *arguments: str | Path) -> None:
    """Mount, see that the mount says that it is read-only, and take it away."""
    merged = arena.directory("merged")
    done = arena.place.fuseunion("--log-file", arena.root / "log", *arguments, merged)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1 and SAYS in done.stderr, done.stderr
    assert SAYS in (arena.root / "log").read_text()
    assert _is_read_only(merged)
    found = mount_at(merged)
    assert found is not None
    line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {merged} " in line)
    assert line.split()[3].split(",")[0] == "ro"
    _check(merged)
    with pytest.raises(OSError) as failed:
        (merged / "more").touch()
    assert failed.value.errno == errno.EROFS
    for command in ("sync", "umount"):
        assert arena.place.fuseunion(command, merged).returncode == 0
    assert mount_at(merged) is None


def _mount_writable(arena: Arena, lower: Path, upper: Path, work: Path | None) -> None:
    """When there is space again, everything is there and can be changed."""
    with arena.mount(lower, upper=upper, work=work) as mount:
        assert not _is_read_only(mount.merged)
        _check(mount.merged)
        (mount / "more").write_text("more")
        (mount / "below").unlink()
    assert (upper / "more").read_text() == "more"


@pytest.mark.parametrize(
    ("disk", "work"),
    [
        *((FILESYSTEMS[0], work) for work in ("default", "missing", "empty")),
        *((disk, "default") for disk in FILESYSTEMS[1:]),
    ],
    indirect=["disk"],
)
def test_it_is_shown_read_only(arena: Arena, disk: Path, work: str) -> None:
    lower, given = _lower(arena), None if work == "default" else disk / "work"
    if work == "empty":
        (disk / "work").mkdir(0o700)
    before = sorted(os.listdir(disk))
    filling = _fill(disk)
    _mount_read_only(arena, *(["--work", given] if given else []), lower, disk / "upper")
    for path in filling:
        path.unlink()
    assert sorted(os.listdir(disk)) == before, "something was left"
    _mount_writable(arena, lower, disk / "upper", given)


def test_it_is_for_mount_programs_too(arena: Arena, disk: Path) -> None:
    lower = _lower(arena)
    (disk / "work").mkdir(0o700)
    _fill(disk)
    _mount_read_only(arena, "-o", f"lowerdir={lower},upperdir={disk}/upper,workdir={disk}/work")


@pytest.mark.actors("root")
@pytest.mark.parametrize("options", [[], ["--volatile"]], ids=["synced", "volatile"])
def test_wherever_the_space_ends(arena: Arena, disk: Path, options: list[str]) -> None:
    """One inode more each time: the mount is read-only or not, it never fails, and leaves nothing in the way."""
    lower, work, merged = _lower(arena), disk / "work", arena.directory("merged")
    found = []
    for leave in range(9):
        filling = _fill(disk, leave=leave)
        done = arena.place.fuseunion(*options, "--work", work, lower, disk / "upper", merged)
        assert done.returncode == 0, (leave, done.stderr)
        found.append(_is_read_only(merged))
        assert found[-1] == (SAYS in done.stderr), done.stderr
        _check(merged)
        assert arena.place.fuseunion("umount", merged).returncode == 0
        for path in filling:
            path.unlink()
        if found[-1]:  # no mark of a volatile mount may stay that had no writer
            assert not (work / "work/incompat").exists(), leave
        subprocess.run(["rm", "-rf", work], check=True)
    assert found == sorted(found, reverse=True) and set(found) == {True, False}, found
    _mount_writable(arena, lower, disk / "upper", work)


@pytest.mark.parametrize("name", ["links", "fuseunion.db"])
def test_not_without_what_decides_what_is_shown(arena: Arena, disk: Path, name: str) -> None:
    lower, merged, work = _lower(arena), arena.directory("merged"), disk / "work"
    work.mkdir(0o700)
    if name == "links":
        (work / "links/1-2-3").mkdir(0o700, parents=True)
        (work / "links").chmod(0o700)
    else:
        (work / name).touch(0o600)
    _fill(disk)
    done = arena.place.fuseunion("--work", work, lower, disk / "upper", merged)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and f"because '{name}' in the work directory" in done.stderr
    assert mount_at(merged) is None


@pytest.mark.actors("root")
@pytest.mark.parametrize("work", ["missing", "empty", "used"])
def test_the_kernel_engine(arena: Arena, disk: Path, work: str) -> None:
    lower, merged = _lower(arena), arena.directory("merged")
    if work != "missing":
        (disk / "work").mkdir(0o700)
    if work == "used":
        (disk / "work/work").mkdir(0o700)
    _fill(disk)
    done = arena.place.fuseunion("--engine", "kernel", "--work", disk / "work", lower, disk / "upper", merged)
    assert done.returncode == 0, done.stderr
    assert _is_read_only(merged)
    _check(merged)
    assert arena.place.fuseunion("umount", merged).returncode == 0


@pytest.mark.actors("root")
def test_overlayfs_does_the_same(arena: Arena, disk: Path) -> None:
    lower, merged = _lower(arena), arena.directory("merged")
    (disk / "work").mkdir(0o700)
    _fill(disk)
    libc.mount("overlay", str(merged), "overlay", 0, f"lowerdir={lower},upperdir={disk}/upper,workdir={disk}/work")
    try:
        assert _is_read_only(merged)
        _check(merged)
    finally:
        libc.umount(str(merged))


def test_a_ranch_says_so(arena: Arena, disk: Path) -> None:
    lower, merged = _lower(arena), arena.directory("merged")
    _fill(disk, leave=2)
    done = arena.place.fuseunion(
        "--engine", "ranch", "--allow-writable-lower", "--work", disk / "work", lower, disk / "upper", merged
    )
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not os.listdir(merged)
    assert sorted(name for name in os.listdir(disk) if name.startswith(".")) == []
