"""A tree to run commands in, and the ways to run them there.

The tree has directories, a passwd, and links to the programs of this machine, which every command gets bound: so it is
made in no time, and has a shell that works.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.arena import Arena
from tests.support.interpreter import Interpreter
from tests.support.layers import Dir, File, Name, Node, Symlink

SINGLE = 60_020
"""A user without an entry anywhere, and so without subordinate ids."""

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1500:1500:app:/home/app:/bin/sh\n"

_MERGED = ("bin", "sbin", "lib", "lib64", "lib32")
"""Links into /usr on most machines, directories on others."""


def tree() -> dict[Name, Node]:
    """The lower."""
    found: dict[Name, Node] = {
        "etc/passwd": File(PASSWD),
        "etc/hosts": File(b"of the tree\n"),
        "root": Dir(),
        "data/file": File(b"of the lower\n"),
        "proc": Dir(),
        "sys": Dir(),
        "dev": Dir(),
        "tmp": Dir(),
        "usr": Dir(),
    }
    for name in _MERGED:
        path = Path("/", name)
        if path.is_symlink():
            found[name] = Symlink(os.readlink(path))
        elif path.is_dir():
            found[name] = Dir()
    return found


def programs() -> list[str]:
    """The binds that the tree needs to have a shell."""
    directories = [
        "/usr",
        *(f"/{name}" for name in _MERGED if (path := Path("/", name)).is_dir() and not path.is_symlink()),
    ]
    return [word for directory in directories for word in ("--bind", f"{directory}:{directory}:ro")]


@dataclass
class Stage:
    """How commands are run in one arena.

    Attributes:
        who: uid and gid of who runs them; None for the actor.
    """

    arena: Arena
    interpreter: Interpreter
    who: tuple[int, int] | None = None

    def command(self, *arguments: str | Path) -> list[str]:
        """The argument list of `fuseunion exec`."""
        return self.interpreter.command("exec", *programs(), *map(str, arguments))

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """That of the arena, with this interpreter."""
        return {
            **self.arena.place.environment(),
            "PYTHONPATH": self.interpreter.python_path,
            "SHELL": "/bin/sh",
            **(extra or {}),
        }

    def start(self, *arguments: str | Path, cwd: str | Path = "/", **more: object) -> subprocess.Popen[str]:
        """Start it; what it prints can be read."""
        who = {} if self.who is None else {"user": self.who[0], "group": self.who[1], "extra_groups": []}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            self.command(*arguments),
            env=self.environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            **who,
            **{"stderr": subprocess.PIPE, **more},
        )

    def run(self, *arguments: str | Path, cwd: str | Path = "/") -> tuple[int, str, str]:
        """Run it to its end: exit status, output, errors."""
        with self.start(*arguments, cwd=cwd) as process:
            output, errors = process.communicate(timeout=50)
        return process.returncode, output, errors

    def output(self, *arguments: str | Path) -> list[str]:
        """The lines that a command prints which succeeds."""
        code, output, errors = self.run(*arguments)
        assert code == 0, f"exit code {code}: {output}{errors}"
        assert errors == ""
        return output.splitlines()

    def shell(self, options: Sequence[str | Path], script: str) -> list[str]:
        """The lines that a script prints which succeeds.

        Args:
            options: of exec, with LOWER and UPPER.
        """
        return self.output(*options, "--", "sh", "-euc", script)
