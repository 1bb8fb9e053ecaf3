"""An ordinary user and their files, many of them without any permission for the owner, against a plain directory.

For root nothing is closed and nothing read-only, so the runs as root miss what meets most users: a daemon that has no
more rights than the owner of the files. Modes are drawn so that half of all objects lack a permission of their owner.
"""

from __future__ import annotations

import dataclasses
import os
import random
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.differential.generator import Generator
from tests.differential.known_differences import Oracle, is_known
from tests.differential.operations import Call, Operation, World
from tests.differential.recipes import NAMES, data
from tests.differential.shrink import shrink
from tests.support import acl, tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Link, Name, Node, Symlink, Whiteout
from tests.support.mounts import FuseunionMount

SEEDS = range(int(os.environ.get("FUSEUNION_SEEDS", "16")))
STEPS = 150
SHRINK_SECONDS = 25.0

FILE_MODES = (0o644, 0o600, 0o755, 0o444, 0o400, 0o555, 0o500, 0o200, 0o000, 0o111, 0o4555, 0o2755)
DIRECTORY_MODES = (0o755, 0o755, 0o700, 0o555, 0o500, 0o300, 0o100, 0o200, 0o400, 0o000, 0o1777, 0o2755)
_WITH_MODE = {
    Call.CREATE: FILE_MODES,
    Call.CHMOD: FILE_MODES + DIRECTORY_MODES,
    Call.FD_CHMOD: FILE_MODES,
    Call.MKDIR: DIRECTORY_MODES,
}


def _readable(modes: Sequence[int], bits: int) -> list[int]:
    """What a lower may hold: the plain copy has to be made of it, and nobody else's daemon could copy it up either."""
    return [mode for mode in modes if mode & bits == bits]


class OwnersGenerator(Generator):
    """Draws what an ordinary user can ask for."""

    def __init__(self, seed: int, root: bytes) -> None:
        super().__init__(seed, root)
        self._modes = random.Random(f"modes {seed}")

    def draw(self) -> Operation:
        """The next operation."""
        drawn = super().draw()
        change: dict[str, object] = {"uid": os.geteuid()}
        if drawn.call in _WITH_MODE:
            change["number"] = self._modes.choice(_WITH_MODE[drawn.call])
        elif drawn.call in (Call.CHOWN, Call.FD_CHOWN):
            change["number"] = self._modes.choice((-1, os.geteuid()))
            change["second"] = self._modes.choice((-1, os.getegid()))
        elif drawn.call is Call.MKNOD:
            change["number"] = stat.S_IFIFO | self._modes.choice(FILE_MODES)
        if drawn.name.startswith(("trusted.", "security.")):
            change["name"] = "user.another"
        elif drawn.name == acl.DEFAULT:
            # Mounted through fusermount3, the umask comes before a default ACL (docs/differences.md).
            change["name"] = acl.ACCESS
        return dataclasses.replace(drawn, **change)  # type: ignore[arg-type]


def _lowers(arena: Arena, seed: int) -> list[Path]:
    """Two lowers of the user's own, the topmost first."""
    dice = random.Random(f"lowers {seed}")
    files, directories = _readable(FILE_MODES, 0o400), _readable(DIRECTORY_MODES, 0o500)
    made: list[dict[Name, Node]] = []
    for layer in range(2):
        description: dict[Name, Node] = {}
        for top in dice.sample(NAMES, 8):
            description[top] = Dir(mode=dice.choice(directories))
            for name in dice.sample(NAMES, 5):
                path = top + b"/" + name
                if dice.random() < 0.3:
                    description[path] = Dir(mode=dice.choice(directories))
                    description[path + b"/" + dice.choice(NAMES)] = File(data(dice), mode=dice.choice(files))
                elif dice.random() < 0.1:
                    description[path] = Symlink(b"a")
                elif layer and path in made[0] and dice.random() < 0.5:
                    description[path] = Whiteout()
                else:
                    attributes = {"user.colour": b"red"} if dice.random() < 0.3 else {}
                    if dice.random() < 0.2:
                        attributes[acl.ACCESS] = acl.with_named_user(os.geteuid(), owner=dice.choice((4, 6, 7)))
                    description[path] = File(data(dice), mode=dice.choice(files), xattrs=attributes)
        if layer:
            names = [path for path, node in description.items() if isinstance(node, File)]
            for number, path in enumerate(dice.sample(names, min(3, len(names)))):
                description[b"link%d" % number] = Link(path)
        made.append(description)
    return [arena.lower(description, f"lower-{seed}-{number}") for number, description in enumerate(reversed(made))]


class _Run:
    """One sequence on a mount and on a plain copy of what it shows."""

    def __init__(self, arena: Arena, lowers: list[Path], number: int) -> None:
        directory = arena.directory(f"run{number}")
        self.mount = FuseunionMount(arena.place, lowers, directory / "upper", directory / "merged")
        self.mount.merged.mkdir()
        self.plain = directory / "plain"
        self.ours, self.theirs = World(os.fsencode(self.mount.merged)), World(os.fsencode(self.plain))

    def go(self, operations: Sequence[Operation] | None, seed: int) -> list[Operation]:
        """Run them, or those of the seed; returns what was run. Raises AssertionError where the two differ."""
        done: list[Operation] = []
        with self.mount:
            subprocess.run(["cp", "-a", f"{self.mount.merged}/.", str(self.plain)], check=True)
            drawn = OwnersGenerator(seed, self.theirs.root)
            try:
                for step in operations if operations is not None else (drawn.draw() for _ in range(STEPS)):
                    done.append(step)
                    self._step(step)
                for world in (self.ours, self.theirs):
                    world.close_all()
                self._open_up()
                self.mount.stop()
                self.mount.start()
                self._compare("after a remount")
            except BaseException as error:
                error.done = done  # type: ignore[attr-defined]
                raise
            finally:
                for world in (self.ours, self.theirs):
                    world.close_all()
        return done

    def _step(self, step: Operation) -> None:
        if step.call is Call.REMOUNT:
            for world in (self.ours, self.theirs):
                world.close_all()
            self.mount.stop()
            self.mount.start()
            return
        expected, got = self.theirs.perform(step), self.ours.perform(step)
        assert got == expected or is_known(Oracle.PLAIN, step, expected, got), (
            f"{step.call}: expected {expected.error or 'ok'}, got {got.error or 'ok'}: {step}: {expected}, {got}"
        )

    def _open_up(self) -> None:
        """Compare what can be seen, then open one closed directory after the other, on both sides."""
        self._compare("at the end")
        closed = True
        while closed:
            closed = [
                path
                for path, entry in tree.walk(self.theirs.root)
                if stat.S_ISDIR(entry.st_mode) and entry.st_mode & 0o700 != 0o700
            ]
            for path in closed:
                for world in (self.theirs, self.ours):
                    os.chmod(world.at(path), 0o700)
        for path, entry in list(tree.walk(self.theirs.root)):
            if stat.S_ISREG(entry.st_mode) and not entry.st_mode & 0o400:
                for world in (self.theirs, self.ours):
                    os.chmod(world.at(path), 0o600)
        self._compare("with everything opened")

    def _compare(self, when: str) -> None:
        def seen(root: bytes) -> dict[bytes, tuple[object, ...]]:
            return {
                path: (
                    *(st.st_mode, st.st_uid, st.st_gid),
                    *((st.st_size, st.st_nlink) if not stat.S_ISDIR(st.st_mode) else ()),
                    self._content(os.path.join(root, path), st.st_mode),
                )
                for path, st in tree.walk(root)
            }

        expected, got = seen(self.theirs.root), seen(self.ours.root)
        for path in sorted({*expected, *got}):
            assert expected.get(path) == got.get(path), f"{when}: {path!r} is {got.get(path)}, not {expected.get(path)}"

    @staticmethod
    def _content(path: bytes, mode: int) -> object:
        if stat.S_ISLNK(mode):
            return os.readlink(path)
        try:
            return Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(mode) else None
        except PermissionError:
            return "closed"


@pytest.mark.actors("user")
@pytest.mark.limit(150)
@pytest.mark.parametrize("seed", SEEDS)
def test_owner(arena: Arena, seed: int) -> None:
    """Every answer, and the trees at the end, are those of a plain directory."""
    lowers = _lowers(arena, seed)
    try:
        _Run(arena, lowers, 0).go(None, seed)
    except (AssertionError, OSError) as error:
        first, done = error, error.done  # type: ignore[union-attr]
    else:
        return
    numbers = iter(range(1, 1000))
    kind = str(first).split(":")[0]

    def fails(operations: Sequence[Operation]) -> bool:
        try:
            _Run(arena, lowers, next(numbers)).go(operations, seed)
        except (AssertionError, OSError) as error:
            return str(error).split(":")[0] == kind
        return False

    needed = shrink(done, fails, SHRINK_SECONDS)
    steps = "".join(f"\n  {operation}," for operation in needed)
    raise AssertionError(f"seed {seed}: {first}\nneeds {len(needed)} of {len(done)} operations: [{steps}\n]") from first
