"""A second ordinary user, who owns the directory in which somebody's UPPER, WORK or MERGED lies.

That user can put anything there under any name, and wants a command of root to change a *treasure*: a tree of root's
that lies elsewhere.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuseunion.mounting.prepare import default_work_path
from tests.support import tree
from tests.support.arena import Arena

UID = 60_020
"""Of the hostile user, who needs no account: and so is not the ordinary user of the other tests."""

LIMIT = 20
"""Seconds in which a command must have ended, whatever it found."""


@dataclass(frozen=True, slots=True)
class Land:
    """The directory of the hostile user, and what that user wants changed."""

    arena: Arena
    lower: Path
    home: Path
    treasure: Path
    before: tree.Tree

    @property
    def upper(self) -> Path:
        """Root's UPPER in the hostile user's directory; not made yet."""
        return self.home / "upper"

    @property
    def work(self) -> Path:
        """Where its default work directory lies."""
        return Path(default_work_path(str(self.upper)))

    @property
    def state(self) -> Path:
        """Where a ranch that has it as UPPER keeps its state."""
        return self.home / ".upper.fuseunion-ranch"

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of root to its end, whatever that is, and see that no command hangs and nothing was taken."""
        place = self.arena.place
        done = subprocess.run(
            place.interpreter.command(*map(str, arguments)),
            env=place.environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert "Traceback" not in done.stderr, done.stderr
        self.check()
        return done

    def refused(self, *arguments: str | Path, because: str, code: int = 3) -> None:
        """A command of root ends with one line."""
        done = self.run(*arguments)
        assert done.returncode == code, f"{done.returncode}: {done.stderr}"
        assert len(done.stderr.splitlines()) == 1 and because in done.stderr, done.stderr

    def mount(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        """The arguments of a mount over the usual UPPER."""
        return (*arguments, self.lower, self.upper, self.arena.directory("merged"))

    def check(self) -> None:
        """The treasure is as it was."""
        changed = tree.differences(self.before, tree.snapshot(self.treasure), tree.EXACT)
        assert not changed, "the treasure changed:\n  " + "\n  ".join(changed)

    @contextmanager
    def hostile(self) -> Iterator[None]:
        """Act as the hostile user."""
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(UID)
        os.seteuid(UID)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def land(arena: Arena) -> Land:
    """Make it all."""
    from tests.support.layers import Dir, File

    treasure = arena.lower(
        {
            "work": Dir(mode=0o755),
            "work/dear": File(b"dear"),
            "index": Dir(mode=0o755),
            "file": File(b"a file of root", mode=0o600),
            "boot_id": File(b"not yours"),
            "dirty": File(b"not yours"),
        },
        "treasure",
    )
    lower = arena.lower({"file": File(b"lower"), "dir/file": File(b"deep")}, "lower")
    home = arena.directory("home")
    os.chown(home, UID, UID)
    return Land(arena, lower, home, treasure, tree.snapshot(treasure))


def mode_of(path: Path) -> int:
    """The permissions of what has a name, a link itself."""
    return stat.S_IMODE(path.lstat().st_mode)
