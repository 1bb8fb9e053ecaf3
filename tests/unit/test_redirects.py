"""Directories that overlayfs renamed (redirect_dir=on): what they show, and that no nest of them costs more than one
path in each layer."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support.asked import counted
from tests.support.inprocess import in_process
from tests.support.mounts import KernelMount

LAYERS = 12
REDIRECT = "trusted.overlay.redirect"
OPAQUE = "trusted.overlay.opaque"


def test_a_nest_of_redirects_costs_one_path_in_each_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer redirects each directory on the way: looked up as names of the union, that doubles with each layer."""
    lowers = [tmp_path / f"lower{number}" for number in range(LAYERS)]
    for number, lower in enumerate(lowers):
        (lower / "d/d/d").mkdir(parents=True)
        (lower / f"d/d/d/file{number}").touch()
        for path in ("d", "d/d", "d/d/d"):
            os.setxattr(lower / path, REDIRECT, b"/d/d/d")
    with in_process(lowers, None, None) as union:
        with counted(monkeypatch) as asked:
            union.find("d")
        # In all but the first layer the path of three names; of a `.wh.` file nobody asks, since each is listed.
        assert len(asked) == 1 + 3 * (LAYERS - 1)
        assert set(union.names("d")) == {"d", *(f"file{number}" for number in range(1, LAYERS))}


def test_a_redirect_grows_no_path_without_end(tmp_path: Path) -> None:
    """Redirects that make the path of the next layer longer and longer end with EINVAL, as malformed ones do."""
    name = "n" * 250
    lowers = [tmp_path / f"lower{number}" for number in range(4)]
    for lower in lowers:
        (lower / "/".join([name] * 10)).mkdir(parents=True)
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    os.setxattr(top / "d", REDIRECT, os.fsencode("/" + "/".join([name] * 10)))
    os.setxattr(lowers[0] / name, REDIRECT, os.fsencode("/" + "/".join([name] * 10)))
    with in_process([top, *lowers], None, None) as union, pytest.raises(OSError, match="Invalid argument"):
        union.find("d")


NAMES = ["a", "b", "c"]
DIRECTORIES = [first + second for first in NAMES for second in ("", *(f"/{name}" for name in NAMES))]


def _random_layer(layer: Path, chance: random.Random) -> None:
    layer.mkdir()
    for path in sorted(DIRECTORIES):
        place = layer / path
        if not place.parent.is_dir() or chance.random() < 0.25:
            continue
        if chance.random() < 0.1:
            if chance.random() < 0.5:
                place.touch()
            else:
                os.mknod(place, 0o020000, 0)
            continue
        place.mkdir()
        (place / f"in-{layer.name}-{path.replace('/', '-')}").touch()
        mark = chance.random()
        if mark < 0.1:
            os.setxattr(place, OPAQUE, b"y")
        elif mark < 0.35:
            os.setxattr(place, REDIRECT, os.fsencode(chance.choice(NAMES)))
        elif mark < 0.6:
            os.setxattr(place, REDIRECT, os.fsencode("/" + chance.choice(DIRECTORIES)))


def _shown(root: Path) -> set[str]:
    """The names that can be looked up: overlayfs lists a whiteout in a directory that is not merged."""
    return {
        os.path.relpath(os.path.join(path, name), root)
        for path, directories, files in os.walk(root)
        for name in (*directories, *files)
        if os.path.lexists(os.path.join(path, name))
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts overlayfs, reads trusted.*")
@pytest.mark.parametrize("seed", range(60))
def test_what_the_kernel_shows(tmp_path: Path, seed: int) -> None:
    """Random layers with redirects of both kinds, opaque directories, whiteouts and files show what overlayfs shows."""
    chance = random.Random(seed)
    lowers = [tmp_path / f"lower{number}" for number in range(chance.choice([2, 3, 4, 5]))]
    for lower in lowers:
        _random_layer(lower, chance)
    (tmp_path / "merged").mkdir()
    with KernelMount(lowers, None, tmp_path / "merged", options=("redirect_dir=follow", "metacopy=off")) as kernel:
        expected = _shown(kernel.merged)
    with in_process(lowers, None, None) as union:
        assert {path[1:] for path in union.tree()} == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts overlayfs, reads trusted.*")
def test_what_the_kernel_renamed(tmp_path: Path) -> None:
    """Directories that overlayfs moved in the upper, one into a new directory in which no lower takes part."""
    upper, lowers = tmp_path / "upper", [tmp_path / "top", tmp_path / "bottom"]
    (tmp_path / "merged").mkdir()
    for lower in lowers:
        for directory in ("one/deep/deeper", "two", "three"):
            (lower / directory).mkdir(parents=True)
            (lower / directory / f"in-{lower.name}").touch()
    with KernelMount(lowers, upper, tmp_path / "merged", options=("redirect_dir=on", "metacopy=off")) as kernel:
        (kernel / "new").mkdir()
        (kernel / "one").rename(kernel / "new/moved")
        (kernel / "new/moved/deep").rename(kernel / "new/moved/shallow")
        (kernel / "new/moved/shallow/deeper").rename(kernel / "two/from-deep")
        (kernel / "three").rename(kernel / "four")
        expected = _shown(kernel.merged)
    (tmp_path / "work").mkdir()
    with in_process(lowers, upper, tmp_path / "work") as union:
        assert {path[1:] for path in union.tree()} == expected
