"""Layers from a seed: few names, so that layers meet; odd names, so that nobody may think of names as text."""

from __future__ import annotations

import random
import stat
from collections.abc import Mapping

from tests.support import acl
from tests.support.layers import Device, Dir, File, Link, Name, Node, Opaque, Symlink, Whiteout

NAMES: tuple[bytes, ...] = (
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"sp ace",
    b"new\nline",
    b"\xff\xfe\x80",
    b"caf\xc3\xa9",
    b"cafe\xcc\x81",
    b"-rf",
    b".hidden",
    b"back\\slash",
    b"colon:comma,",
    b"#23",
    b"...",
    b"x" * 255,
)

LONG_NAMES = (b"y" * 256, b"x" * 255)
"""What reports abbreviate."""

USERS = (0, 0, 1000, 1001)
MODES = (0o644, 0o644, 0o600, 0o755, 0o777, 0o444, 0o4755, 0o2755, 0o6755, 0o000)
DIRECTORY_MODES = (0o755, 0o755, 0o777, 0o1777, 0o2775, 0o700, 0o555)
_DEPTH = 3


def access_list(rng: random.Random) -> bytes:
    """A POSIX ACL that names one user."""
    return acl.with_named_user(rng.choice((1000, 1001)), rng.randrange(8), group=rng.randrange(8))


def data(rng: random.Random) -> bytes:
    """Some contents."""
    return rng.choice((b"", b"x", rng.randbytes(rng.randrange(1, 300)), rng.randbytes(5000), b"z" * 70_000))


def xattrs(rng: random.Random) -> dict[str, bytes]:
    """Some attributes that a regular file or directory may carry."""
    found = {}
    if rng.random() < 0.3:
        found["user.colour"] = rng.randbytes(rng.randrange(20))
    if rng.random() < 0.1:
        found["trusted.note"] = b"kept"
    if rng.random() < 0.1:
        found["user.empty"] = b""
    if rng.random() < 0.15:
        found[acl.ACCESS] = access_list(rng)
    return found


class _Layer:
    """One layer in the making, above the layer `below`.

    A whiteout is put only on a name that the next layer holds, in a directory that merges with that layer: overlayfs
    never leaves one elsewhere, and shows it in listings when somebody else did.
    """

    def __init__(self, rng: random.Random, below: Mapping[Name, Node] | None) -> None:
        self._rng = rng
        self._below = below or {}
        self.description: dict[Name, Node] = {}
        self._fill(b"", 0, merges=True)

    def _fill(self, prefix: bytes, depth: int, *, merges: bool) -> None:
        count = self._rng.randrange(4, 11) if depth < 2 else self._rng.randrange(0, 5)
        for name in self._rng.sample(NAMES, min(count, len(NAMES))):
            self._add(prefix + name, depth, merges=merges)

    def _add(self, path: bytes, depth: int, *, merges: bool) -> None:
        rng = self._rng
        if merges and path in self._below and rng.random() < 0.25:
            self.description[path] = Whiteout()
            return
        uid, gid = rng.choice(USERS), rng.choice(USERS)
        pick = rng.random()
        if pick < 0.45:
            size = 300_000 if rng.random() < 0.1 else None
            self.description[path] = File(data(rng), size, mode=rng.choice(MODES), xattrs=xattrs(rng), uid=uid, gid=gid)
        elif pick < 0.80 and depth < _DEPTH:
            mode = rng.choice(DIRECTORY_MODES)
            attributes = xattrs(rng)
            if rng.random() < 0.15:
                attributes[acl.DEFAULT] = access_list(rng)
            opaque = bool(self._below) and rng.random() < 0.2
            kind = Opaque if opaque else Dir
            self.description[path] = kind(mode=mode, xattrs=attributes, uid=uid, gid=gid)
            self._fill(path + b"/", depth + 1, merges=merges and not opaque)
        elif pick < 0.90:
            self.description[path] = Symlink(rng.choice((b"a", b"b/c", b"nowhere", b"c", b"\xff")), uid=uid, gid=gid)
        else:
            kind_bits = rng.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))
            self.description[path] = Device(kind=kind_bits, major=240, minor=77, mode=0o666, uid=uid, gid=gid)


def layers(seed: int, *, hard_links: bool) -> list[dict[Name, Node]]:
    """The descriptions of one to three lowers, topmost first.

    :param hard_links: with hard links inside the topmost lower (there all names of a file show in the merged tree,
        so that a copy of the tree has the same link counts)
    """
    rng = random.Random(f"layers {seed}")
    found: list[dict[Name, Node]] = []
    for _ in range(rng.randrange(1, 4)):
        found.insert(0, _Layer(rng, found[0] if found else None).description)
    if hard_links:
        _add_links(rng, found[0])
    return found


def _add_links(rng: random.Random, description: dict[Name, Node]) -> None:
    files = [path for path, node in description.items() if isinstance(node, File)]
    directories = [path for path, node in description.items() if isinstance(node, Dir | Opaque)]
    for path in rng.sample(files, min(len(files), 4)):
        for number in range(rng.randrange(1, 3)):
            parent = rng.choice([None, *directories])
            name = b"link%d-%d" % (len(description), number)
            target = name if parent is None else bytes(parent) + b"/" + name  # type: ignore[arg-type]
            description[target] = Link(path)
