"""One upper goes from engine to engine, and every one of them shows, and leaves, the same tree."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.shown import Engine, Shown, engines_of, seen, shown
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node, Symlink

LOWER: dict[Name, Node] = {
    "kept": File(b"kept"),
    "written": File(b"lower"),
    "replaced": File(b"lower"),
    "removed": File(b"lower"),
    "moved": File(b"moved"),
    "back": File(b"lower"),
    "link": Symlink(target="kept"),
    "dir/kept": File(b"kept"),
    "dir/removed": File(b"lower"),
    "dir/sub/deep": File(b"deep", mode=0o640),
    "gone/a/b": File(),
    "reborn/old": File(b"old"),
    "reborn/sub/old": File(b"old"),
    "now-a-file/x": File(),
    "now-a-dir": File(),
    "mode": Dir(mode=0o755),
    "tree/one": File(b"one"),
    "tree/sub/two": File(b"two"),
}


def first(tree: Shown) -> None:
    """What the first engine is asked to do."""
    tree.promote("written")
    with open(tree / "written", "ab") as file:
        file.write(b"+1")
    _edit(tree / "replaced", b"first")
    (tree / "removed").unlink()
    (tree / "back").unlink()
    (tree / "dir/removed").unlink()
    shutil.rmtree(tree / "gone")
    shutil.rmtree(tree / "reborn")
    (tree / "reborn").mkdir()
    (tree / "reborn/new").write_bytes(b"new")
    os.setxattr(tree / "reborn/new", "user.mine", b"value")
    os.rename(tree / "moved", tree / "dir/moved")
    shutil.rmtree(tree / "now-a-file")
    (tree / "now-a-file").write_bytes(b"a file now")
    (tree / "now-a-dir").unlink()
    (tree / "now-a-dir").mkdir(mode=0o700)
    (tree / "mode").chmod(0o711)
    (tree / "new").write_bytes(b"new")
    os.link(tree / "new", tree / "dir/new-link")
    os.symlink("kept", tree / "new-symlink")
    os.mkfifo(tree / "fifo", 0o600)
    # As mv(1) does it where rename(2) says EXDEV.
    subprocess.run(["mv", tree / "tree", tree / "dir/tree"], check=True)


def second(tree: Shown) -> None:
    """What the second engine is asked to do with what the first one left."""
    with open(tree / "written", "ab") as file:
        file.write(b"+2")
    _edit(tree / "dir/moved", b"second")
    (tree / "back").write_bytes(b"back again")
    (tree / "new").unlink()
    (tree / "gone").mkdir()
    (tree / "gone/c").write_bytes(b"c")
    shutil.rmtree(tree / "reborn")
    (tree / "now-a-file").unlink()
    (tree / "dir/sub/deep").unlink()
    (tree / "dir/sub").rmdir()
    (tree / "dir/tree/sub/two").unlink()
    (tree / "replaced").chmod(0o600)
    os.rename(tree / "now-a-dir", tree / "dir/renamed")


def nothing(tree: Shown) -> None:
    """Only look."""


def _edit(path: Path, content: bytes) -> None:
    path.with_name("temporary").write_bytes(content)
    os.replace(path.with_name("temporary"), path)


def _pairs(arena: Arena) -> list[tuple[Engine, Engine]]:
    engines = engines_of(arena.actor.role)
    return list(itertools.product(engines, engines))


@pytest.mark.limit(300)
@pytest.mark.actors("root", "user", "userns", "denied")
def test_every_pair_of_engines(arena: Arena) -> None:
    """Each engine goes on with what each engine left, as a plain directory does."""
    lower = arena.lower(LOWER)
    expected: list[dict[bytes, tuple[object, ...]]] = []
    for step in (first, second):
        with shown(arena, Engine.PLAIN, [lower], arena.upper, name="plain") as plain:
            step(plain)
            expected.append(seen(plain.root))
    for number, (one, other) in enumerate(_pairs(arena)):
        upper = arena.root / f"upper{number}"
        steps: list[tuple[Engine, Callable[[Shown], None], dict[bytes, tuple[object, ...]]]] = [
            (one, first, expected[0]),
            (other, nothing, expected[0]),
            (other, second, expected[1]),
            (one, nothing, expected[1]),
        ]
        for engine, step, wanted in steps:
            with shown(arena, engine, [lower], upper) as merged:
                step(merged)
                got = seen(merged.root)
            assert got == wanted, f"{one.value} then {other.value}: {engine.value} shows something else"


@pytest.mark.actors("root", "userns")
def test_a_look_changes_nothing(arena: Arena) -> None:
    """A ranch that nobody changed leaves UPPER bit for bit as it was."""
    lower = arena.lower(LOWER)
    with shown(arena, Engine.FUSE, [lower], arena.upper) as merged:
        first(merged)
    arena.guard(arena.upper)
    for engine in (Engine.RANCH, Engine.RANCH_COPIES):
        with shown(arena, engine, [lower], arena.upper):
            pass
    arena.check_lowers()
