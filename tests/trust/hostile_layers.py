"""Layers that a madman made: every mark that any union knows, with contents that no union writes.

One seed gives one set of layers. They hold a well-formed part too, in the directory `good`, which every union shows
alike, and which the rest may not touch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

from tests.differential import recipes
from tests.support import acl
from tests.support.layers import Dir, Name, Node, build

GOOD = b"good"

NAMES = (
    b"a", b"b", b"c", b"d", b"dir", b"\xff\xfe", b"new\nline", b"x" * 255, b"y" * 252, b"#0", b"#ffff", b"-rf",
    b"work", b"index", b"...", b".wh", b".wh.", b".wh.a", b".wh.b", b".wh.dir", b".wh..wh..opq", b".wh..wh.plnk",
    b".wh.\xff\xfe", b".wh..wh.aufs", b".wh." + b"z" * 251,
)  # fmt: skip

_PREFIXES = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.overlay.overlay.")
_MARKS = (
    "opaque", "redirect", "origin", "metacopy", "whiteout", "impure", "nlink", "upper", "protattr", "uuid", "xattrs",
    "verity", "fuseunion.origin", "fuseunion.lowers", "fuseunion.unknown",
)  # fmt: skip
_STORED = (
    "user.containers.override_stat", "security.containers.override_stat", "user.fuseoverlayfs.override_stat",
    "security.fuseoverlayfs.override_stat", "user.rootlesscontainers", "user.fuseunion.capability",
)  # fmt: skip
_OTHERS = ("user.plain", "user.\xe9\xdc\xff", "security.capability", acl.ACCESS, acl.DEFAULT)

REFUSED = frozenset({
    errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSPC, errno.EINVAL, errno.E2BIG, errno.EEXIST, errno.ENOENT,
    errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG,
})  # fmt: skip
"""What the layer's filesystem, or the rights of who makes it, may answer; then there is no such object."""


def _redirect(rng: random.Random) -> bytes:
    deep = b"/".join(rng.choice(NAMES[:5]) for _ in range(rng.randrange(1, 40)))
    return rng.choice((
        b"", b"/", b"//", b".", b"..", b"a", b"b", b"/a", b"/a/b", b"/dir/../a", b"../a", b"a/b", b"/a/./b",
        b"/../../etc", b"/a\0b", b"\0", b"/" + deep, deep, b"/" + b"q" * 300, b"/" + b"9" * 3000, b"/a/" * 900,
        b"/good", b"good", b"/" + rng.choice(NAMES),
    ))  # fmt: skip


def _stored(rng: random.Random) -> bytes:
    return rng.choice((
        b"0:0:4755", b"0:0:755", b"1000:1000:100644", b"0:0:644:file", b"0:0:755:dir", b"0:0:777:symlink",
        b"0:0:644:char-1-1", b"0:0:644:block-8-0", b"0:0:666:pipe", b"0:0:666:socket", b"0:0:0:char-0-0", b":::",
        b"9" * 3000, b"-1:-1:-1", b"4294967295:4294967295:7777", b"0:0:888", b"0:0:644:char-4096-1048576", b"0:0",
        b"0:0:644:what", b"0:0\0:644", b"1:2:3:4:5:6", "\N{ARABIC-INDIC DIGIT FOUR}:0:644".encode(),
    ))  # fmt: skip


def _value(rng: random.Random, name: str) -> bytes:
    if rng.random() < 0.35:
        return rng.randbytes(rng.choice((0, 1, 3, 8, 24, 25, 26, 29, 60, 500, 3000)))
    if name.endswith("redirect"):
        return _redirect(rng)
    if "override_stat" in name:
        return _stored(rng)
    if name.endswith("fuseunion.origin"):
        numbers = b"".join(rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8), b"\1" + bytes(7))) for _ in range(3))
        return rng.choice((b"\1", b"\1", b"\0", b"\2", b"\xff")) + numbers + rng.choice((b"", _redirect(rng)))
    return rng.choice((b"y", b"x", b"n", b"Y", b"", b"yy", b"\0", b"\x00\xfb\x21\x00", b"9" * 2000))


class HostileLayers:
    """Makes the layers of a seed.

    :param foreign: with marks that overlayfs does not know, for which its engine refuses an upper

    Attributes:
        made: how often each kind of object was made.
    """

    def __init__(self, seed: int, *, foreign: bool = True) -> None:
        self._names = NAMES if foreign else tuple(name for name in NAMES if not name.startswith(b".wh"))
        self._prefixes = _PREFIXES if foreign else _PREFIXES[:1]
        self.rng = random.Random(f"hostile {seed}")
        self.made: dict[str, int] = {}

    def make(self, directory: Path) -> tuple[list[Path], Path]:
        """Make one to three lowers and an upper.

        :returns: the lowers, topmost first, and the upper
        """
        rng = self.rng
        good = self._good()
        lowers = [directory / f"lower{number}" for number in range(len(good))]
        upper = directory / "upper"
        for layer, described in zip(lowers, good, strict=True):
            # The well-formed part first: it ages all that it finds.
            build(layer, {os.path.join(GOOD, os.fsencode(name)): node for name, node in described.items()})
        if rng.random() < 0.8:
            upper.mkdir()
        for layer in [*lowers, *([upper] if upper.exists() else [])]:
            self._fill(os.fsencode(layer), 0)
            if rng.random() < 0.15:
                self._mark(os.fsencode(layer))
        return lowers, upper

    def _good(self) -> list[dict[Name, Node]]:
        """One to three descriptions; for those who may not own what others own, of plain directories."""
        if os.geteuid() == 0:
            with contextlib.suppress(OSError):
                return recipes.layers(self.rng.randrange(1 << 30), hard_links=False)
        return [{"sub": Dir(), f"only{number}": Dir()} for number in range(self.rng.randrange(1, 4))]

    def _fill(self, directory: bytes, depth: int) -> None:
        rng = self.rng
        for name in rng.sample(self._names, rng.randrange(3, 11)):
            path = os.path.join(directory, name)
            if len(path) < 3500:
                self._try("object", lambda path=path: self._object(path, depth))  # type: ignore[misc]
        if depth == 0 and rng.random() < 0.3:
            self._try("deep", lambda: self._deep(directory))

    def _deep(self, directory: bytes) -> None:
        path = os.path.join(directory, b"deep")
        while len(path) < 3400:
            os.mkdir(path)
            if self.rng.random() < 0.05:
                self._mark(path)
            path = os.path.join(path, self.rng.choice((b"a", b"b" * 50, b"c" * 200)))

    def _object(self, path: bytes, depth: int) -> None:
        rng = self.rng
        pick = rng.random()
        if pick < 0.30 and depth < 3:
            os.mkdir(path)
            self._fill(path, depth + 1)
        elif pick < 0.52:
            with open(path, "xb") as file:
                file.write(rng.choice((b"", b"x", rng.randbytes(5000))))
        elif pick < 0.62:
            os.symlink(rng.choice((b"a", b"b/c", b"/", b"..", b"../../../etc/passwd", b"l" * 4000, path)), path)
        elif pick < 0.72:
            os.mknod(path, rng.choice((stat.S_IFIFO, stat.S_IFSOCK)) | 0o666)
        elif pick < 0.86:
            os.mknod(path, stat.S_IFCHR | rng.choice((0, 0o644, 0o777, 0o4755)), os.makedev(0, 0))
        elif pick < 0.93:
            numbers = rng.choice(((0, 1), (1, 0), (240, 77), (4095, 1048575), (0, 0)))
            os.mknod(path, rng.choice((stat.S_IFCHR, stat.S_IFBLK)) | 0o600, os.makedev(*numbers))
        else:
            other = os.path.join(os.path.dirname(path), rng.choice(self._names))
            os.link(other, path, follow_symlinks=False)
        if rng.random() < 0.6:
            self._mark(path)
        self._own(path)

    def _own(self, path: bytes) -> None:
        rng = self.rng
        status = os.lstat(path)
        if rng.random() < 0.2:
            who = rng.choice((0, 1000, 65534, 2**31))
            self._try("owner", lambda: os.lchown(path, who, who))
        if not stat.S_ISLNK(status.st_mode) and rng.random() < 0.3:
            least = 0o500 if stat.S_ISDIR(status.st_mode) else 0o400
            self._try("mode", lambda: os.chmod(path, rng.randrange(0o10000) | least))
        if rng.random() < 0.1:
            when = rng.choice((0, -(10**18), 10**19, 15 * 10**18, 1))
            self._try("time", lambda: os.utime(path, ns=(when, when), follow_symlinks=False))

    def _mark(self, path: bytes) -> None:
        rng = self.rng
        for _ in range(rng.randrange(1, 4)):
            name = rng.choice((
                rng.choice(self._prefixes) + rng.choice(_MARKS),
                rng.choice(self._prefixes) + rng.choice(_MARKS),
                rng.choice(_STORED if len(self._prefixes) > 1 else _OTHERS),
                rng.choice(_OTHERS),
            ))  # fmt: skip
            value = _value(rng, name)
            self._try(name, lambda name=name, value=value: os.setxattr(path, name, value, follow_symlinks=False))  # type: ignore[misc]

    def litter(self, work: Path) -> None:
        """Leave garbage in a work directory of our own."""
        rng = self.rng
        work.mkdir(mode=0o700)
        top = os.fsencode(work)
        for name in (b"work", b"links", b"index"):
            if rng.random() < 0.7:
                os.mkdir(os.path.join(top, name), 0o700)
        inner, links = os.path.join(top, b"work"), os.path.join(top, b"links")
        if os.path.isdir(inner):
            for name in rng.sample((b"#0", b"#1", b"#ffff", b"#zz", b"#-1", b"garbage", b"incompat"), 3):
                self._try("litter", lambda name=name: self._object(os.path.join(inner, name), 2))  # type: ignore[misc]
            if rng.random() < 0.2:
                self._try("volatile", lambda: os.makedirs(os.path.join(inner, b"incompat/volatile")))
        if os.path.isdir(links):
            for _ in range(rng.randrange(8)):
                self._try("links", lambda: self._group(links))
            if rng.random() < 0.5:
                self._try("dirty", lambda: self._object(os.path.join(links, b"dirty"), 9))
        if rng.random() < 0.3:
            self._try("database", lambda: Path(work, "fuseunion.db").write_bytes(rng.randbytes(rng.randrange(9000))))

    def _group(self, links: bytes) -> None:
        rng = self.rng
        number = rng.choice((b"0", b"1", b"ffffffffffffffff", b"%x" % rng.randrange(1 << 64), b"7fffffffffffffff"))
        path = os.path.join(links, number + b"-" + rng.choice((b"0-0", b"1-1", b"%x-%x" % (rng.randrange(9), 5000))))
        os.mkdir(path, 0o700)
        entries = (
            b"l-0", b"l-1", b"l-2", b"l-99999999999", b"l-", b"l-x", b"inode", b"c-", b"c-0123",
            b"c-" + b"f" * 24, b"other",
        )  # fmt: skip
        for entry in rng.sample(entries, rng.randrange(6)):
            self._try("entry", lambda entry=entry: self._object(os.path.join(path, entry), 9))  # type: ignore[misc]

    def _try(self, what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:
            if error.errno not in {
                *REFUSED,
                errno.EEXIST,
                errno.ENOENT,
                errno.EISDIR,
                errno.ENOTDIR,
                errno.ENAMETOOLONG,
            }:
                raise
        except OverflowError:
            pass  # a time that struct timespec does not hold
        else:
            self.made[what] = self.made.get(what, 0) + 1
