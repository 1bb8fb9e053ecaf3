"""A ranch where something is in the way, is missing, or was interrupted."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.killing import kill_at
from tests.engines.ranching import (
    LOWER,
    everybody,
    forked,
    is_link,
    of_directory,
    of_union,
    ranch,
    run_until_killed,
    with_mounts,
)
from tests.engines.shown import run
from tests.support import libc, tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Dir, File, build


@everybody
def test_directories_without_permissions(arena: Arena) -> None:
    """A directory that its owner closed is shown closed, changed after the owner opened it, and left closed."""
    merged = ranch(arena, arena.lower({"closed": Dir(mode=0o555), "closed/file": File(), "closed/other": File()}))
    assert os.lstat(merged / "closed").st_mode & 0o777 == 0o555
    (merged / "closed").chmod(0o755)
    (merged / "closed/file").unlink()
    (merged / "closed/new").write_bytes(b"new")
    (merged / "closed").chmod(0o500)
    run(arena, "umount", merged)
    assert os.lstat(arena.upper / "closed").st_mode & 0o777 == 0o500
    assert sorted(os.listdir(arena.upper / "closed")) == ["file", "new"]


@pytest.mark.actors("denied")
def test_closed_directories_when_collecting_is_killed(arena: Arena) -> None:
    """What it lent itself is given back, at whichever change it was killed."""
    lower = arena.lower({"dir/file": File()})
    for number in itertools.count():
        root = arena.directory(f"{number}")
        merged, upper = arena.directory(f"{number}/merged"), arena.directory(f"{number}/upper")
        (upper / "kept").write_text("kept")
        (upper / "kept").chmod(0o200)
        assert forked("--engine", "ranch", "--copy", "*", lower, upper, merged) == 0
        (merged / "dir/sub").mkdir()
        (merged / "dir/sub/new").write_text("new")
        (merged / "dir/sub/new").chmod(0o200)
        (merged / "dir/sub").chmod(0o300)
        (merged / "dir").chmod(0o000)
        expected = of_directory(merged)
        if run_until_killed(number, "umount", merged):
            break
        forked("doctor", "--repair", upper)
        if (root / ".upper.fuseunion-ranch").exists():
            assert forked("umount", merged) == 0, number
        found = of_union(lower, upper)
        for path in ("/dir", "/dir/sub", "/dir/sub/new", "/kept"):
            assert found[path] == expected[path], number
        assert os.listdir(merged) == []
    assert number > 10


@pytest.mark.actors("denied")
def test_what_was_lent_and_then_changed(arena: Arena) -> None:
    """Nobody takes back a mode that the user gave after the kill."""
    merged = ranch(arena, arena.lower({"one/file": File(), "two/file": File()}))
    for name in ("one", "two"):
        (merged / name).chmod(0o300)

    def lent() -> list[str]:
        return [name for name in ("one", "two") if os.lstat(merged / name).st_mode & 0o777 == 0o700]

    for number in itertools.count():
        assert not run_until_killed(number, "sync", merged), "nothing was ever lent"
        if lent():
            break
    (changed,) = lent()
    (merged / changed).chmod(0o750)
    run(arena, "sync", merged)
    modes = {name: os.lstat(arena.upper / name).st_mode & 0o777 for name in ("one", "two")}
    assert modes == {"one": 0o300, "two": 0o300} | {changed: 0o750}
    run(arena, "umount", merged)


@everybody
def test_a_tree_deeper_than_a_path(arena: Arena) -> None:
    """Neither recursion nor PATH_MAX limits what is built, collected and removed."""
    lower = arena.lower({"dir/file": File(b"x")})
    merged = ranch(arena, lower)
    subprocess.run(
        ["python3", "-c", f"import os\nfor i in range(40): os.mkdir('{'d' * 200}'); os.chdir('{'d' * 200}')"],
        cwd=merged,
        check=True,
    )
    run(arena, "umount", merged)
    merged = ranch(arena, lower)
    subprocess.run(["rm", "-r", merged / ("d" * 200)], check=True)
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == []


@everybody
def test_what_an_upper_cannot_hold(arena: Arena) -> None:
    """A name that would be a whiteout stops the collecting, is named, and nothing is lost."""
    merged = ranch(arena, arena.lower(LOWER))
    (merged / "new").write_bytes(b"new")
    (merged / ".wh.one").write_bytes(b"")
    said = run(arena, "umount", merged, code=3)
    assert said.count("\n") == 1 and "'.wh.one' cannot be kept in UPPER" in said
    (merged / ".wh.one").unlink()
    run(arena, "umount", merged)
    assert (arena.upper / "new").read_bytes() == b"new"


@pytest.mark.actors("denied")
def test_a_lower_that_could_be_changed(arena: Arena) -> None:
    """Refused by name, with nothing left behind; allowed when asked for, or when such files are copied."""
    lower = arena.lower(LOWER)
    merged = arena.directory("merged")
    said = run(arena, "--engine", "ranch", lower, arena.upper, merged, code=3)
    assert said.count("\n") == 1 and "could be changed through its link" in said and "--copy" in said
    said = run(arena, "--engine", "ranch", "--depth", "0", "--copy", "one", lower, arena.upper, merged, code=3)
    assert "could be changed" in said
    assert os.listdir(merged) == [] and not arena.upper.exists()
    run(arena, "--engine", "ranch", "--allow-writable-lower", "--copy", "dir/*", lower, arena.upper, merged)
    assert is_link(merged / "one") and not is_link(merged / "dir/two")
    run(arena, "umount", merged)


@with_mounts
def test_a_lower_that_lost_a_file(arena: Arena) -> None:
    """Nobody may change a lower beneath a ranch; if somebody does, the rest is collected all the same."""
    lower = arena.root / "changing"
    build(lower, LOWER)
    merged = ranch(arena, lower)
    (lower / "one").unlink()
    (merged / "new").write_bytes(b"new")
    assert "'one' stood for a file that is gone" in run(arena, "umount", merged)
    assert os.listdir(arena.upper) == ["new"]


@everybody
def test_what_stands_in_the_way(arena: Arena) -> None:
    """Each with one line and the documented exit code, and nothing changed."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    copies = ["--copy", "*"] if arena.actor.role is Role.DENIED else []
    cases: list[tuple[int, str, list[str | Path]]] = [
        (4, "is a ranch already", ["--engine", "ranch", *copies, lower, arena.upper, merged]),
        (4, "another ranch", ["--engine", "ranch", *copies, "--depth", "3", lower, arena.upper, merged]),
        (3, "is not in the ranch", ["promote", merged, "nowhere"]),
        (3, "leads out of", ["promote", merged, "../x"]),
        (3, "is not a ranch", ["promote", lower, "one"]),
        (3, "is neither mounted by fuseunion nor a ranch", ["sync", lower]),
        (2, "give a ranch", ["promote", merged]),
        (2, "give one directory", ["sync"]),
        (2, "unknown option", ["sync", "--now", merged]),
        (2, "expected one of", ["--engine", "horse", lower, arena.upper, merged]),
        (2, "expected one of", ["--links", "hard", lower, arena.upper, merged]),
        (2, "is not a number", ["--depth", "x", lower, arena.upper, merged]),
        (2, "expected SRC:DST", ["--inject", "x", lower, arena.upper, merged]),
        (3, "no ranch", ["doctor", "--repair", lower]),
    ]
    if arena.actor.role is not Role.DENIED:
        cases.append((4, "belongs to the ranch", ["--engine", "fuse", lower, arena.upper, arena.directory("m2")]))
    for code, words, arguments in cases:
        said = run(arena, *arguments, code=code)
        assert said.count("\n") == 1 and words in said, (arguments, said)
    run(arena, "umount", merged)


@everybody
def test_a_ranch_in_use(arena: Arena) -> None:
    """A ranch that a process uses is not taken away; the message names the process."""
    merged = ranch(arena, arena.lower(LOWER))
    with subprocess.Popen(["sleep", "60"], cwd=merged / "dir") as sleeper:
        said = run(arena, "umount", merged, code=4)
        assert str(sleeper.pid) in said
        sleeper.kill()
    run(arena, "umount", merged)


@pytest.mark.actors("userns")
def test_promoting_that_was_killed(arena: Arena) -> None:
    """What it left is never collected, and the same command succeeds."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, "--depth", "0", lower)
    for call in ("mkdirat", "symlinkat", "renameat2"):
        kill_at(arena, call, 1, "promote", "-r", merged, "dir")
    run(arena, "promote", "-r", merged, "dir")
    assert not is_link(merged / "dir") and not is_link(merged / "dir/two")
    run(arena, "umount", merged)
    assert [path for path in tree.snapshot(arena.upper) if path != b"."] in ([], [b"dir"])


@pytest.mark.actors("userns")
def test_a_ranch_outlives_its_namespace(arena: Arena) -> None:
    """When the mounts have gone, the same command brings them back, and without them the rest can be collected."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    (merged / "new").write_bytes(b"new")
    state = arena.root / ".upper.fuseunion-ranch"
    for place in (merged, state / "lower/0"):
        libc.umount(str(place), libc.MNT_DETACH)
    assert os.listdir(merged) == []
    ranch(arena, lower)
    assert (merged / "new").read_bytes() == b"new"
    for place in (merged, state / "lower/0"):
        libc.umount(str(place), libc.MNT_DETACH)
    run(arena, "umount", merged)
    assert (arena.upper / "new").read_bytes() == b"new"
    assert not state.exists()
