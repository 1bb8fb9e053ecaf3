"""A ranch over a lower that root owns, made by somebody who can give nothing to root: what a ranch is for."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from tests.engines.killing import kill_at
from tests.engines.ranching import CAPABILITY, MAY_BIND, Facts, is_link, of_union
from tests.engines.shown import run
from tests.support.acl import ACCESS, DEFAULT, with_named_user
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Link, Name, Node, Symlink, build
from tests.support.user import OTHER_GROUP

pytestmark = [pytest.mark.root, pytest.mark.actors("user", "denied", "userns", "lone")]

LOWER: dict[Name, Node] = {
    "dir/file": File(b"file", mode=0o644),
    "dir/sub/deep": File(b"deep", mode=0o644),
    "dir/sub/other": File(b"other", mode=0o644),
    "shared": Dir(mode=0o2775, gid=OTHER_GROUP),
    "shared/file": File(b"shared", mode=0o644, gid=OTHER_GROUP),
    "shared/also": File(b"shared", mode=0o644, gid=OTHER_GROUP),
    "special": Dir(mode=0o7755),
    "special/file": File(b"", mode=0o644),
    "closed": Dir(mode=0o555),
    "closed/file": File(b"closed", mode=0o444),
    "acl": Dir(mode=0o755, xattrs={DEFAULT: with_named_user(12345, group=7)}),
    "acl/file": File(b"acl", mode=0o644, xattrs={ACCESS: with_named_user(12345, perm=4, owner=6, group=4, other=4)}),
    "read-only": File(b"read-only", mode=0o444),
    "root-runs": File(b"root-runs", mode=0o6755),
    "able": File(b"able", mode=0o555, xattrs={CAPABILITY: MAY_BIND}),
    "also-able": File(b"able", mode=0o6555, xattrs={CAPABILITY: MAY_BIND}),
    "one": File(b"several", mode=0o444, xattrs={"user.mine": b"value"}),
    "two": Link(target="one"),
    "secret": File(b"secret", mode=0o600),
    "fifo": Device(mode=0o644),
    "null": Device(mode=0o600, kind=stat.S_IFCHR, major=1, minor=3),
    "link": Symlink(target="dir/file"),
}


@pytest.fixture
def lower(arena: Arena) -> Path:
    """Made before the test becomes its actor."""
    return build(arena.root / "lower", LOWER)


def _ranch(arena: Arena, lower: Path, *arguments: str) -> Path:
    arena.guard(lower)
    merged = arena.directory("merged")
    run(arena, "--engine", "ranch", *arguments, lower, arena.upper, merged)
    return merged


def _is_own(facts: Facts) -> bool:
    return (facts.uid, facts.gid) == (os.geteuid(), os.getegid())


def _entries(facts: Facts, name: str) -> int:
    return len(dict(facts.xattrs)[name]) // 8


def _moved(name: str) -> str:
    return f"moved-{name.replace('/', '-')}"


def _change(merged: Path) -> None:
    (merged / "dir/sub/new").write_text("new")
    (merged / "dir/sub/other").unlink()
    (merged / "shared/new").write_text("new")
    (merged / "special/new").write_text("new")
    (merged / "acl/new").write_text("new")
    (merged / "closed").chmod(0o755)
    (merged / "closed/new").write_text("new")


def _check(arena: Arena, lower: Path) -> None:
    """What `_change` did is in the union, and the directories belong to whom docs/engines.md says."""
    found = of_union(lower, arena.upper)
    assert "/dir/sub/other" not in found and found["/dir/sub/deep"].content == "deep"
    for name in ("/dir/sub", "/shared", "/special", "/acl", "/closed"):
        assert found[f"{name}/new"].content == "new"
        assert found[name].uid == os.geteuid(), name
    assert _is_own(found["/dir"]) and found["/dir"].mode == 0o755
    assert _is_own(found["/special"]) and found["/special"].mode == 0o1755
    assert _is_own(found["/closed"]) and found["/closed"].mode == 0o755
    if OTHER_GROUP in os.getgroups():
        assert found["/shared"].gid == OTHER_GROUP and found["/shared"].mode == 0o2775
        assert found["/shared/new"].gid == OTHER_GROUP
    else:
        assert _is_own(found["/shared"]) and found["/shared"].mode == 0o775
    # The entry for an id without a number is left out.
    assert _entries(found["/acl"], DEFAULT) == (5 if arena.actor.role is Role.USER else 4)


def test_umount(arena: Arena, lower: Path) -> None:
    """New files in, and deletions from, directories that have to be copied up."""
    merged = _ranch(arena, lower)
    _change(merged)
    run(arena, "umount", merged)
    _check(arena, lower)


def test_sync(arena: Arena, lower: Path) -> None:
    """Twice, and then umount, which finds nothing to do."""
    merged = _ranch(arena, lower)
    _change(merged)
    run(arena, "sync", merged)
    arena.guard(arena.upper)
    run(arena, "sync", merged)
    run(arena, "umount", merged)
    arena.release(arena.upper)
    _check(arena, lower)


def test_repair(arena: Arena, lower: Path) -> None:
    """After the collecting was killed, at its end and in the middle."""
    merged = _ranch(arena, lower)
    _change(merged)
    kill_at(arena, "mknodat", 1, "umount", merged)
    run(arena, "doctor", "--repair", arena.upper)
    _check(arena, lower)


def test_what_is_elsewhere(arena: Arena, lower: Path) -> None:
    """Links that were moved, or got another name, are copies: without what would speak for root."""
    merged = _ranch(arena, lower)
    for name in ("dir/file", "read-only", "root-runs", "able", "fifo", "link", "shared/file"):
        os.rename(merged / name, merged / "dir/sub" / _moved(name))
    os.rename(merged / "closed", merged / "closed-moved")
    for name in ("one", "dir/sub/deep", "acl/file", "also-able", "shared/also"):
        os.link(merged / name, merged / f"{name}-linked", follow_symlinks=False)
    run(arena, "umount", merged)
    found = of_union(lower, arena.upper)

    def moved(name: str) -> Facts:
        return found[f"/dir/sub/{_moved(name)}"]

    assert moved("dir/file").content == "file" and _is_own(moved("dir/file"))
    assert moved("read-only").mode == 0o444
    assert moved("root-runs").mode == 0o755
    assert moved("able").content == "able"
    # The root of a namespace may give capabilities that count in it.
    in_namespace = arena.actor.in_namespace
    assert (
        (CAPABILITY in dict(moved("able").xattrs)) == (CAPABILITY in dict(found["/also-able"].xattrs)) == in_namespace
    )
    assert moved("fifo").kind == "fifo" and moved("fifo").mode == 0o644
    assert moved("link").content == "dir/file"
    group = OTHER_GROUP if OTHER_GROUP in os.getgroups() else os.getegid()
    assert moved("shared/file").gid == found["/shared/also"].gid == found["/shared/also-linked"].gid == group
    assert found["/closed-moved"].mode == 0o555 and found["/closed-moved/file"].content == "closed"
    assert found["/dir/sub/deep-linked"].links == "/dir/sub/deep"
    assert found["/one-linked"].links == found["/two"].links == "/one"
    assert found["/one"].mode == 0o444 and found["/one"].xattrs == (("user.mine", b"value"),)
    assert found["/also-able-linked"].links == "/also-able" and found["/also-able"].mode == 0o555
    assert found["/acl/file-linked"].links == "/acl/file"
    assert _entries(found["/acl/file"], ACCESS) == (5 if arena.actor.role is Role.USER else 4)
    assert all(_is_own(found[name]) for name in ("/one", "/two", "/dir/sub/deep-linked", "/closed-moved"))


def test_promoted_files(arena: Arena, lower: Path) -> None:
    """Also in a directory that may not be written; what was promoted and not changed vanishes."""
    merged = _ranch(arena, lower)
    run(arena, "promote", merged, "closed/file", "root-runs", "read-only", "shared/file")
    (merged / "closed/file").chmod(0o600)
    (merged / "closed/file").write_text("changed")
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == ["closed"]
    found = of_union(lower, arena.upper)
    assert found["/closed/file"].content == "changed" and found["/closed/file"].mode == 0o600
    assert found["/closed"].mode == 0o555


@pytest.mark.parametrize("name", ["secret", "null"])
def test_what_cannot_be_copied(arena: Arena, lower: Path, name: str) -> None:
    """It is named, nothing is lost, and what the message says helps."""
    merged = _ranch(arena, lower)
    (merged / "dir/new").write_text("new")
    os.rename(merged / name, merged / "dir/moved")
    said = run(arena, "umount", merged, code=3)
    assert said.count("\n") == 1 and said.startswith("fuseunion: 'dir/moved' ") and "move it back" in said
    os.rename(merged / "dir/moved", merged / name)
    assert is_link(merged / name)
    run(arena, "umount", merged)
    assert sorted(os.listdir(arena.upper)) == ["dir"]
    assert os.listdir(arena.upper / "dir") == ["new"]


def test_moved_away_and_back(arena: Arena, lower: Path) -> None:
    """A link, or a directory, that is back where it was shows the lower again, though it was collected elsewhere."""
    merged = _ranch(arena, lower)
    os.mkdir(merged / "elsewhere")
    for name in ("dir", "two"):
        os.rename(merged / name, merged / "elsewhere" / name)
    run(arena, "sync", merged)
    assert sorted(os.listdir(arena.upper)) == ["dir", "elsewhere", "two"]
    for name in ("dir", "two"):
        os.rename(merged / "elsewhere" / name, merged / name)
    os.rmdir(merged / "elsewhere")
    run(arena, "umount", merged)
    found = of_union(lower, arena.upper)
    assert found["/dir/sub/deep"].content == "deep" and found["/two"].links == "/one"
    assert not [path for path in arena.upper.rglob("*") if not path.is_dir()]


@pytest.mark.actors("user")
def test_collected_outside_of_its_namespace(arena: Arena, lower: Path) -> None:
    """Where the numbers of owners mean something else: nothing counts as changed for that."""
    arena.guard(lower)
    merged = arena.directory("merged")
    make = arena.place.interpreter.command("--engine", "ranch", *map(str, (lower, arena.upper, merged)))
    subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-ec",
            f"{shlex.join(make)}; cd {merged}; echo new >dir/sub/new",
        ],
        env=arena.place.environment(),
        cwd="/",
        check=True,
    )
    assert os.listdir(merged) == [], "the mounts have gone with the namespace"
    run(arena, "doctor", "--repair", arena.upper)
    names = sorted(str(path.relative_to(arena.upper)) for path in arena.upper.rglob("*"))
    assert names == ["dir", "dir/sub", "dir/sub/new"]
