"""The kernel engine: the same command line as the fuse engine, the same umount, nothing left beside UPPER."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.shown import Engine, run, shown
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Link, Mark, Node, Whiteout
from tests.support.mountinfo import mount_at

pytestmark = pytest.mark.actors("root", "userns")


def _kernel(arena: Arena, *arguments: str | Path, code: int = 0) -> str:
    return run(arena, "--engine", "kernel", *arguments, code=code)


def test_names_that_need_escapes(arena: Arena) -> None:
    """Colons, commas, backslashes, quotes and spaces in the paths of all directories."""
    strange = 'a:b,c\\d"e f'
    lower = arena.lower({"file": File(b"x")}, f"{strange} lower")
    upper = arena.root / f"{strange} upper"
    with shown(arena, Engine.KERNEL, [lower], upper, name=f"{strange} merged") as merged:
        (merged / "new").write_bytes(b"new")
    assert os.listdir(upper) == ["new"]


def test_one_lower_without_an_upper(arena: Arena) -> None:
    """Overlayfs itself wants two; all names are listed, and nothing can be written."""
    lower, merged = arena.lower({"file": File(b"x"), "dir/inner": File()}), arena.directory("merged")
    _kernel(arena, "--read-only", lower, merged)
    assert sorted(os.listdir(merged)) == ["dir", "file"]
    with pytest.raises(OSError, match="Read-only"):
        (merged / "new").write_bytes(b"")
    run(arena, "umount", merged)


def test_ephemeral(arena: Arena) -> None:
    """Gone with the mount; no directory is left in TMPDIR."""
    lower, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    _kernel(arena, "--ephemeral", "--size", "1m", lower, merged)
    (merged / "new").write_bytes(b"new")
    with pytest.raises(OSError, match="No space"):
        (merged / "big").write_bytes(bytes(2 << 20))
    run(arena, "umount", merged)
    _kernel(arena, "--ephemeral", lower, merged)
    assert os.listdir(merged) == ["file"]
    run(arena, "umount", merged)


def test_in_place(arena: Arena) -> None:
    """MERGED is LOWER."""
    lower = arena.lower({"file": File(b"x")})
    _kernel(arena, lower, arena.upper, lower)
    (lower / "new").write_bytes(b"new")
    run(arena, "umount", lower)
    assert os.listdir(lower) == ["file"]
    assert os.listdir(arena.upper) == ["new"]


def test_a_work_directory_that_was_given_stays(arena: Arena) -> None:
    """Only the default one is removed."""
    lower, merged, work = arena.lower({"file": File()}), arena.directory("merged"), arena.directory("work")
    _kernel(arena, "--work", work, lower, arena.upper, merged)
    (merged / "file").unlink()
    run(arena, "umount", merged)
    assert work.exists()
    with shown(arena, Engine.FUSE, [lower], arena.upper, options=["--work", str(work)]) as again:
        assert os.listdir(again.root) == []


def test_volatile(arena: Arena) -> None:
    """After an orderly end the upper can be mounted again, by either engine."""
    lower = arena.lower({"file": File()})
    for engine in (Engine.KERNEL, Engine.FUSE, Engine.KERNEL):
        with shown(arena, engine, [lower], arena.upper, options=["--volatile"]) as merged:
            (merged / engine.value).write_bytes(b"x")
    assert sorted(os.listdir(arena.upper)) == ["fuse", "kernel"]


def test_an_upper_in_use(arena: Arena) -> None:
    """No engine takes what the kernel engine has, and a busy mount is not taken away."""
    lower, merged, other = arena.lower({"file": File()}), arena.directory("merged"), arena.directory("other")
    _kernel(arena, lower, arena.upper, merged)
    for engine in ("fuse", "kernel", "ranch"):
        said = run(arena, "--engine", engine, lower, arena.upper, other, code=4)
        assert said.count("\n") == 1 and "in use" in said
    with subprocess.Popen(["sleep", "60"], cwd=merged) as sleeper:
        assert str(sleeper.pid) in run(arena, "umount", merged, code=4)
        sleeper.kill()
    assert "is no ranch" in run(arena, "umount", "--discard", merged, code=3)
    run(arena, "umount", merged)
    assert mount_at(merged) is None


@pytest.mark.parametrize(
    ("node", "name", "mark"),
    [
        (Whiteout(Mark.WH_FILE), "dir/gone", "whiteout of another format"),
        (Dir(xattrs={"user.fuseoverlayfs.opaque": b"y"}), "dir/opaque", "user.fuseoverlayfs.opaque"),
        (Dir(xattrs={"user.overlay.redirect": b"elsewhere"}), "dir/moved", "user.overlay.redirect"),
    ],
)
def test_marks_that_the_kernel_would_misread(arena: Arena, node: Node, name: str, mark: str) -> None:
    """Refused, with the file and the mark; the fuse engine is taken by `fastest`."""
    top, bottom = arena.lower({name: node}), arena.lower({"file": File()})
    merged = arena.directory("merged")
    said = _kernel(arena, f"{top}:{bottom}", arena.upper, merged, code=5)
    assert "dir/" in said and mark in said and said.count("\n") == 1
    assert not arena.upper.exists()


def test_names_of_one_file_that_the_fuse_engine_knows(arena: Arena) -> None:
    """A name that nobody looked at shows what was written under the other, also where there is no index."""
    lower = arena.lower({"first": File(b"old"), "dir/second": Link(target="first")})
    with shown(arena, Engine.FUSE, [lower], arena.upper) as merged:
        (merged / "first").write_bytes(b"new")
    for engine in (Engine.KERNEL, Engine.RANCH, Engine.FUSE):
        with shown(arena, engine, [lower], arena.upper) as merged:
            assert (merged / "dir/second").read_bytes() == b"new", engine


def test_stored_owners(arena: Arena) -> None:
    """A layer that only the fuse engine can show is refused by the others, with its name."""
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    with shown(arena, Engine.FUSE, [lower], arena.upper, options=["--fakeroot"]) as fake:
        (fake / "new").write_bytes(b"new")
    for engine in ("kernel", "ranch"):
        said = run(arena, "--engine", engine, lower, arena.upper, merged, code=5)
        assert str(arena.upper) in said and "keeps owners" in said and said.count("\n") == 1
    said = run(arena, "--engine", "fastest", lower, arena.upper, merged)
    assert "the fuse engine is used (not kernel: " in said
    run(arena, "umount", merged)


@pytest.mark.actors("userns")
def test_an_upper_on_a_filesystem_that_cannot_serve(arena: Arena) -> None:
    """A FUSE filesystem as upper is refused by overlayfs itself; the reason names the filesystem."""
    lower, merged, over = arena.lower({"file": File()}), arena.directory("merged"), arena.directory("over")
    run(arena, "--engine", "fuse", lower, arena.upper, merged)
    said = run(arena, "--engine", "kernel", lower, merged / "upper", over, code=5)
    assert said.count("\n") == 1 and "fuse.fuseunion" in said
    assert os.listdir(merged) == ["file"]
    run(arena, "umount", merged)


def test_directories_are_renamed_by_redirects(arena: Arena) -> None:
    """redirect_dir=on: one engine goes on with what the other renamed. In a user namespace overlayfs has no redirects,
    so the option and what it wrote are refused."""
    lower, merged = arena.lower({"d/f": File(b"f"), "d/sub/g": File(b"g")}), arena.directory("merged")
    native = not arena.actor.in_namespace
    given = ["-o", "redirect_dir=on", lower, arena.upper, merged]
    if not native:
        assert "user namespace" in _kernel(arena, *given, code=5)
    for number, engine in enumerate(("fuse", "kernel", "fuse", "kernel") if native else ("fuse",)):
        run(arena, "--engine", engine, *given)
        (merged / ("d" if not number else f"d{number}")).rename(merged / f"d{number + 1}")
        (merged / f"d{number + 1}/sub").rename(merged / "sub")
        (merged / "sub").rename(merged / f"d{number + 1}/sub")
        run(arena, "umount", merged)
        assert not [path for path in arena.upper.rglob("*") if path.is_file()], "nothing was copied up"
    if not native:
        assert "overlay.redirect" in _kernel(arena, lower, arena.upper, merged, code=5)
        return
    run(arena, "--engine", "kernel", lower, arena.upper, merged)
    assert (merged / "d4/sub/g").read_bytes() == b"g" and sorted(os.listdir(merged / "d4")) == ["f", "sub"]
    run(arena, "umount", merged)


def test_files_without_data(arena: Arena) -> None:
    """metacopy=on: one engine reads what the other left; in a user namespace option and files are refused, and a ranch
    refuses the files anywhere."""
    lower, merged = arena.lower({"d/f": File(bytes(range(256)) * 400)}), arena.directory("merged")
    native = not arena.actor.in_namespace
    given = ["-o", "metacopy=on", lower, arena.upper, merged]
    if not native:
        assert "user namespace" in _kernel(arena, *given, code=5)
    for number, engine in enumerate(("fuse", "kernel", "fuse") if native else ("fuse",)):
        run(arena, "--engine", engine, *given)
        (merged / "d/f").chmod(0o600 + number)
        assert (merged / "d/f").read_bytes() == (lower / "d/f").read_bytes()
        run(arena, "umount", merged)
        assert (arena.upper / "d/f").stat().st_blocks <= 16, "nothing was copied up"
    assert "metacopy" in run(arena, "--engine", "ranch", lower, arena.upper, merged, code=5)
    if not native:
        assert "overlay.metacopy" in _kernel(arena, lower, arena.upper, merged, code=5)
