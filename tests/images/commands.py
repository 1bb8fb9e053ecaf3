"""`fuseunion image` within the process of the test, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from fuseunion.cli.main import run
from tests.images.sifs import PRIMARY, SQUASHFS, Entry, Layout
from tests.support import tree
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Link, Name, Node, Opacity, Opaque, Symlink, Whiteout, build


class Done(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


def image(*arguments: str | Path) -> Done:
    """Run `fuseunion image`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["fuseunion", "image", *map(str, arguments)])
    return Done(code, out.getvalue(), err.getvalue())


def succeed(*arguments: str | Path) -> str:
    """Run it; it has nothing to complain of."""
    done = image(*arguments)
    assert (done.code, done.err) == (0, ""), done
    return done.out


def refuse(code: int, says: str, *arguments: str | Path) -> None:
    """Run it; it refuses with one line."""
    done = image(*arguments)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("fuseunion: ") and done.err.count("\n") == 1 and says in done.err, done


def info(path: Path) -> dict[str, Any]:
    """What `info --json` says of the filesystem that is meant last."""
    found: dict[str, Any] = json.loads(succeed("info", "--json", path))
    return found


def features(path: Path) -> set[str]:
    """The features of a filesystem, as dumpe2fs has them."""
    said = subprocess.run(["dumpe2fs", "-h", str(path)], capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if line.startswith("Filesystem features:"))
    return set(line.partition(":")[2].split())


def an_upper(arena: Arena, name: str = "up") -> Path:
    """Everything that an upper of this actor may hold."""
    nodes: dict[Name, Node] = {
        "dir/deep/file": File(b"content" * 10_000, mode=0o640),
        "dir/sparse": File(b"begin", size=3_000_000),
        "dir/set-id": File(b"x", mode=0o4755),
        "gone": Whiteout(),
        "opaque": Opaque(form=Opacity.USER),
        "link": Symlink("dir/deep"),
        "second": Link("dir/set-id"),
        "fifo": Device(mode=0o620),
        b"\xff odd\nname": File(b"", mode=0o400),
        "attributes": File(b"", xattrs={"user.some": b"\0value"}),
        "empty": Dir(mode=0o700),
    }
    if arena.actor.role.value == "root":
        nodes["others"] = File(b"", uid=1234, gid=70_000)
        nodes["null"] = Device(kind=0o020000, major=1, minor=3)
        nodes["trusted"] = Dir(xattrs={"trusted.some": b"value"})
    upper = build(arena.root / name, nodes)
    subprocess.run(["setfacl", "-m", "u:12:r", str(upper / "attributes")], check=True)
    return upper


def assert_equal(one: Path, other: Path | bytes, *, but: tuple[str, ...] = ()) -> None:
    """Two trees show the same."""
    fields = tuple(field for field in tree.SEEN if field not in but)
    different = tree.differences(tree.snapshot(one), tree.snapshot(other), fields)
    assert not different, "\n".join(different)


def a_sif(arena: Arena, name: str = "x.sif", *more: Entry) -> Path:
    """A SIF with a root filesystem of two files, signed by nobody."""
    root = build(arena.root / f"{name}.root", {"etc/conf": File(b"of the root\n"), "file": File(b"f")})
    file = arena.root / f"{name}.sqfs"
    subprocess.run(["mksquashfs", str(root), str(file), "-quiet", "-no-progress"], check=True, capture_output=True)
    primary = Entry(content=file.read_bytes(), filesystem=SQUASHFS, use=PRIMARY)
    return Layout([primary, *more]).write(arena.root / name)


def left(arena: Arena) -> list[str]:
    """What is in the directory of the test, hidden files too."""
    return sorted(os.listdir(arena.root))
