"""Random malformed layers, options and work directories: nothing crashes, hangs or changes a lower.

Each round makes layers (hostile_layers.py), mounts them with options of the round's dice, looks at everything there is,
does random operations, unmounts, and looks again. What may come out of any of it is an errno that a filesystem may
give, a warning in the log, or one line that says why there is no mount.

`FUSEUNION_SEED=N make test ARGS="-k hostile_layers"` repeats a round; FUSEUNION_STRESS=1 runs many of them, which are
longer, and repeats one of these.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.support import libc, tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import build
from tests.support.mounts import FuseunionMount, escaped
from tests.trust.hostile_layers import GOOD, NAMES, HostileLayers

LONG = bool(os.environ.get(STRESS_VARIABLE))
ROUNDS, STEPS = (40, 200) if LONG else (2, 80)
SEED = os.environ.get("FUSEUNION_SEED")

ANSWERS = frozenset({
    errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENODATA,
    errno.ENAMETOOLONG, errno.EOPNOTSUPP, errno.ENXIO, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.EOVERFLOW,
    errno.ERANGE, errno.E2BIG, errno.EBUSY, errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.ENODEV, errno.EMLINK,
    errno.EIO,
})  # fmt: skip
"""What an operation on a hostile object may answer. ENOSPC: too many attributes for ext4. EIO: the data of a file that
was copied up without it is missing (metacopy=on)."""

OPTIONS = (
    "", "", "xattr_permissions=2", "xattr_permissions=1", "volatile", "fsync=0", "noacl", "noxattrs=1", "timeout=0",
    "squash_to_root", "static_nlink", "uidmapping=0:0:4000000000", "redirect_dir=on", "metacopy=on",
)  # fmt: skip

WARNINGS = r"(?i)malformed|refused|ignored|stored|not believed|cannot|left"


class _World:
    """What a program sees of one mount, and does to it; counts the answers."""

    def __init__(self, top: Path, rng: random.Random, seed: int) -> None:
        self.top, self.rng, self.seed = os.fsencode(top), rng, seed
        self.answers: collections.Counter[str] = collections.Counter()

    def ask(self, call: Callable[[], object], what: object) -> object:
        """Make a call; its value, or the name of its errno."""
        try:
            value = call()
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
            if error.errno not in ANSWERS:
                raise AssertionError(f"seed {self.seed}: {what}: {error}") from error
            self.answers[name] += 1
            return name
        self.answers["ok"] += 1
        return value

    def look(self) -> dict[bytes, tuple[object, ...]]:
        """Everything about everything."""
        seen: dict[bytes, tuple[object, ...]] = {}
        pending = [b"."]
        while pending:
            path = pending.pop()
            full = self.top if path == b"." else os.path.join(self.top, path)
            seen[path] = self._one(full)
            if seen[path][0] == "dir":
                names = self.ask(lambda full=full: sorted(os.listdir(full)), ("list", path))  # type: ignore[misc]
                assert isinstance(names, list) or (names == "EACCES" and os.geteuid()), (
                    f"seed {self.seed}: {path!r} cannot be listed: {names}"
                )
                if isinstance(names, list):
                    assert len(names) == len(set(names)), f"seed {self.seed}: {path!r} lists a name twice: {names}"
                    pending += [name if path == b"." else os.path.join(path, name) for name in names]
        return seen

    def _one(self, full: bytes) -> tuple[object, ...]:
        status = self.ask(lambda: os.lstat(full), ("stat", full))
        if not isinstance(status, os.stat_result):
            return (status,)
        kind = tree.KINDS[stat.S_IFMT(status.st_mode)]
        names = self.ask(lambda: sorted(os.listxattr(full, follow_symlinks=False)), ("listxattr", full))
        values = names
        if isinstance(names, list):
            values = [
                (name, self.ask(lambda name=name: os.getxattr(full, name, follow_symlinks=False), (name, full)))  # type: ignore[misc]
                for name in names
            ]
        content: object = None
        if kind == "symlink":
            content = self.ask(lambda: os.readlink(full), ("readlink", full))
        elif kind == "file":
            content = self.ask(lambda: self._read(full), ("read", full))
        directory = kind == "dir"
        sizes = () if directory else (status.st_size, status.st_nlink)
        return kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, *sizes, values, content

    @staticmethod
    def _read(path: bytes) -> str:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            return hashlib.sha256(os.read(fd, 1 << 20)).hexdigest()[:12]
        finally:
            os.close(fd)

    def act(self, paths: list[bytes]) -> None:
        """One operation."""
        rng = self.rng
        one, other = (os.path.join(self.top, rng.choice(paths)) for _ in range(2))
        if rng.random() < 0.5:
            other = os.path.join(os.path.dirname(one), rng.choice((*NAMES, b"fresh")))
        flags = rng.choice(
            (libc.RenameFlag.NONE, libc.RenameFlag.NONE, libc.RenameFlag.NOREPLACE, libc.RenameFlag.EXCHANGE)
        )
        attribute = rng.choice((
            "user.new", "user.plain", "user.overlay.opaque", "user.containers.override_stat",
            "trusted.overlay.redirect", "trusted.overlay.fuseunion.origin",
        ))  # fmt: skip
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._write(one, rng.choice((os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND))),
            lambda: self._write(other, os.O_RDWR | os.O_CREAT),
            lambda: os.truncate(one, rng.randrange(9000)),
            lambda: os.unlink(one),
            lambda: os.unlink(one),
            lambda: os.rmdir(one),
            lambda: os.mkdir(other, rng.choice((0o700, 0o755, 0o2777))),
            lambda: libc.rename(one, other, flags),
            lambda: libc.rename(one, other, flags),
            lambda: os.link(one, other, follow_symlinks=False),
            lambda: os.symlink(b"target", other),
            lambda: os.mknod(other, stat.S_IFIFO | 0o644),
            lambda: os.chmod(one, rng.choice((0o700, 0o4755, 0o644, 0o777))),
            lambda: os.lchown(one, rng.choice((-1, os.geteuid())), rng.choice((-1, os.getegid()))),
            lambda: os.utime(one, ns=(1, rng.randrange(10**18)), follow_symlinks=False),
            lambda: os.setxattr(one, attribute, rng.randbytes(8), follow_symlinks=False),
            lambda: os.removexattr(one, attribute, follow_symlinks=False),
            lambda: os.listdir(one),
        )
        number = rng.randrange(len(steps))
        if number in (2, 12) and (one == self.top or os.path.islink(one)):
            return  # follows a link, perhaps out of the mount
        if one != self.top:
            self.ask(steps[number], (number, one, other))

    @staticmethod
    def _write(path: bytes, flags: int) -> None:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.write(fd, b"written" * 100)
        finally:
            os.close(fd)


@pytest.mark.actors("root", "user")
@pytest.mark.limit(3000 if LONG else 120)
def test_hostile_layers(arena: Arena) -> None:
    first = int(SEED) if SEED else random.SystemRandom().randrange(1 << 30)
    total: collections.Counter[str] = collections.Counter()
    made: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + (1 if SEED else ROUNDS)):
        layers = HostileLayers(seed)
        try:
            total += _round(arena, layers, seed)
        except BaseException as error:
            error.add_note(f"FUSEUNION_SEED={seed} repeats this round")
            raise
        made.update(layers.made)
    marks = sum(count for name, count in made.items() if "." in name)
    print(f"seeds {first}-{seed}: {made['object']} objects, {marks} marks: {dict(total)}")
    assert total["refused"] or (total["ok"] > 100 and marks), "hardly anything happened"


def _round(arena: Arena, layers: HostileLayers, seed: int) -> collections.Counter[str]:
    rng = random.Random(f"round {seed}")
    directory = arena.directory(f"round{seed}")
    lowers, upper = layers.make(directory)
    for lower in lowers:
        arena.guard(lower)
    work = directory / "work"
    littered = rng.random() < 0.4
    if littered:
        layers.litter(work)
    merged = directory / "merged"
    merged.mkdir()
    options = [option for option in (rng.choice(OPTIONS), rng.choice(OPTIONS)) if option]
    if arena.actor.role is not Role.ROOT:
        options = [option for option in options if option != "xattr_permissions=1"]  # refused: it is for root
    answers: collections.Counter[str] = collections.Counter()
    if arena.actor.role is Role.ROOT:
        _compare_good(arena, lowers, directory, seed)
    mount = FuseunionMount(arena.place, lowers, upper, merged, options, work=work, tolerated=WARNINGS)
    if not _can_be_mounted(mount, answers, seed):
        return answers
    with mount:
        world = _World(merged, rng, seed)
        paths = list(world.look())
        for _ in range(STEPS):
            world.act(paths)
            if rng.random() < 0.05:
                found = world.ask(lambda: os.listdir(world.top), "list .")
                paths = sorted({*paths, *(found if isinstance(found, list) else ())})  # the same with the same seed
        before = world.look()
    with mount:
        after = world.look()
    # The number of links is known anew: a garbage index said otherwise, perhaps.
    changed = [path for path in {*before, *after} if before.get(path) != after.get(path)]
    assert not changed, f"seed {seed}, {options}: after a remount: " + "\n".join(
        f"{path!r}: {before.get(path)} -> {after.get(path)}" for path in changed[:5]
    )
    _doctor(arena, lowers, upper, merged)
    for lower in lowers:
        arena.release(lower)
    return answers + world.answers


@pytest.mark.actors("root", "user")
@pytest.mark.limit(1500 if LONG else 120)
@pytest.mark.parametrize("engine", ["kernel", "ranch"])
def test_hostile_layers_of_other_engines(arena: Arena, engine: str) -> None:
    """Commands end, with 0 or with one line that says why not; nothing is left mounted, and no lower changes."""
    first = int(SEED) if SEED else random.SystemRandom().randrange(1 << 30)
    ends: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + (1 if SEED else ROUNDS)):
        directory = arena.directory(f"{engine}{seed}")
        lowers, upper = HostileLayers(seed, foreign=engine != "kernel").make(directory)
        for lower in lowers:
            arena.guard(lower)
        merged = directory / "merged"
        merged.mkdir()
        stack = ":".join(map(escaped, lowers))
        if _ended(arena, ends, seed, "mount", "--engine", engine, stack, upper, merged):
            for path, _, names in os.walk(os.fsencode(merged)):
                for name in names:
                    with contextlib.suppress(OSError):
                        os.lstat(os.path.join(path, name))
            with contextlib.suppress(OSError):
                (merged / "new").write_bytes(b"new")
            if not _ended(arena, ends, seed, "umount", "umount", merged):
                assert _ended(arena, ends, seed, "discard", "umount", "--discard", merged), f"seed {seed}: {ends}"
        assert not os.path.ismount(merged), f"seed {seed}"
        for lower in lowers:
            arena.release(lower)
    print(f"seeds {first}-{seed}: {engine}: {dict(ends)}")
    assert ends, "hardly anything happened"


def _ended(arena: Arena, ends: collections.Counter[str], seed: int, what: str, *arguments: str | Path) -> bool:
    """Run a command; whether it ended with 0."""
    done = arena.place.fuseunion(*arguments)
    text = f"FUSEUNION_SEED={seed}: {what}: {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, text
    assert done.returncode in (0, 1, 3, 5), text
    assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith("fuseunion: "), text
    ends[f"{what} {done.returncode}"] += 1
    return done.returncode == 0


def _can_be_mounted(mount: FuseunionMount, answers: collections.Counter[str], seed: int) -> bool:
    """Whether a garbage work directory is accepted; if not, one line says why."""
    assert mount.work is not None and mount.upper is not None
    layers = (":".join(map(escaped, mount.lowers)), mount.upper, mount.merged)
    options = ["-o", ",".join(mount.options)] if mount.options else []
    done = mount.place.fuseunion(*options, "--work", mount.work, "--log-file", mount.place.logs / "probe.log", *layers)
    text = f"seed {seed}: {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, text
    if done.returncode == 0:
        done = mount.place.fuseunion("umount", mount.merged)
        assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
        answers["littered"] += 1
        return True
    assert done.returncode == 3 and done.stderr.splitlines()[-1].startswith("fuseunion: "), text
    assert not os.path.ismount(mount.merged), text
    answers["refused"] += 1
    return False


def _doctor(arena: Arena, lowers: list[Path], upper: Path, merged: Path) -> None:
    done = arena.place.fuseunion("doctor", ":".join(map(escaped, lowers)), upper, merged)
    assert "Traceback" not in done.stderr, done.stderr


def _compare_good(arena: Arena, lowers: list[Path], directory: Path, seed: int) -> None:
    """The well-formed part is what overlayfs shows; but overlayfs may refuse the layers, or see the root otherwise."""
    if any(os.listxattr(lower) for lower in lowers):
        return
    merged = arena.directory(f"good{seed}")
    try:
        with arena.kernel(*lowers, upper=build(directory / "kernel" / "upper", {}), merged=merged.name) as kernel:
            expected = tree.snapshot(os.fsencode(kernel.merged) + b"/" + GOOD)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL, errno.ESTALE, errno.ELOOP):
            return
        raise
    with FuseunionMount(arena.place, lowers, None, merged, (), ["--read-only"], tolerated=WARNINGS) as mount:
        found = tree.differences(expected, tree.snapshot(os.fsencode(mount.merged) + b"/" + GOOD))
    assert not found, f"seed {seed}: overlayfs shows otherwise:\n  " + "\n  ".join(found)
