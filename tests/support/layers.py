"""Building layers from a description.

    build(lower, {
        "etc": Dir(),
        "etc/passwd": File(b"root", mode=0o644),
        "etc/old": Whiteout(),
        "bin": Symlink("usr/bin"),
    })

Parents that are not described are made. Every object gets an old, fixed modification time (`OLD`), so that a time
that a mount should have kept is told apart from one that it made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

OLD = 981_173_106_123_456_789
"""2001-02-03 04:05:06.123456789 UTC, in nanoseconds."""

_SETTLED = 1 << 20
"""Bytes from which a file is written out at once: delayed allocation would change its count of blocks later, and a
lower is compared bit for bit at the end of a test."""

Name = str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What every object of a layer has."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    mtime: int = OLD

    def make(self, path: bytes) -> None:
        """Create the object itself; attributes follow."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class File(Node):
    """A regular file; `size` longer than the data leaves a hole after it."""

    data: bytes = b""
    size: int | None = None

    def make(self, path: bytes) -> None:
        with open(path, "xb") as file:
            file.write(self.data)
            if len(self.data) >= _SETTLED:
                file.flush()
                os.fsync(file.fileno())
            if self.size is not None:
                file.truncate(self.size)


@dataclass(frozen=True, slots=True)
class Dir(Node):
    """A directory."""

    def make(self, path: bytes) -> None:
        os.makedirs(path, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Symlink(Node):
    """A symbolic link."""

    target: Name = "target"

    def make(self, path: bytes) -> None:
        os.symlink(os.fsencode(self.target), path)


@dataclass(frozen=True, slots=True)
class Link(Node):
    """Another name of a file that the same description already made."""

    target: Name = "target"


@dataclass(frozen=True, slots=True)
class Device(Node):
    """A device, fifo or socket."""

    kind: int = stat.S_IFIFO
    major: int = 0
    minor: int = 0

    def make(self, path: bytes) -> None:
        os.mknod(path, 0o600 | self.kind, os.makedev(self.major, self.minor))


class Mark(Enum):
    """The forms that a whiteout takes on disk (reference: overlayfs.rst, fuse-overlayfs, OCI image-spec layer.md)."""

    DEVICE = "0/0 character device"
    WH_FILE = ".wh. file"
    XATTR_TRUSTED = "empty file with trusted.overlay.whiteout"
    XATTR_USER = "empty file with user.overlay.whiteout"


@dataclass(frozen=True, slots=True)
class Whiteout(Node):
    """A name that hides the same name in the layers below."""

    form: Mark = Mark.DEVICE

    def make(self, path: bytes) -> None:
        match self.form:
            case Mark.DEVICE:
                os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
            case Mark.WH_FILE:
                directory, name = os.path.split(path)
                with open(os.path.join(directory, b".wh." + name), "xb"):
                    pass
            case Mark.XATTR_TRUSTED | Mark.XATTR_USER:
                namespace = "trusted" if self.form is Mark.XATTR_TRUSTED else "user"
                with open(path, "xb"):
                    os.setxattr(path, f"{namespace}.overlay.whiteout", b"")
                # The kernel lists a directory's xattr whiteouts away only where this mark is (overlayfs.rst).
                os.setxattr(os.path.dirname(path), f"{namespace}.overlay.opaque", b"x")


class Opacity(Enum):
    """The marks that hide everything below a directory."""

    TRUSTED = "trusted.overlay.opaque"
    USER = "user.overlay.opaque"
    FUSE_OVERLAYFS = "user.fuseoverlayfs.opaque"
    OCI = ".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class Opaque(Node):
    """A directory that hides what lies below it."""

    form: Opacity = Opacity.TRUSTED

    def make(self, path: bytes) -> None:
        os.makedirs(path, exist_ok=True)
        if self.form is Opacity.OCI:
            with open(os.path.join(path, b".wh..wh..opq"), "xb"):
                pass
        else:
            os.setxattr(path, self.form.value, b"y")


def build(root: Path, description: Mapping[Name, Node]) -> Path:
    """Make the objects of a description beneath `root`, which is made too; returns `root`.

    Keys are relative paths; a value of `Link` names a path of the same description.
    """
    root.mkdir(parents=True, exist_ok=True)
    top = os.fsencode(root)
    finished: list[tuple[bytes, Node]] = []
    for name, node in description.items():
        path = os.path.join(top, os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(node, Link):
            os.link(os.path.join(top, os.fsencode(node.target)), path, follow_symlinks=False)
            continue
        node.make(path)
        if not isinstance(node, Whiteout):
            finished.append((path, node))
    for path, node in finished:
        _dress(path, node)
    _age(top, {path: node.mtime for path, node in finished})
    return root


def _dress(path: bytes, node: Node) -> None:
    if node.uid is not None or node.gid is not None:
        os.chown(
            path,
            -1 if node.uid is None else node.uid,
            -1 if node.gid is None else node.gid,
            follow_symlinks=False,
        )
    for name, value in node.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if node.mode is not None and not isinstance(node, Symlink):
        os.chmod(path, node.mode)


def _age(top: bytes, times: Mapping[bytes, int]) -> None:
    for directory, directories, files in os.walk(top, topdown=False):
        for path in [*(os.path.join(directory, name) for name in files + directories), directory]:
            when = times.get(path, OLD)
            os.utime(path, ns=(when, when), follow_symlinks=False)
