"""Deleting, and making again what was deleted: where unions most often bring old files back."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Symlink
from tests.support.mounts import FuseunionMount
from tests.support.twin import Twin


def _is_gone(path: Path) -> bool:
    return not os.path.lexists(path) and path.name not in os.listdir(path.parent)


def _remount(mount: FuseunionMount) -> None:
    mount.stop()
    mount.start()


@pytest.mark.parametrize("parent", ["", "usr/share/"], ids=["in-root", "deep"])
def test_directory_made_again_starts_empty(arena: Arena, parent: str) -> None:
    """A directory of two lowers, removed and made again, is empty: at once, after remounts, and renamed away."""
    lowers = [arena.lower({f"{parent}d/old{n}": File(), f"{parent}d/sub/old{n}": File()}) for n in (0, 1)]
    with arena.mount(*lowers) as mount:
        directory = mount / f"{parent}d"
        shutil.rmtree(directory)
        assert _is_gone(directory)
        directory.mkdir()
        for _ in range(2):
            assert os.listdir(directory) == []
            for name in ("old0", "old1", "sub"):
                assert not os.path.lexists(directory / name)
            _remount(mount)
        moved = mount / f"{parent}moved"
        directory.rename(moved)
        for _ in range(2):
            assert _is_gone(directory)
            assert os.listdir(moved) == []
            assert not os.path.lexists(moved / "old0")
            _remount(mount)
        (moved / "sub").mkdir()
        assert os.listdir(moved / "sub") == []
        directory.mkdir()
        assert os.listdir(directory) == []


def test_everything_deleted_stays_deleted(arena: Arena) -> None:
    """`rm -r` of the whole tree leaves nothing, also after a remount, and whiteouts only where they are needed."""
    lower = arena.lower({"a/b/c": File(), "a/d": File(), "e": File(), "l": Symlink("e"), "empty": Dir()})
    with arena.mount(lower) as mount:
        for name in os.listdir(mount.merged):
            path = mount / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        assert os.listdir(mount.merged) == []
        _remount(mount)
        assert os.listdir(mount.merged) == []
        assert not (mount / "a" / "b").exists()
    marks = {name.removeprefix(".wh.") for name in os.listdir(arena.upper)}
    assert marks == {"a", "e", "l", "empty"}


def test_deleting_a_lower_file_copies_nothing(arena: Arena) -> None:
    """A deletion writes a whiteout and moves no data."""
    size = 8 << 20
    lower = arena.lower({"big": File(os.urandom(size))})
    with arena.mount(lower) as mount:
        before = _bytes_moved(mount.daemon)
        (mount / "big").unlink()
        assert _is_gone(mount / "big")
        assert _bytes_moved(mount.daemon) - before < size // 8
    whiteout = arena.upper / "big"
    if whiteout.exists():
        assert stat.S_ISCHR(whiteout.stat().st_mode)
        assert whiteout.stat().st_rdev == 0
    else:
        assert (arena.upper / ".wh.big").stat().st_size == 0


def _bytes_moved(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def test_whiteouts_share_one_inode(arena: Arena) -> None:
    """Many deletions cost one whiteout inode with many names, as in overlayfs (dir.c, ovl_whiteout)."""
    lower = arena.lower({f"f{number}": File() for number in range(20)})
    with arena.mount(lower) as mount:
        for number in range(20):
            (mount / f"f{number}").unlink()
    inodes = {os.lstat(arena.upper / name).st_ino for name in os.listdir(arena.upper)}
    assert len(os.listdir(arena.upper)) == 20
    assert len(inodes) < 10


def test_what_only_upper_held_leaves_no_whiteout(arena: Arena) -> None:
    """Files and directories that no lower holds vanish without a trace."""
    lower = arena.lower({"kept": File()})
    with arena.mount(lower) as mount:
        (mount / "new").write_bytes(b"x")
        (mount / "dir/sub").mkdir(parents=True)
        (mount / "new").rename(mount / "dir/sub/moved")
        shutil.rmtree(mount / "dir")
    assert os.listdir(arena.upper) == []


def test_renames_onto_and_away_from_deleted_names(arena: Arena) -> None:
    """Whiteouts under, beside and inside what is renamed end where they should."""
    lower = arena.lower(
        {"gone": File(b"old"), "file": File(b"file"), "d/old": File(), "d/kept": File(), "full/x": File()}
    )
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)

        def onto_whiteout(root: Path) -> None:
            (root / "gone").unlink()
            (root / "file").rename(root / "gone")

        def directory_onto_whiteout(root: Path) -> None:
            (root / "new").mkdir()
            (root / "new/inner").write_bytes(b"i")
            (root / "new").rename(root / "file")

        def directory_onto_emptied_one(root: Path) -> None:
            (root / "d/old").unlink()
            (root / "d/kept").unlink()
            (root / "file").rename(root / "d")

        def onto_full_directory(root: Path) -> None:
            (root / "d").rename(root / "full")

        def file_onto_directory(root: Path) -> None:
            (root / "gone").rename(root / "full")

        def directory_onto_file(root: Path) -> None:
            (root / "full").rename(root / "gone")

        for step in (
            onto_whiteout,
            directory_onto_whiteout,
            directory_onto_emptied_one,
            onto_full_directory,
            file_onto_directory,
            directory_onto_file,
        ):
            twin.both(step)
        twin.remount()


def test_a_directory_with_visible_entries_is_not_removed(arena: Arena) -> None:
    """rmdir of a merged directory answers ENOTEMPTY until all that shows is gone."""
    lower = arena.lower({"d/one": File(), "d/two": File()})
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: (root / "d").rmdir())
        twin.both(lambda root: (root / "d/one").unlink())
        twin.both(lambda root: (root / "d").rmdir())
        twin.both(lambda root: (root / "d/two").unlink())
        twin.both(lambda root: (root / "d").rmdir())
        twin.remount()


@pytest.mark.parametrize("options", [[], ["xattr_permissions=2"]], ids=["plain", "stored"])
def test_a_deleted_directory_is_changed_by_who_has_it_open(arena: Arena, options: list[str]) -> None:
    """As on a local filesystem, whether it was a lower's, had been copied up, or was new; nothing of it comes back."""
    lower = arena.lower({"a/b": Dir(), "copied": Dir()})
    with arena.mount(lower, options=options) as mount:
        (mount / "new").mkdir()
        (mount / "copied").chmod(0o700)
        opened = [os.open(mount / path, os.O_RDONLY) for path in ("a/b", "a", "copied", "new")]
        for path in ("a/b", "a", "copied", "new"):
            (mount / path).rmdir()
        for fd in opened:
            number = os.fstat(fd).st_ino
            os.fchmod(fd, 0o711)
            os.setxattr(fd, "user.colour", b"red")
            os.utime(fd, ns=(1, 2))
            os.fsync(fd)
            st = os.fstat(fd)
            assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns, st.st_nlink, st.st_ino) == (0o711, 2, 0, number)
            assert os.getxattr(fd, "user.colour") == b"red"
            assert os.listdir(fd) == []
            with pytest.raises(FileNotFoundError):
                os.mkdir("below", dir_fd=fd)
            os.close(fd)
        assert os.listdir(mount.merged) == []
        _remount(mount)
        assert os.listdir(mount.merged) == []


def test_deleted_name_is_not_cached_away(arena: Arena) -> None:
    """Names asked for before they exist, and after they are gone, answer what is true at each moment."""
    lower = arena.lower({"f": File(b"old")})
    with arena.mount(lower) as mount:
        for content in (b"1", b"2", b"3"):
            (mount / "f").unlink()
            assert not (mount / "f").exists()
            (mount / "f").write_bytes(content)
            assert (mount / "f").read_bytes() == content
            assert not (mount / "g").exists()
            (mount / "f").rename(mount / "g")
            assert not (mount / "f").exists()
            (mount / "g").rename(mount / "f")
    assert processes.with_token(arena.place.token) == []
