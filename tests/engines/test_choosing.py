"""Which engine is taken, what is said about it, and that none is taken in silence that cannot honour an option."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.shown import run
from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mount_at

MS_REMOUNT, MS_NODEV = 32, 4


def _lower(arena: Arena) -> Path:
    return arena.lower({"file": File(b"x")})


def _type(merged: Path) -> str:
    """What lies on MERGED."""
    mount = mount_at(merged)
    return mount.fstype if mount is not None else "none"


def _without_fuse() -> None:
    """Take /dev/fuse away in this mount namespace: a device cannot be opened on a mount without devices."""
    libc.mount("/dev/fuse", "/dev/fuse", "none", libc.MS_BIND)
    libc.mount("none", "/dev/fuse", "none", libc.MS_BIND | MS_REMOUNT | MS_NODEV)


def test_auto_is_fuse_and_says_nothing(arena: Arena) -> None:
    """The plain case."""
    merged = arena.directory("merged")
    assert run(arena, _lower(arena), arena.upper, merged) == ""
    assert _type(merged) == "fuse.fuseunion"
    run(arena, "umount", merged)


@pytest.mark.actors("userns")
def test_auto_without_fuse_is_kernel(arena: Arena) -> None:
    """One line says which engine is taken and why not fuse."""
    _without_fuse()
    merged = arena.directory("merged")
    said = run(arena, _lower(arena), arena.upper, merged)
    assert said.startswith("fuseunion: the kernel engine is used (not fuse: cannot open /dev/fuse")
    assert said.count("\n") == 1
    assert _type(merged) == "overlay"
    (merged / "new").write_bytes(b"new")
    run(arena, "umount", merged)
    assert sorted(os.listdir(arena.root)) == ["logs", "lower0", "merged", "upper"]


@pytest.mark.actors("root", "userns")
@pytest.mark.parametrize(
    ("words", "file", "directory"),
    [("atime", True, True), ("strictatime,nodiratime", True, False), ("noatime", False, False)],
)
def test_access_times(arena: Arena, words: str, file: bool, directory: bool) -> None:
    """Only overlayfs keeps them, and those of the upper only; so a wish for them leads to the kernel engine."""
    merged, lower = arena.directory("merged"), _lower(arena)
    said = run(arena, "-o", words, lower, arena.upper, merged)
    if words == "noatime":
        assert (said, _type(merged)) == ("", "fuse.fuseunion")
    else:
        assert "the kernel engine is used (not fuse: it cannot keep access times" in said
        assert _type(merged) == "overlay"
    (merged / "new").write_bytes(b"new")
    for path in (merged / "new", merged):
        os.utime(path, (1, 2))
    (merged / "new").read_bytes()
    os.listdir(merged)
    assert ((merged / "new").stat().st_atime > 1, merged.stat().st_atime > 1) == (file, directory)
    run(arena, "umount", merged)


@pytest.mark.actors("userns")
def test_auto_without_fuse_and_with_what_the_kernel_cannot(arena: Arena) -> None:
    """An option rules engines out; the last one that is left is taken, or none."""
    _without_fuse()
    merged, lower = arena.directory("merged"), _lower(arena)
    said = run(arena, "--inject", f"{lower}/file:injected", lower, arena.upper, merged)
    assert "the ranch engine is used (not fuse: it cannot inject files; not kernel: it cannot inject files)" in said
    assert (merged / "injected").read_bytes() == b"x"
    run(arena, "umount", merged)
    said = run(arena, "--uid-map", "0:0:1", lower, arena.upper, merged, code=5)
    assert said.count("\n") == 1
    for words in ("no engine can do this", "not kernel: it has no id maps", "not ranch: it has no id maps"):
        assert words in said


@pytest.mark.actors("denied")
def test_auto_without_anything_is_ranch(arena: Arena) -> None:
    """Where nothing can be mounted a tree of links is made, and the reasons are given."""
    merged = arena.directory("merged")
    said = run(arena, "--copy", "*", _lower(arena), arena.upper, merged)
    assert said.count("\n") == 1
    for words in ("the ranch engine is used", "not fuse: cannot open /dev/fuse", "not kernel: ", "may not mount here"):
        assert words in said
    assert (merged / "file").read_bytes() == b"x"
    run(arena, "umount", merged)


@pytest.mark.actors("denied")
def test_what_stops_the_last_engine(arena: Arena) -> None:
    """The user learns why it was tried."""
    said = run(arena, _lower(arena), arena.upper, arena.directory("merged"), code=3)
    assert said.count("\n") == 1
    assert "could be changed through its link" in said and "(the ranch engine; not fuse: " in said


@pytest.mark.actors("denied")
def test_a_container_engine_gets_no_ranch(arena: Arena) -> None:
    """Who asks for a mount is not given a tree of links."""
    merged, lower = arena.directory("merged"), _lower(arena)
    arena.upper.mkdir()
    work = arena.directory("work")
    words = f"lowerdir={lower},upperdir={arena.upper},workdir={work}"
    said = run(arena, "-o", words, merged, code=5)
    assert "not ranch: the caller needs a mount" in said
    assert os.listdir(merged) == []


@pytest.mark.actors("userns", "root")
def test_fastest(arena: Arena) -> None:
    """The kernel where it can, without a word; else fuse, with one."""
    merged, lower = arena.directory("merged"), _lower(arena)
    assert run(arena, "--engine", "fastest", lower, arena.upper, merged) == ""
    assert _type(merged) == "overlay"
    run(arena, "umount", merged)
    said = run(arena, "--engine", "fastest", "-o", "noacl", lower, arena.upper, merged)
    assert said == "fuseunion: the fuse engine is used (not kernel: it cannot leave ACLs out (noacl))\n"
    run(arena, "umount", merged)


@pytest.mark.actors("user")
def test_fastest_for_who_may_not_mount(arena: Arena) -> None:
    """The kernel's refusal is the reason for fuse."""
    merged = arena.directory("merged")
    said = run(arena, "--engine", "fastest", _lower(arena), arena.upper, merged)
    assert "the fuse engine is used (not kernel: " in said and "unshare --map-root-user --mount" in said
    run(arena, "umount", merged)


@pytest.mark.actors("user", "denied")
def test_an_engine_that_was_named_or_none(arena: Arena) -> None:
    """Nothing else is taken in its place, and nothing is left behind."""
    merged, lower = arena.directory("merged"), _lower(arena)
    said = run(arena, "--engine", "kernel", lower, arena.upper, merged, code=5)
    assert said.startswith("fuseunion: kernel overlayfs: you may not mount here") and said.count("\n") == 1
    assert sorted(os.listdir(arena.root)) == ["logs", "lower0", "merged"]


OPENAT2 = 437
"""The same on every architecture."""

WITHOUT = """
import os, sys
from tests.support import libc
libc.answer_system_call(int(sys.argv[1]), int(sys.argv[2]))
os.execv(sys.executable, [sys.executable, "-m", "fuseunion", *sys.argv[3:]])
"""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.ENOSYS, "openat2(2) is missing: Linux 5.6 or newer is needed"),
        (errno.EPERM, "openat2(2) is forbidden by a sandbox (Operation not permitted)"),
    ],
)
def test_without_openat2(arena: Arena, error: int, says: str) -> None:
    """An old kernel, or a container with an old filter: one line of the mount, a "no" of the doctor."""
    merged, lower = arena.directory("merged"), _lower(arena)

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [arena.place.interpreter.executable, "-c", WITHOUT, str(OPENAT2), str(error), *map(str, arguments)]
        return subprocess.run(command, env=arena.place.environment(), cwd="/", capture_output=True, text=True)

    for words in ((), ("--engine", "ranch"), ("--read-only",)):
        done = call(*words, lower, *([] if words == ("--read-only",) else [arena.upper]), merged)
        assert (done.returncode, done.stderr.count("\n")) == (5, 1)
        assert done.stderr.startswith(f"fuseunion: {says}")
    done = call("doctor")
    assert done.returncode == 5
    assert f"no  kernel: Linux {os.uname().release}: {says}" in done.stdout
    assert sorted(os.listdir(arena.root)) == ["logs", "lower0", "merged"]


@pytest.mark.actors("root")
@pytest.mark.parametrize(
    ("engine", "options", "reason"),
    [
        ("kernel", ["--uid-map", "0:0:1"], "no id maps"),
        ("kernel", ["--fakeroot"], "keeps no owners"),
        ("kernel", ["-o", "squash_to_root"], "cannot squash"),
        ("kernel", ["-f"], "no daemon"),
        ("kernel", ["--log-file", "/dev/null"], "no daemon"),
        ("kernel", ["-o", "noxattrs=1"], "cannot leave attributes out"),
        ("kernel", ["-o", "fsync=0"], "use --volatile"),
        ("ranch", ["--gid-map", "0:0:1"], "no id maps"),
        ("ranch", ["-o", "noacl"], "cannot leave ACLs out"),
        ("ranch", ["-o", "noexec"], "cannot forbid to execute"),
        ("fuse", ["--inject", "/etc/passwd:x"], "cannot inject"),
        ("fuse", ["-o", "relatime"], "cannot keep access times (relatime)"),
        ("ranch", ["-o", "strictatime,lazytime"], "keeps no access times (strictatime, lazytime)"),
        ("ranch", ["-o", "static_nlink"], "static_nlink"),
        ("kernel", ["-o", "static_nlink"], "static_nlink"),
    ],
)
def test_options_that_an_engine_cannot_honour(arena: Arena, engine: str, options: list[str], reason: str) -> None:
    """Refused, with the reason."""
    merged = arena.directory("merged")
    said = run(arena, "--engine", engine, *options, _lower(arena), arena.upper, merged, code=5)
    assert reason in said and said.count("\n") == 1
    assert not arena.upper.exists()
