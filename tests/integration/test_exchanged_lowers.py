"""An upper over other lowers than before: one warning to a person, a line in the log for a program, no false alarm.

Overlayfs has the like with its option `index` (ESTALE). The promise is in docs/differences.md.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import processes, tree
from tests.support.arena import Arena
from tests.support.caller import make_caller
from tests.support.fake_store import FakeStore
from tests.support.layers import File
from tests.support.waiting import wait_until

WARNING = "was last mounted over other lower directories, or in another order"


def said(arena: Arena, *arguments: str | Path) -> str:
    """What a mount that comes about, and is then unmounted, says."""
    merged = arena.directory("merged")
    done = arena.place.fuseunion(*arguments, merged, cwd=arena.root)
    assert done.returncode == 0, done.stderr
    assert (merged / "file").read_bytes() == b"x"
    assert not [name for name in os.listxattr(merged) if "lowers" in name]
    gone = arena.place.fuseunion("umount", merged)
    assert (gone.returncode, gone.stderr) == (0, "")
    return done.stderr


def exchange(arena: Arena) -> list[str]:
    """Another directory of the same name and content."""
    arena.release(arena.root / "top")
    (arena.root / "top").rename(arena.root / "was-top")
    arena.lower({"file": File(b"x")}, "top")
    return ["top:base"]


def turn_round(arena: Arena) -> list[str]:
    return ["base:top"]


def add(arena: Arena) -> list[str]:
    arena.lower({}, "patches")
    return ["patches:top:base"]


def take_away(arena: Arena) -> list[str]:
    return ["base"]


def layers(arena: Arena) -> str:
    """Two lowers, by paths from the arena's root."""
    for name in ("top", "base"):
        arena.lower({"file": File(b"x")}, name)
    return "top:base"


@pytest.mark.parametrize("change", [exchange, turn_round, add, take_away])
def test_a_change_is_one_warning(arena: Arena, change: Callable[[Arena], list[str]]) -> None:
    lowers = layers(arena)
    assert said(arena, lowers, "upper") == ""
    assert said(arena, lowers, "upper") == ""
    changed = change(arena)
    assert said(arena, *changed, "upper") == (
        f"fuseunion: warning: '{arena.upper}' {WARNING}; if that is not intended, unmount before you change anything\n"
    )
    assert said(arena, *changed, "upper") == ""


def test_the_same_layers_under_other_names(arena: Arena) -> None:
    lowers = layers(arena)
    assert said(arena, lowers, "upper") == ""
    arena.release(arena.root / "base")
    (arena.root / "link").symlink_to("top")
    (arena.root / "base").rename(arena.root / "moved")
    (arena.root / "upper").rename(arena.root / "moved-upper")
    assert said(arena, f"link:{arena.root}/moved", "moved-upper") == ""


def test_what_has_no_upper_of_its_own_is_neither_warned_of_nor_marked(arena: Arena) -> None:
    lowers = layers(arena)
    assert said(arena, lowers, "upper") == ""
    before = tree.snapshot(arena.upper)
    assert said(arena, "--read-only", "base") == ""
    assert said(arena, "--ephemeral", "base") == ""
    assert said(arena, "-o", "ro,upperdir=upper", "base") == ""
    changed = tree.differences(before, tree.snapshot(arena.upper), tree.EXACT)
    assert not changed
    assert said(arena, lowers, "upper") == ""


def test_a_mount_that_fails_marks_nothing(arena: Arena) -> None:
    lowers = layers(arena)
    assert said(arena, lowers, "upper") == ""
    arena.directory("merged")
    done = arena.place.fuseunion("-o", "xattr_permissions=7", "base", "upper", "merged", cwd=arena.root)
    assert done.returncode == 2
    arena.directory(".upper.fuseunion-work/foreign")
    done = arena.place.fuseunion("base", "upper", "merged", cwd=arena.root)
    assert done.returncode == 3
    (arena.root / ".upper.fuseunion-work/foreign").rmdir()
    assert said(arena, lowers, "upper") == ""


@pytest.mark.actors("root", "userns")
def test_between_the_engines(arena: Arena) -> None:
    """Each of them warns, and none hides it from the next."""
    lowers = layers(arena)
    engines = ["fuse", "kernel", "ranch", "fuse"]
    for engine in engines:
        assert said(arena, "--engine", engine, lowers, "upper") == ""
    for old, engine in zip([lowers, "base", lowers], engines[1:], strict=True):
        new = "base" if old == lowers else lowers
        assert WARNING in said(arena, "--engine", engine, new, "upper")


@pytest.mark.root
@pytest.mark.actors("root")
def test_root_and_a_user_take_turns(arena: Arena) -> None:
    """A user does not see root's mark; root sees both, and keeps both true."""
    layers(arena)
    user = arena.actor.user
    merged = arena.directory("merged")
    for path in (arena.root, merged):
        os.chown(path, user.uid, user.gid)
    as_user = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--"]
    interpreter = arena.place.interpreter

    def by(prefix: list[str], lowers: str) -> bool:
        command = [*prefix, *interpreter.command(lowers, "upper", "merged")]
        done = subprocess.run(
            command, env=arena.place.environment(), cwd=arena.root, capture_output=True, text=True, check=True
        )
        assert arena.place.fuseunion("umount", merged).returncode == 0
        return WARNING in done.stderr

    assert not by([], "top:base")
    os.chown(arena.upper, user.uid, user.gid)
    assert not by(as_user, "top:base")
    assert by([], "base")
    assert not by(as_user, "base")
    assert by(as_user, "top:base")
    assert not by([], "base")  # as the last time that root did it
    assert not by(as_user, "base")


@pytest.mark.actors("root", "userns")
def test_a_mount_program_is_silent_and_logs_it(arena: Arena) -> None:
    store, log = FakeStore(arena), arena.root / "logs/log"
    base, second, layer = store.layer("a1", {"file": File(b"x")}), store.layer("b2", {}), store.layer("c3")
    caller = make_caller(arena)
    named = arena.root / "fuse-overlayfs"
    named.symlink_to(caller.program)

    def mounted(lowers: str) -> str:
        options = f"lowerdir={lowers},{layer.writable()},"
        done = subprocess.run(
            [named, "--log-file", log, "-o", options, layer.merged],
            env=arena.place.environment(), cwd=store.home, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert (layer.merged / "file").read_bytes() == b"x"
        caller.unmount(layer.merged)
        caller.await_exit(set())
        text = log.read_text()
        log.write_text("")
        return text

    # As podman starts a container twice, and looks at it for a diff and a commit meanwhile.
    assert WARNING not in mounted(f"{second.link}:{base.link}")
    with caller.mounted(f"lowerdir={layer.diff}:{second.link}:{base.link}", layer.merged, store.home):
        pass
    assert WARNING not in mounted(f"l/{second.link.name}:l/{base.link.name}")
    assert WARNING in mounted(f"{base.link}")
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")


def test_lowers_without_lasting_numbers(arena: Arena) -> None:
    """A FUSE filesystem may number a directory anew each time: nothing is concluded from that."""
    base = arena.lower({"d/file": File(b"x")}, "base")
    other = arena.lower({"d/file": File(b"x")}, "other")
    inner = arena.directory("inner")
    for lower in (base, other):
        assert arena.place.fuseunion("--read-only", lower, inner).returncode == 0
        assert said(arena, inner / "d", "upper") == ""
        assert arena.place.fuseunion("umount", inner).returncode == 0
