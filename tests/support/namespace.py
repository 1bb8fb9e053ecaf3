"""Namespaces that live as long as the test, and commands run inside them.

A holder process makes the namespaces and waits on its standard input; when the test (or the whole of pytest) goes, the
input ends, the holder ends, and the kernel takes the namespaces and their mounts away. It is the init of a process
namespace too: whatever a test leaves running dies with it, and orphans are reaped at once (podman polls for the end of
conmon, and waits 20 s for a zombie that the machine's own init is slow to reap). nsenter(1) brings commands in.

Three of them:
- `root_namespace`: root, in a mount namespace of its own.
- `user_namespace`: an ordinary user who is root of a user namespace with all the subordinate ids (newuidmap), and of a
  mount namespace. This is what rootless container engines and `unshare` give.
- `login_namespace`: the ordinary user, without any privilege, in a mount namespace that root has prepared for
  rootless containers: crun refuses the mixed cgroup v1/v2 layout that some machines have ("cgroups in hybrid mode not
  supported"), so a plain cgroup2 lies on /sys/fs/cgroup; `/` is a shared mount, as under systemd; and /dev/shm is a new
  tmpfs, for podman's locks and for runtime directories with short names.
"""

from __future__ import annotations

import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

READY = "ready"
# `read` returns when the test closes its end of the pipe; meanwhile bash reaps.
HOLD = f"echo {READY}; read _"
OWN_PROCESSES = ("--pid", "--fork", "--kill-child=KILL", "--mount-proc")
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Namespace:
    """Where commands run: a prefix that enters the namespaces, and an environment."""

    name: str
    prefix: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_user_namespace: bool = False

    def command(self, argv: Sequence[str | Path], cwd: str | Path = "/") -> list[str]:
        """The argument list that runs `argv` inside (entering a mount namespace resets the directory)."""
        return [*self.prefix, "env", f"--chdir={cwd}", *map(str, argv)]

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a command: nothing of the test's own, so that every machine gives the same."""
        return {**CLEAN_ENVIRONMENT, **self.environment, **(extra or {})}

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        cwd: str | Path = "/",
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 900,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; fail with its output when it does not exit 0 (unless `check` is off)."""
        done = subprocess.run(
            self.command(argv, cwd),
            env=self.env(env),
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(map(str, argv))}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def output(self, *argv: str | Path, cwd: str | Path = "/") -> str:
        """The standard output of a command that succeeds."""
        return self.run(*argv, cwd=cwd).stdout


@contextmanager
def root_namespace() -> Iterator[Namespace]:
    """Root in a private mount namespace."""
    with _holder(["unshare", "--mount", *OWN_PROCESSES, "bash", "-c", HOLD]) as pid:
        yield Namespace("root", ("nsenter", f"--target={pid}", "--mount", "--pid"))


@contextmanager
def user_namespace(user: str) -> Iterator[Namespace]:
    """Root of a user and mount namespace that `user` made with all its subordinate ids."""
    unshare = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", *OWN_PROCESSES]
    with _holder([*as_user(user), *unshare, "bash", "-c", HOLD]) as pid:
        enter = ("nsenter", f"--target={pid}", "--user", "--mount", "--pid", "--setuid=0", "--setgid=0")
        yield Namespace(f"{user} in a user namespace", enter, {"HOME": "/root"}, is_user_namespace=True)


@contextmanager
def login_namespace(user: str) -> Iterator[Namespace]:
    """`user` without privileges, where rootless podman works."""
    mounts = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t tmpfs -o mode=1777 tmpfs /dev/shm"
    prepare = f"{mounts} && mount --make-rshared / && {HOLD}"
    home = pwd.getpwnam(user).pw_dir
    with _holder(["unshare", "--mount", *OWN_PROCESSES, "bash", "-c", prepare]) as pid:
        enter = ("nsenter", f"--target={pid}", "--mount", "--pid", *as_user(user))
        yield Namespace(user, enter, {"HOME": home, "USER": user})


def as_user(user: str) -> tuple[str, ...]:
    """The prefix that gives up root for `user`, with that user's groups."""
    return ("setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--init-groups")


@contextmanager
def _holder(command: Sequence[str]) -> Iterator[int]:
    program = shutil.which(command[0])
    assert program is not None, f"{command[0]} is missing: run scripts/setup-conformance"
    with subprocess.Popen(
        command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=CLEAN_ENVIRONMENT
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        line = holder.stdout.readline().strip()
        assert line == READY, f"{' '.join(command)}: no namespaces ({line!r})"
        try:
            yield int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
        finally:
            holder.stdin.close()
            holder.wait(timeout=10)
