"""Who takes part: how each shows a lower and an upper as one tree."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.row import Row, Who

PROJECT = Path(__file__).resolve().parents[1]

RANCH_ROWS = frozenset({"mount", "missing", "open", "untar", "compileall", "write", "random-write"})
"""Where a tree of symbolic links makes sense: find, grep and cp see links there, not files."""

EMPTY_ROWS = frozenset({"mount"})
"""An empty filesystem can be mounted and nothing else."""

EMPTY = """
import os, sys
import pyfuse3, trio
pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {"fsname=empty", "default_permissions"})
if os.fork():
    os._exit(0)
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close(unmount=False)
"""
"""What pyfuse3's documentation shows: the least that a filesystem with it costs."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What is mounted where. The upper, the work directory and the mount point are there and empty."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    merged: Path


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to show a union.

    Attributes:
        mounts: the command that makes the mount; None for the bare directory, which is none.
        unmounts: the command that ends it.
        enters: the command before one that is to run in the union, with nothing mounted yet; None where that takes
            unshare(1), the mount and chroot(8).
        daemon: whether a process serves it.
        rival: whether fuseunion's goal is to be faster.
        program: what must be installed.
        image_store: how podman uses it: a mount program, "" for the kernel's overlayfs, None when it cannot.
        rows: the rows it takes part in; None for all.
    """

    name: str
    mounts: Callable[[Layers], list[str]] | None
    unmounts: Callable[[Path], list[str]]
    enters: Callable[[Layers], list[str]] | None = None
    daemon: bool = False
    rival: bool = False
    program: str | None = None
    image_store: str | None = None
    rows: frozenset[str] | None = None

    @property
    def ours(self) -> bool:
        """Whether a failure of it is one of this project."""
        return self.name in OURS

    def takes_part(self, row: Row) -> bool:
        """Whether the row is for this contestant."""
        if self.rows is not None and row.name not in self.rows:
            return False
        match row.who:
            case Who.ALL:
                return True
            case Who.MOUNTS:
                return self.mounts is not None
            case Who.DAEMONS:
                return self.daemon
            case Who.PROGRAMS:
                return self.image_store is not None

    def entering(self, layers: Layers) -> list[str]:
        """The command before one that is to run with the union as its root directory, and with nothing mounted yet."""
        assert self.mounts is not None, "a bare directory is no union"
        if self.enters is not None:
            return self.enters(layers)
        script = f'{shlex.join(self.mounts(layers))}; exec chroot {shlex.quote(str(layers.merged))} "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"]

    def missing(self) -> str | None:
        """Why it cannot take part here."""
        if self.program is not None and shutil.which(self.program) is None:
            return f"{self.program} is not installed"
        return None


def _joined(lowers: tuple[Path, ...]) -> str:
    return ":".join(map(str, lowers))


def _umount(merged: Path) -> list[str]:
    return ["umount", str(merged)]


def _fuseunion(engine: str) -> Contestant:
    program = str(Path(sys.executable).with_name("fuseunion"))

    def mounts(layers: Layers) -> list[str]:
        places = [_joined(layers.lowers), str(layers.upper), str(layers.merged)]
        return [program, "--engine", engine, "--work", str(layers.work), *places]

    def enters(layers: Layers) -> list[str]:
        places = [_joined(layers.lowers), str(layers.upper)]
        return [program, "exec", "--engine", engine, "--work", str(layers.work), *places, "--"]

    is_fuse = engine == "fuse"
    return Contestant(
        engine,
        mounts,
        lambda merged: [program, "umount", str(merged)],
        enters=enters,
        daemon=is_fuse,
        image_store=program if is_fuse else None,
        rows=RANCH_ROWS if engine == "ranch" else None,
    )


def _overlayfs(layers: Layers) -> list[str]:
    options = f"lowerdir={_joined(layers.lowers)},upperdir={layers.upper},workdir={layers.work}"
    if not _owns_the_machine():
        options += ",userxattr"
    return ["mount", "-t", "overlay", "overlay", "-o", options, str(layers.merged)]


def _owns_the_machine() -> bool:
    """Whether root here is root of the first user namespace, in which all ids are mapped (user_namespaces(7))."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _fuse_overlayfs(layers: Layers) -> list[str]:
    options = f"lowerdir={_joined(layers.lowers)},upperdir={layers.upper},workdir={layers.work}"
    return ["fuse-overlayfs", "-o", options, str(layers.merged)]


def _unionfs_fuse(layers: Layers) -> list[str]:
    branches = ":".join([f"{layers.upper}=RW", *(f"{lower}=RO" for lower in layers.lowers)])
    options = "cow,hide_meta_files,allow_other,suid,dev,use_ino,default_permissions"
    return ["unionfs-fuse", "-o", options, branches, str(layers.merged)]


def _empty(layers: Layers) -> list[str]:
    return [sys.executable, "-c", EMPTY, str(layers.merged)]


OURS = ("fuse", "kernel", "ranch")

KNOWN = (
    *(_fuseunion(engine) for engine in OURS),
    Contestant("overlayfs", _overlayfs, _umount, image_store=""),
    Contestant(
        "fuse-overlayfs",
        _fuse_overlayfs,
        _umount,
        daemon=True,
        rival=True,
        program="fuse-overlayfs",
        image_store=shutil.which("fuse-overlayfs"),
    ),
    Contestant("unionfs-fuse", _unionfs_fuse, _umount, daemon=True, rival=True, program="unionfs-fuse"),
    Contestant("empty", _empty, _umount, rows=EMPTY_ROWS),
    Contestant("plain", None, _umount),
)


def peer(text: str) -> Contestant:
    """A contestant of `--peer NAME=COMMAND`; {lower}, {upper}, {work} and {merged} stand for the directories.

    One whose name begins with "fuseunion" is another version of this program, and no rival.

    Raises:
        ValueError: there is no name, or no {merged} in the command.
    """
    name, _, command = text.partition("=")
    if not name or "{merged}" not in command or name in {known.name for known in KNOWN}:
        raise ValueError(f"--peer {text}: NAME=COMMAND with {{lower}}, {{upper}}, {{work}} and {{merged}} is needed")

    def mounts(layers: Layers) -> list[str]:
        places = {"lower": _joined(layers.lowers), "upper": layers.upper, "work": layers.work, "merged": layers.merged}
        return [word.format(**places) for word in shlex.split(command)]

    program = shlex.split(command)[0]
    return Contestant(
        name, mounts, _umount, daemon=True, rival=not name.startswith("fuseunion"), program=os.path.expanduser(program)
    )
