"""Directories that their owner may not read, write or enter: they stay visible, and their owner can open them again.

For root nothing is closed; for an ordinary user the daemon has no more rights than the user.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node, build
from tests.support.twin import Twin

MODES = (0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600)


def _description() -> dict[Name, Node]:
    found: dict[Name, Node] = {}
    for mode in MODES:
        found[f"{mode:o}"] = Dir(mode=0o755)
        found[f"{mode:o}/f"] = File(b"f")
        found[f"{mode:o}/sub/g"] = File(b"g")
        found[f"{mode:o}-empty"] = Dir(mode=0o755)
    return found


def _use(root: Path, name: str, mode: int) -> list[str]:
    """What a program meets in a directory of this mode."""
    path = root / name
    answers = []
    for act in (
        lambda: oct(path.stat().st_mode),
        lambda: sorted(os.listdir(path)),
        lambda: (path / "f").read_bytes(),
        lambda: (path / "f").write_bytes(b"changed"),
        lambda: (path / "new").touch(),
        lambda: (path / "f").rename(path / "g").name,
        lambda: path.rmdir(),
        lambda: path.rename(root / f"{name}-moved").name,
        lambda: (root / f"{name}-moved").rename(path).name,
        lambda: os.utime(path, ns=(mode, mode)),
        lambda: os.setxattr(path, "user.x", b"1"),
        lambda: (root / f"{name}-empty").chmod(mode),
        lambda: (root / f"{name}-empty").rename(root / f"{name}-empty-moved").name,
        lambda: (root / f"{name}-empty-moved").rmdir(),
    ):
        try:
            answers.append(str(act()))
        except OSError as error:
            answers.append(os.strerror(error.errno or 0))
    return answers


@pytest.mark.parametrize("place", ["lower", "upper"])
def test_closed_by_chmod(arena: Arena, place: str) -> None:
    """A directory closed through the mount behaves as a closed plain directory, and opens again."""
    lower = arena.lower(_description() if place == "lower" else {})
    if place == "upper":
        build(arena.upper, _description())
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        for mode in MODES:
            name = f"{mode:o}"
            twin.both(lambda root, n=name, m=mode: (root / n).chmod(m))  # type: ignore[misc]
            twin.both(lambda root, n=name, m=mode: _use(root, n, m))  # type: ignore[misc]
        twin.remount()
        for mode in MODES:
            twin.both(lambda root, n=f"{mode:o}": (root / n).chmod(0o755))  # type: ignore[misc]
        twin.remount()
        twin.both(lambda root: shutil.rmtree(root / "100"))


def test_closed_in_lower(arena: Arena) -> None:
    """Closed directories of a lower are listed and described, and change their mode like any other."""
    description: dict[Name, Node] = {f"{mode:o}": Dir(mode=mode) for mode in MODES}
    lower = arena.lower(description | {"open/f": File()})
    with arena.mount(lower) as mount:
        assert sorted(os.listdir(mount.merged)) == sorted([*(f"{mode:o}" for mode in MODES), "open"])
        for mode in MODES:
            path = mount / f"{mode:o}"
            assert path.stat().st_mode == 0o040000 | mode
            path.chmod(0o755)
            assert path.stat().st_mode == 0o040755
            # What a user may not list in lower, the user's daemon may not either.
            if arena.actor.may_chown:
                (path / "new").touch()
                assert os.listdir(path) == ["new"]
                path.rename(mount / "open/moved")
                shutil.rmtree(mount / "open/moved")


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_mount(arena: Arena, mode: int) -> None:
    """What closes MERGED closes UPPER, which the next mount takes all the same."""
    lower = arena.lower({"f": File(b"lower"), "g": File(b"lower")})
    with arena.mount(lower) as mount:
        (mount / "f").write_bytes(b"upper")
        os.link(mount / "g", mount / "h")
        mount.merged.chmod(mode)
    before = stat.S_IMODE(arena.upper.stat().st_mode)
    with mount:
        assert stat.S_IMODE(mount.merged.stat().st_mode) == mode == before == stat.S_IMODE(arena.upper.stat().st_mode)
        mount.merged.chmod(0o755)
        assert {name: (mount / name).read_bytes() for name in sorted(os.listdir(mount.merged))} == {
            "f": b"upper",
            "g": b"lower",
            "h": b"lower",
        }
        assert (mount / "g").stat().st_nlink == 2
