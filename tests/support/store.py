"""A rootless container store of its own: podman and buildah of an ordinary user, with one way of mounting layers.

What rootless podman 4.3 needs on a machine without systemd (all found by running it):
- a home, a runtime directory and configuration files of its own. libpod's database remembers the driver of its first
  use, so two drivers need two homes. CONTAINERS_STORAGE_CONF must name runroot and graphroot (`podman commit`: "runroot
  must be set"), and podman still puts a rootless store where the home says, so they name the same places.
- `cgroups = "disabled"`, `cgroup_manager = "cgroupfs"`, `events_logger = "file"`: there is no systemd and no journal.
- a runtime directory with a short name: with 51 characters before it, the sockets' names pass 108 bytes, the clean-up
  process fails, and every `podman run --rm` waits 20 s for it.
- `lock_type = "file"`: the default, a segment in /dev/shm, is one for all stores of a user.
- `netns = "host"` (or none): no CNI plugin, and the tests need no network.
- a plain cgroup2 on /sys/fs/cgroup and a shared `/` (tests/support/namespace.py, login_namespace).

podman keeps a process ("podman pause") that holds the user namespace, and mounts live in there; it ends with `login`'s
process namespace.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.support.namespace import Namespace

CONTAINERS_CONF = """\
[containers]
netns = "host"
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


class Driver(Enum):
    """How the store mounts layers."""

    NATIVE = "native rootless overlay"
    FUSEUNION = "fuseunion"
    ALIAS = "a symbolic link named fuse-overlayfs"


@dataclass(frozen=True)
class Store:
    """One user's store. Everything it holds is below `directory`, which the user owns."""

    login: Namespace
    directory: Path
    mount_program: Path | None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime(self) -> Path:
        """The user's runtime directory, in the login's own tmpfs."""
        return Path("/dev/shm") / self.directory.name

    @property
    def env(self) -> dict[str, str]:
        """What makes podman and buildah use this store."""
        return {
            "HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "XDG_DATA_HOME": str(self.directory / "data"),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "TMPDIR": str(self.directory / "tmp"),
        }

    def prepare(self) -> None:
        """Write the configuration."""
        inside = [self.directory / name for name in ("config", "data", "tmp")]
        self.login.run("mkdir", "--mode=700", self.runtime, *inside)
        options = dict(self.options)
        if self.mount_program is not None:
            options["mount_program"] = str(self.mount_program)
        lines = "".join(f'{name} = "{value}"\n' for name, value in options.items())
        storage = (
            f'[storage]\ndriver = "overlay"\n'
            f'runroot = "{self.runtime}/containers"\n'
            f'graphroot = "{self.directory}/data/containers/storage"\n'
            f"[storage.options.overlay]\n{lines}"
        )
        self.write("storage.conf", storage)
        self.write("containers.conf", CONTAINERS_CONF)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the user below the store's directory."""
        self.login.run("tee", self.directory / name, stdin=text)
        return self.directory / name

    def run(self, *argv: str | Path, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the user with this store's environment, in its directory."""
        return self.login.run(*argv, check=check, stdin=stdin, cwd=self.directory, env=self.env)

    def podman(self, *argv: str | Path, check: bool = True) -> str:
        """The standard output of a podman command."""
        return self.run("podman", *argv, check=check).stdout

    def buildah(self, *argv: str | Path) -> str:
        """The standard output of a buildah command."""
        return self.run("buildah", *argv).stdout

    def close(self) -> None:
        """Remove the containers and all files."""
        self.run("podman", "rm", "--all", "--force", "--time=0", check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", self.directory], check=True)


def make_store(login: Namespace, user: str, directory: Path, program: Path | None, options: Mapping[str, str]) -> Store:
    """A fresh store in the new `directory`."""
    directory.mkdir()
    shutil.chown(directory, user)
    store = Store(login, directory, program, options)
    store.prepare()
    return store
