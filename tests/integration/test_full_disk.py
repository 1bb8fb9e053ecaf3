"""An upper without space: programs are told, nothing changes by halves, and all goes on when there is space again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from tests.support.arena import Arena
from tests.support.layers import File, Link
from tests.support.mounts import FuseunionMount

TOLERATED = r"cannot remove|stays|goes on counting|keeps inode|shows that something was copied up"
"""What the daemon may say when it cannot clean up for want of space."""


def _small(arena: Arena, lower: Path, size: str) -> FuseunionMount:
    """A mount whose upper is a private tmpfs of this size, which every actor can have."""
    return FuseunionMount(
        arena.place, [lower], None, arena.directory("merged"), (), ["--ephemeral", "--size", size], None, TOLERATED
    )


def _fill(directory: Path) -> list[Path]:
    """Use up all the space; returns the files to remove."""
    made = []
    for size in (65536, 4096, 0):
        for number in range(4096):
            path = directory / f"fill-{size}-{number}"
            full = _answer(lambda: path.write_bytes(b"x" * size)) == errno.ENOSPC  # noqa: B023 - called at once
            if path.exists():
                made.append(path)
            if full:
                break
    return made


def _answer(step: Callable[[], object]) -> int:
    """The errno of a step, 0 when it is done."""
    try:
        step()
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_write_that_fits_in_part(arena: Arena) -> None:
    """write(2): as much as fits is written and counted; the next one is told that there is no space."""
    lower = arena.lower({"d/x": File()})
    with _small(arena, lower, "2m") as mount:
        fd = os.open(mount / "file", os.O_RDWR | os.O_CREAT)
        data = os.urandom(4 << 20)
        written = os.write(fd, data)
        assert 1 << 20 < written < 4 << 20
        assert os.fstat(fd).st_size == written
        assert os.pread(fd, 4 << 20, 0) == data[:written]
        assert _answer(lambda: os.write(fd, data[written:])) == errno.ENOSPC
        os.close(fd)


def test_nothing_changes_by_halves(arena: Arena) -> None:
    """Each change of lower files, linked ones above all, fails whole, and works when there is space."""
    names = ("truncate", "unlink", "link", "write", "rename", "chmod", "replace")
    lower = arena.lower(
        {f"{name}/a": File(b"linked" * 2000, mode=0o644) for name in names}
        | {f"{name}/b": Link(f"{name}/a") for name in names}
        | {f"{name}/other": File(b"other" * 2000) for name in names}
    )
    steps: dict[str, Callable[[Path], object]] = {
        "truncate": lambda root: os.truncate(root / "a", 5),
        "unlink": lambda root: (root / "a").unlink(),
        "link": lambda root: os.link(root / "a", root / "c"),
        "write": lambda root: (root / "a").write_bytes(b"new"),
        "rename": lambda root: (root / "a").rename(root / "c"),
        "chmod": lambda root: (root / "a").chmod(0o600),
        "replace": lambda root: (root / "other").rename(root / "a"),
    }

    def seen(name: str) -> dict[str, tuple[object, ...]]:
        status = {path.name: path.stat() for path in (mount / name).iterdir()}
        return {
            file: (st.st_ino, st.st_nlink, st.st_mode, st.st_size, (mount / name / file).read_bytes())
            for file, st in status.items()
        }

    with _small(arena, lower, "200k") as mount:
        (mount / "fill").mkdir()
        before = {name: seen(name) for name in names}
        filling = _fill(mount / "fill")
        failed = set()
        for name in names:
            code = _answer(lambda: steps[name](mount / name))  # noqa: B023 - called at once
            assert code in (0, errno.ENOSPC), name
            if code:
                failed.add(name)
                assert seen(name) == before[name], name
        assert len(failed) >= len(names) - 2, f"only {failed} found no space"
        for path in filling:
            path.unlink()
        for name in names:
            if name in failed:
                steps[name](mount / name)
            for path in (mount / name).iterdir():
                with open(path, "ab") as file:
                    file.write(b"!")
            os.link(mount / name / "b", mount / name / "last")
            for path in (mount / name).iterdir():
                path.unlink()
            (mount / name).rmdir()
        assert sorted(os.listdir(mount.merged)) == ["fill"]
