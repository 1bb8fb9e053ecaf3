"""Trees that want more than to be looked at: nothing in them makes us touch what is outside."""

from __future__ import annotations

import os

import pytest

from tests.exec.stage import Stage, tree
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Symlink

pytestmark = pytest.mark.actors("root", "user")


def test_links_at_the_places_that_we_mount_at(arena: Arena, stage: Stage) -> None:
    outside = arena.directory("outside")
    arena.directory("shared")
    lower = arena.lower(
        {
            **tree(),
            "dev": Symlink(f"{outside}/dev"),
            "tmp": Symlink("../../../../../.." + f"{outside}/tmp"),
            "sys": Symlink("/proc/1/root"),
            "etc/resolv.conf": Symlink(f"{outside}/resolv.conf"),
            "place": Symlink(f"{outside}/place"),
        }
    )
    stage.output("--bind", f"{arena.root}/shared:/place/in", lower, arena.upper, "--", "true")
    assert os.listdir(outside) == os.listdir(arena.root / "shared") == []


def test_a_link_into_what_is_bound(arena: Arena, stage: Stage) -> None:
    """The tree decides where the second bind goes: into the first one, which is the machine's."""
    shared = arena.directory("shared")
    lower = arena.lower({**tree(), "place": Symlink("/data/made")})
    options = ["--bind", f"{shared}:/data", "--bind", "/usr:/place"]
    code, _, errors = stage.run(*options, lower, arena.upper, "--", "true")
    assert code == 3 and "--bind" in errors
    assert os.listdir(shared) == []


def test_links_without_an_end(arena: Arena, stage: Stage) -> None:
    lower = arena.lower({**tree(), "tmp": Symlink("tmp"), "a": Symlink("b"), "b": Symlink("a")})
    assert stage.run("--bind", "/usr:/a/c", lower, "--", "true")[0] == 3
    stage.output(lower, "--", "true")


def test_other_objects_at_the_places_that_we_mount_at(arena: Arena, stage: Stage) -> None:
    lower = arena.lower({**tree(), "dev": File(b"x"), "tmp": Device(), "sys": Device(), "etc/hosts": Dir()})
    assert stage.shell([lower], "cat /dev; test -p /tmp") == ["x"]


@pytest.mark.parametrize(
    "passwd",
    [
        File(b"root:x:0:0::" + b"a" * 100_000 + b":/bin/sh\n" * 1000),
        File(b"\xff\0\n::::::\nroot:x:0:0:r:relative:sh\n\x1b[2Jx:y:0:0:\x07:/a\x1b[2J:/\n"),
        Device(),
        Symlink("/dev/zero"),
        Symlink("/proc/self/fd/0"),
    ],
    ids=["long", "odd", "fifo", "endless", "stdin"],
)
def test_a_passwd_of_anybody(arena: Arena, stage: Stage, passwd: File | Device | Symlink) -> None:
    lower = arena.lower({**tree(), "etc/passwd": passwd})
    assert stage.shell([lower], "echo $HOME") == ["/root"]


def test_proc_in_the_lower_is_covered(arena: Arena, stage: Stage) -> None:
    lower = arena.lower({**tree(), "proc/self/fd/0": File(b"of the tree"), "proc/1": Symlink("/")})
    assert stage.shell([lower], "ls -d /proc/self/root >/dev/null; grep -c . /proc/mounts >/dev/null; echo ok") == [
        "ok"
    ]
