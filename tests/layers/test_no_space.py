"""A disk without space: each tool says which place cannot be written, and leaves all as it was."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.mounting.prepare import default_work_path
from tests.layers import uppers
from tests.layers.commands import done, fuseunion
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.tree import assert_same, snapshot

pytestmark = [pytest.mark.root]


@contextmanager
def small_disk(root: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "small", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


def fill(root: Path) -> Path:
    """Take all space; returns the file to remove."""
    path = root / "filler"
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError:
        return path


TOOLS: dict[str, tuple[list[str], str]] = {
    "flatten": (["flatten", "{upper}", "--lower", "{lower}"], "{upper}"),
    "convert": (["convert", "{upper}", "--to", "oci", "--lower", "{lower}"], "{upper}"),
    "snapshot": (["snapshot", "{upper}", "two"], "{disk}/.upper.fuseunion-snapshots"),
    "restore": (["restore", "{upper}", "one"], "{disk}/.upper.fuseunion-snapshots"),
    "check": (["check", "{upper}", "--repair"], "{disk}/.upper.fuseunion-repairs/journal"),
    "export": (["export", "{upper}", "--lower", "{lower}", "-o", "{disk}/x.tar"], "{disk}/x.tar"),
    "commit": (["commit", "{lower}", "{upper}", "{disk}/new"], "{disk}/new"),
    "apply": (["apply", "{upper}", "{disk}/lower"], "{disk}/lower"),
}


@pytest.mark.actors("root")
@pytest.mark.parametrize("tool", TOOLS)
def test_a_full_disk(arena: Arena, tool: str) -> None:
    lower = arena.lower({"d/a": File(os.urandom(50_000)), "d/b": File(b"b"), "gone": File(b"g")})
    with small_disk(arena.directory("disk")) as disk:
        upper = uppers.made(
            disk,
            lower,
            [("chmod", "d/a", 0o600), ("rename", "d", "moved"), ("unlink", "gone"), ("create", "n", os.urandom(9000))],
            redirect_dir=True,
            metacopy=True,
        )
        work = Path(default_work_path(str(upper)))
        (work / "work").rmdir()
        work.rmdir()
        subprocess.run(["cp", "-a", lower, disk / "lower"], check=True)
        os.mknod(upper / "needless", stat.S_IFCHR)
        (upper / "malformed").mkdir()
        os.setxattr(upper / "malformed", "trusted.overlay.opaque", b"no")
        done("snapshot", upper, "one")
        before = uppers.seen(lower, upper, arena.root / "scratch")
        names = sorted(os.listdir(disk))
        filler = fill(disk)
        words, blamed = TOOLS[tool]
        arguments = [word.format(upper=upper, lower=lower, disk=disk) for word in words]
        said = fuseunion(*arguments)
        assert said.code == 1, said
        assert len(said.err.splitlines()) == 1 and "No space left on device" in said.err
        assert f"'{blamed.format(upper=upper, lower=lower, disk=disk)}'" in said.err
        filler.unlink()
        assert sorted(set(os.listdir(disk)) - {".upper.fuseunion-repairs"}) == names
        assert_same(snapshot(lower), snapshot(disk / "lower"), "the lower")
        assert uppers.seen(lower, upper, arena.root / "scratch") == before
        assert fuseunion(*arguments).code in (0, 10)
