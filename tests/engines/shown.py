"""One lower, shown writable by each engine and by a plain copy, all behind one interface."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.mounts import escaped


class Engine(Enum):
    """Who shows the tree."""

    PLAIN = "a plain copy"
    FUSE = "fuse"
    KERNEL = "kernel"
    RANCH = "ranch"
    RANCH_COPIES = "ranch --copy '*'"
    """All files private: what a user without any privilege can do with their own lower."""

    @property
    def options(self) -> tuple[str, ...]:
        """What the mount command is given."""
        if self is Engine.RANCH_COPIES:
            return ("--engine", "ranch", "--copy", "*")
        return ("--engine", self.value)


def engines_of(role: Role) -> list[Engine]:
    """The engines, but not the plain copy, that an actor has for their own lower."""
    if role is Role.DENIED:
        return [Engine.RANCH_COPIES]
    if role is Role.USER:
        return [Engine.FUSE, Engine.RANCH_COPIES]
    return [Engine.FUSE, Engine.KERNEL, Engine.RANCH, Engine.RANCH_COPIES]


@dataclass(frozen=True, slots=True)
class Shown:
    """A tree that is shown: where, and by whom."""

    arena: Arena
    engine: Engine
    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def promote(self, *names: str) -> None:
        """Make files writable, where that has to be asked for."""
        if self.engine in (Engine.RANCH, Engine.RANCH_COPIES):
            run(self.arena, "promote", self.root, *names)


def run(arena: Arena, *arguments: str | Path, code: int = 0) -> str:
    """A command of the product that ends with this status; returns its standard error."""
    done = arena.place.fuseunion(*arguments)
    assert done.returncode == code, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stderr


@contextmanager
def shown(
    arena: Arena,
    engine: Engine,
    lowers: Sequence[Path],
    upper: Path,
    *,
    name: str = "merged",
    options: Sequence[str] = (),
) -> Iterator[Shown]:
    """Show lowers and an upper until the block ends; a plain copy is made of the lowers and stays."""
    merged = arena.directory(name)
    if engine is Engine.PLAIN:
        if not os.listdir(merged):
            for lower in reversed(lowers):
                subprocess.run(["cp", "-a", f"{lower}/.", merged], check=True)
        yield Shown(arena, engine, merged)
        return
    run(arena, *engine.options, *options, ":".join(map(escaped, lowers)), upper, merged)
    try:
        yield Shown(arena, engine, merged)
    except BaseException:
        arena.place.fuseunion("umount", "--lazy", merged)
        raise
    run(arena, "umount", merged)
    left = [path.name for path in upper.parent.iterdir() if "fuseunion" in path.name and "links" not in _in(path)]
    assert not left, f"left beside upper: {left}"


def _in(path: Path) -> list[str]:
    return os.listdir(path) if path.is_dir() else []


def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
    """A tree as a program sees that follows the links of a ranch: kind, mode, owner, size, content, attributes."""
    found = {}
    for path, status in tree.walk(root):
        full = os.fsencode(root) + (b"" if path == b"." else b"/" + path)
        if tree.KINDS[status.st_mode & 0o170000] == "symlink" and b".fuseunion-ranch/lower/" in os.readlink(full):
            full = os.path.realpath(full)
            status = os.lstat(full)
        kind = tree.KINDS[status.st_mode & 0o170000]
        xattrs = tuple(
            (name, value) for name, value in tree.xattrs(full) if not name.startswith(("user.fuseunion", "trusted."))
        )
        content = Path(os.fsdecode(full)).read_bytes() if kind == "file" else b""
        if kind == "symlink":
            content = os.readlink(full)
        found[path] = (kind, oct(status.st_mode), status.st_uid, status.st_gid, content, xattrs)
    return found
