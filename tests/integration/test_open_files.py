"""Open files: across copy-up, deletion and replacement, mapped, and very many of them."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node


def test_descriptor_from_before_copy_up_sees_what_follows(arena: Arena) -> None:
    """A reader that opened the lower file reads what a later writer wrote, at once and at the end."""
    lower = arena.lower({"f": File(b"old contents")})
    with arena.mount(lower) as mount, open(mount / "f", "rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        with open(mount / "f", "r+b", buffering=0) as writer:
            writer.write(b"NEW")
            assert os.pread(reader.fileno(), 3, 0) == b"NEW"
            writer.seek(0, os.SEEK_END)
            writer.write(b" and more")
        assert reader.read() == b" contents and more"
        assert os.fstat(reader.fileno()).st_size == 21
        os.truncate(mount / "f", 2)
        assert os.pread(reader.fileno(), 10, 0) == b"NE"


def test_mapping_from_before_copy_up_sees_what_follows(arena: Arena) -> None:
    """A shared mapping of the lower file shows later writes (in overlayfs it goes stale)."""
    lower = arena.lower({"f": File(b"a" * 8192)})
    with (
        arena.mount(lower) as mount,
        open(mount / "f", "rb") as reader,
        mmap.mmap(reader.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping,
    ):
        assert mapping[:1] == b"a"
        with open(mount / "f", "r+b", buffering=0) as writer:
            writer.write(b"B")
            writer.seek(5000)
            writer.write(b"C")
        assert mapping[:1] == b"B"
        assert mapping[5000:5001] == b"C"


def test_a_range_copied_within_one_file(arena: Arena) -> None:
    """copy_file_range(2) from a file to itself, which was only read until then, and a range from another file."""
    data = os.urandom(200_000)
    arena.directory("upper").joinpath("f").write_bytes(data)
    with arena.mount(arena.lower({"other": File(data)})) as mount, open(mount / "f", "r+b", buffering=0) as file:
        fd = file.fileno()
        assert os.pread(fd, 4096, 131072) == data[131072 : 131072 + 4096]
        assert os.copy_file_range(fd, fd, 1000, 0, 150_000) == 1000
        assert os.pread(fd, 1000, 150_000) == data[:1000]
        assert os.copy_file_range(fd, fd, 70_000, 0, 80_000) == 70_000
        with open(mount / "other", "rb", buffering=0) as other:
            assert os.copy_file_range(other.fileno(), fd, 1000, 100, 0) == 1000
    expected = bytearray(data)
    expected[150_000:151_000] = data[:1000]
    expected[80_000:150_000] = data[:70_000]
    expected[:1000] = data[100:1100]
    assert (arena.upper / "f").read_bytes() == expected


def test_writing_through_a_mapping(arena: Arena) -> None:
    """A change made through a shared mapping copies the file up and is there for everybody, also after a remount."""
    lower = arena.lower({"f": File(b"a" * 8192)})
    with arena.mount(lower) as mount:
        with (
            open(mount / "f", "r+b") as file,
            mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapping,
        ):
            mapping[4096:4100] = b"mapd"
            mapping.flush()
            assert (mount / "f").read_bytes()[4096:4100] == b"mapd"
        mount.stop()
        mount.start()
        assert (mount / "f").read_bytes() == b"a" * 4096 + b"mapd" + b"a" * 4092


@pytest.mark.parametrize("place", ["lower", "upper"])
def test_deleted_file_keeps_working(arena: Arena, place: str) -> None:
    """A file deleted while open is read, written, truncated and described as before, and has no links."""
    lower = arena.lower({"lower": File(b"contents", mode=0o600), "other": File()})
    with arena.mount(lower) as mount:
        (mount / "upper").write_bytes(b"contents")
        with open(mount / place, "r+b", buffering=0) as file, open(mount / place, "rb", buffering=0) as reader:
            (mount / place).unlink()
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == b"contents"
            file.write(b"+")
            assert reader.read() == b"contents+"
            os.ftruncate(file.fileno(), 4)
            os.fchmod(file.fileno(), 0o644)
            os.utime(file.fileno(), ns=(1, 2_000_000_000))
            os.setxattr(file.fileno(), "user.x", b"1")
            os.fsync(file.fileno())
            status = os.fstat(reader.fileno())
            assert (status.st_size, status.st_mode, status.st_mtime_ns, status.st_nlink) == (
                4,
                0o100644,
                2_000_000_000,
                0,
            )
            (mount / place).write_bytes(b"another file")
            assert os.pread(reader.fileno(), 100, 0) == b"cont"
        assert (mount / place).read_bytes() == b"another file"


@pytest.mark.parametrize("place", ["lower", "upper"])
def test_replaced_file_keeps_working(arena: Arena, place: str) -> None:
    """A file replaced by a rename while open is unlinked, and is not the file that took its name."""
    lower = arena.lower({"lower": File(b"old"), "new": File(b"new")})
    with arena.mount(lower) as mount:
        (mount / "upper").write_bytes(b"old")
        with open(mount / place, "r+b", buffering=0) as file:
            (mount / "new").rename(mount / place)
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == b"old"
            file.write(b"!")
            assert os.pread(file.fileno(), 9, 0) == b"old!"
        assert (mount / place).read_bytes() == b"new"


@pytest.mark.parametrize("place", ["lower", "upper"])
def test_deleted_directory_keeps_answering(arena: Arena, place: str) -> None:
    """An open directory that was deleted lists nothing, accepts nothing, and is described as before."""
    lower = arena.lower({"lower": Dir(), "x": File()})
    with arena.mount(lower) as mount:
        (mount / "upper").mkdir()
        directory = os.open(mount / place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fchmod(directory, 0o600)
            (mount / place).rmdir()
            assert os.fstat(directory).st_mode == 0o040600
            assert os.listdir(directory) == []
            # An ordinary user may not even search it: the kernel says so first.
            with pytest.raises((FileNotFoundError, PermissionError)):
                os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        finally:
            os.close(directory)


def test_renamed_open_file(arena: Arena) -> None:
    """A file renamed while open, before its first change, is changed under its new name."""
    lower = arena.lower({"d/f": File(b"f")})
    with arena.mount(lower) as mount, open(mount / "d/f", "r+b", buffering=0) as file:
        (mount / "d/f").rename(mount / "g")
        file.write(b"G")
        assert (mount / "g").read_bytes() == b"G"
        (mount / "g").rename(mount / "d/f")
        file.write(b"H")
        assert (mount / "d/f").read_bytes() == b"GH"


def test_appending_writers(arena: Arena) -> None:
    """Two appending descriptors never overwrite each other."""
    lower = arena.lower({"log": File(b"0")})
    with (
        arena.mount(lower) as mount,
        open(mount / "log", "ab", buffering=0) as one,
        open(mount / "log", "ab", buffering=0) as two,
    ):
        for number in range(50):
            (one if number % 2 else two).write(b"%02d" % number)
        assert (mount / "log").read_bytes() == b"0" + b"".join(b"%02d" % number for number in range(50))


@pytest.mark.actors("root", "userns")
def test_ten_thousand_open_files(arena: Arena) -> None:
    """The daemon raises its open-file limit to the hard maximum, so 10,000 files are open at once."""
    count = 10_000
    description: dict[Name, Node] = {f"d{number // 1000}/{number}": File(b"x") for number in range(count // 2)}
    lower = arena.lower(description)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with arena.mount(lower) as mount:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        held = []
        try:
            for number in range(count // 2):
                held.append(os.open(mount / f"d{number // 1000}/{number}", os.O_RDONLY))
                held.append(os.open(mount / f"new{number}", os.O_RDWR | os.O_CREAT, 0o600))
            assert os.pread(held[0], 1, 0) == b"x"
            assert os.pwrite(held[-1], b"y", 0) == 1
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_is_held_for_idle_files(arena: Arena) -> None:
    """Looking at, reading and changing many files leaves no descriptor in the daemon (checked as the mount ends)."""
    lower = arena.lower({f"{number}/f": File(b"x") for number in range(100)})
    with arena.mount(lower) as mount:
        paths = [Path(directory) / "f" for directory, _, _ in os.walk(mount.merged) if directory != str(mount.merged)]
        for path in paths:
            path.write_bytes(path.read_bytes() + b"y")
        mount.assert_idle()
