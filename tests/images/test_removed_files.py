"""Files that are removed while they are open, over an image that fuse2fs shows, which keeps only what is open.

Descriptors of files are kept for a tenth of a second; what is asserted has to hold when they are gone, too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.images.conftest import ext, fsck
from tests.support.arena import Arena
from tests.support.layers import Dir, File
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user")]

BY_PROGRAM = ["images=fuse"]


def _descriptors_of(daemon: int) -> set[str]:
    """What files of the upper the daemon has open, but for descriptors of paths."""
    found = set()
    for fd in os.listdir(f"/proc/{daemon}/fd"):
        try:
            info = Path(f"/proc/{daemon}/fdinfo/{fd}").read_text()
            target = os.readlink(f"/proc/{daemon}/fd/{fd}")
        except OSError:
            continue  # closed meanwhile
        flags = int(next(line.split()[1] for line in info.splitlines() if line.startswith("flags:")), 8)
        if not flags & os.O_PATH:
            found.add(target)
    return found


@pytest.mark.parametrize("size", [1000, 300_000])
@pytest.mark.parametrize("of", ["upper", "lower"])
def test_it_keeps_its_data(arena: Arena, size: int, of: str) -> None:
    """tmpfile(3): made, removed, written and read on, for as long as it is open."""
    lower = arena.lower({"f": File(b"x" * size)} if of == "lower" else {})
    image = ext(arena.root / "image")
    with arena.mount(lower, upper=image, options=BY_PROGRAM) as mount:
        with (
            open(mount / "f", "r+b" if of == "lower" else "x+b", buffering=0) as file,
            open(mount / "g", "xb") as other,
        ):
            if of == "upper":
                file.write(b"x" * size)
            os.pwrite(file.fileno(), b"y", 0)
            other.write(b"g")
            other.flush()
            os.unlink(mount / "f")
            wait_until(lambda: not any(path.endswith("/g") for path in _descriptors_of(mount.daemon)), "closed")
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), size, 0) == b"y" + b"x" * (size - 1)
            os.pwrite(file.fileno(), b"end", size)
            assert os.fstat(file.fileno()).st_size == size + 3 and os.fstat(file.fileno()).st_nlink == 0
            assert os.pread(file.fileno(), 10, size) == b"end"
        wait_until(lambda: os.listdir(mount.merged) == ["g"], "nothing left of it")
    fsck(image)


def test_it_was_closed_to_its_owner(arena: Arena) -> None:
    image = ext(arena.root / "image")
    with arena.mount(arena.lower({}), upper=image, options=BY_PROGRAM) as mount:
        with open(mount / "f", "x+b", buffering=0) as file, open(mount / "g", "xb") as other:
            file.write(b"contents")
            other.write(b"g")
            other.flush()
            os.fchmod(file.fileno(), 0)
            os.rename(mount / "g", mount / "f")
            wait_until(lambda: not any(path.endswith("/f") for path in _descriptors_of(mount.daemon)), "closed")
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 100, 0) == b"contents"
            assert os.fstat(file.fileno()).st_mode & 0o7777 == 0
        assert (mount / "f").read_bytes() == b"g"
    fsck(image)


def test_directories_of_removed_files_are_removed(arena: Arena) -> None:
    """rm -rf right after the files were used."""
    image = ext(arena.root / "image")
    with arena.mount(arena.lower({"merged": Dir()}), upper=image, options=BY_PROGRAM) as mount:
        for parent in [mount.merged, mount / "merged"] * 5:
            directory = parent / "directory"
            directory.mkdir()
            for number in range(40):
                (directory / f"file{number}").write_bytes(b"x" * number * 100)
            for path in directory.iterdir():
                path.read_bytes()
            shutil.rmtree(directory)
        with open(mount / "merged/open", "x+b", buffering=0) as file:
            file.write(b"contents")
            os.unlink(mount / "merged/open")
            assert os.listdir(mount / "merged") == []
            os.rmdir(mount / "merged")
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 100, 0) == b"contents"
        assert os.listdir(mount.merged) == []
    fsck(image)


def test_without_space(arena: Arena) -> None:
    """What is removed gives its space back, though it cannot be kept for who has it open; no loss is spoken of."""
    image = ext(arena.root / "image")
    for turn in range(2):
        with arena.mount(arena.lower({}), upper=image, options=BY_PROGRAM) as mount:
            if turn:
                assert (mount / "big").stat().st_size > 1 << 20
                (mount / "big").unlink()
            with open(mount / "big", "xb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(1 << 16))
            if turn:
                (mount / "big").unlink()
                (mount / "big").write_bytes(bytes(1 << 20))
    fsck(image)


def test_what_cannot_be_removed_without_space_stays_as_it_was(arena: Arena) -> None:
    """A whiteout needs an inode: the file stays, and so does what programs have open."""
    image = ext(arena.root / "image")
    lower = arena.lower({"f": File(b"x" * 10)})
    with arena.mount(lower, upper=image, options=BY_PROGRAM) as mount:
        with open(mount / "f", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"y", 0)
            with open(mount / "big", "xb", buffering=0) as big, pytest.raises(OSError, match="No space"):
                while True:
                    big.write(bytes(1 << 16))
            os.pwrite(file.fileno(), b"z", 1)
            with pytest.raises(OSError, match="No space"):
                for number in range(10_000):
                    (mount / f"small{number}").write_bytes(b"x")
            with pytest.raises(OSError, match="No space"):
                os.unlink(mount / "f")
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 100, 0) == b"yz" + b"x" * 8
            os.pwrite(file.fileno(), b"y", 2)
            (mount / "big").unlink()
        assert (mount / "f").read_bytes() == b"yzy" + b"x" * 7
    fsck(image)
