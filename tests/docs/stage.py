"""Where an example runs: a directory of its own in namespaces of its own, with fuseunion installed.

The readers have fuseunion in /usr/local/bin, their layers in /srv, and write files in /etc. So these three are covered
by overlays of the kernel in the example's mount namespace, and what is written there goes to the example's directory.
"""

from __future__ import annotations

import dataclasses
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.docs.examples import Who
from tests.docs.scenes import Scene
from tests.support.interpreter import Interpreter
from tests.support.namespace import Namespace, as_user, login_namespace, root_namespace
from tests.support.product import make_launcher, make_python
from tests.support.store import CONTAINERS_CONF
from tests.support.tiny_base import make_tiny_base

COVERED = ("/usr/local/bin", "/srv", "/etc")
LIMIT = 60
"""Seconds for one example."""
RUNTIME = "/dev/shm/runtime"
"""podman wants a short name (tests/support/store.py)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Two ways into one set of namespaces, and the directory of the example."""

    root: Namespace
    player: Namespace
    directory: Path

    def mounts(self) -> list[str]:
        """The mount points that are there, as the stage sees them."""
        lines = self.root.output("cat", "/proc/self/mountinfo").splitlines()
        return sorted(line.split()[4] for line in lines)

    def prepare(self, scene: Scene) -> None:
        """Make what the scene has, as root, in the directory."""
        self.root.run("bash", "-euc", scene.before, cwd=self.directory)
        if scene.owned and self.player is not self.root:
            self.root.run("chown", "-R", f"{self.player.name}:", ".", cwd=self.directory)

    def play(self, script: str) -> str:
        """Run a script as the one whose example it is; returns what it printed on both outputs.

        They go to a file: a daemon in the foreground that an example leaves behind would keep a pipe open for ever.
        """
        output = self.directory.with_name("output")
        self.root.run("install", "--mode=666", "/dev/null", output)
        limited = ("timeout", "--kill-after=5", str(LIMIT), "bash", "-euc", f"exec >{output} 2>&1\n{script}")
        done = self.player.run(*limited, cwd=self.directory, check=False)
        printed = output.read_text()
        assert done.returncode == 0, f"exit code {done.returncode} of\n{script}\n{printed}{done.stderr}"
        return printed


@contextmanager
def open_stage(who: Who, user: str, place: Path, interpreter: Interpreter) -> Iterator[Stage]:
    """A fresh stage below the new directory `place`; at the end nothing may be mounted that was not at the start."""
    directory = place / "example"
    directory.mkdir(parents=True)
    home = {"HOME": str(directory), "USER": user, "XDG_RUNTIME_DIR": str(directory)}
    if who is not Who.ROOT:
        shutil.chown(directory, user, pwd.getpwnam(user).pw_gid)
    with login_namespace(user) if who is Who.PODMAN else root_namespace() as entered:
        # The prefix of a login ends with what gives up root.
        enter = entered.prefix[: len(entered.prefix) - len(as_user(user))] if who is Who.PODMAN else entered.prefix
        root = Namespace("root", enter, {"HOME": str(directory)})
        _install(root, place, interpreter)
        player = root if who is Who.ROOT else Namespace(user, (*enter, *as_user(user)), home)
        if who is Who.PODMAN:
            player = dataclasses.replace(player, environment={**player.environment, "XDG_RUNTIME_DIR": RUNTIME})
            _prepare_podman(player, directory)
        stage = Stage(root, player, directory)
        before = stage.mounts()
        yield stage
        assert stage.mounts() == before, "the example left something mounted"


def _install(root: Namespace, place: Path, interpreter: Interpreter) -> None:
    for covered in COVERED:
        upper, work = (place / f"{kind}{covered.replace('/', '-')}" for kind in ("upper", "work"))
        upper.mkdir()
        work.mkdir()
        if covered == "/usr/local/bin":
            make_launcher(upper / "fuseunion", interpreter)
            make_python(upper / "python", interpreter)
        options = f"lowerdir={covered},upperdir={upper},workdir={work}"
        root.run("mount", "-t", "overlay", "-o", options, "overlay", covered)


def _prepare_podman(player: Namespace, directory: Path) -> None:
    """What podman needs on a machine without systemd; nothing of it has to do with mounts."""
    configuration = directory / ".config/containers"
    make_tiny_base(directory / "base")
    player.run("mkdir", "-p", "--mode=700", RUNTIME, configuration)
    player.run("tee", configuration / "containers.conf", stdin=CONTAINERS_CONF)
