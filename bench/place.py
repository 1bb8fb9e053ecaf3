"""Where a run happens: a medium and a player, in namespaces that take everything with them when they end.

    (unshare as root, or setpriv and unshare --user)  ->  python -m bench.play  <- a specification as JSON
                                                                                -> results, one JSON object a line

tmpfs is mounted in the namespace. The disk is a directory under /var/tmp where that lies on a disk's filesystem, else
(as root) an ext4 in an image file there. Both are seen at a short path, since mount(2) takes 4095 bytes for the lowers.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bench.contestants import PROJECT
from bench.row import NotRun

DISK_FILESYSTEMS = ("ext4", "xfs", "btrfs")
IMAGE_SIZE, IMAGE_INODES = 24 << 30, 3_000_000
SHORT_PATHS = ("/media", "/mnt", "/srv")

NAMESPACES = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
# The shell reaps the daemons, whose parents have ended: it is the first process of the namespace.
REAPER = ("sh", "-c", '"$@"; exit $?', "bench")


class Medium(Enum):
    """What the layers lie on."""

    TMPFS = "tmpfs"
    DISK = "disk"


class Player(Enum):
    """Who mounts: root, or an ordinary user in a user namespace, as rootless containers do."""

    ROOT = "root"
    USER = "user"


class Condition(Enum):
    """What else the machine does: nothing, or one process spins."""

    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Specification:
    """What bench.play is to do; see `bench.__main__` for the meanings."""

    rows: list[str]
    scale: str
    rounds: int
    conditions: list[str]
    contestants: list[str]
    peers: list[str]
    medium: str
    player: str
    directory: str
    path: str
    loops: str
    timeout: float


@contextmanager
def compiled_loops() -> Iterator[Path]:
    """The program of bench/loops.c, where everybody may run it.

    Raises:
        NotRun: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotRun("a C compiler is needed for the measured loops (package gcc)")
    with tempfile.TemporaryDirectory(prefix="fuseunion-bench-") as place:
        os.chmod(place, 0o755)
        program = Path(place) / "loops"
        subprocess.run([compiler, "-O2", "-o", program, PROJECT / "bench/loops.c"], check=True)
        yield program


def play(
    specification: Specification, medium: Medium, player: Player, disk: Path, user: str | None
) -> Iterator[dict[str, Any]]:
    """Have the rows played, and hand on each result as it comes.

    Args:
        specification: its medium, player, directory and path are filled in here.
        disk: a directory on the disk.
        user: who the ordinary user is, when root runs the benchmark.
    Raises:
        NotRun: this medium or player cannot be had here.
    """
    with ExitStack() as stack:
        directory, image = _directory(medium, disk, stack)
        if player is Player.USER and user is not None and image is None:
            shutil.chown(directory, user)
        wanted = {**asdict(specification), "medium": medium.value, "player": player.value}
        wanted |= {"directory": str(directory), "path": _short_path()}
        command = [*_prefix(player, user, directory, image), *REAPER, sys.executable, "-m", "bench.play"]
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "PATH": path,
            "HOME": "/tmp",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(PROJECT),
        }
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd="/"
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(wanted))
            child.stdin.close()
            for line in child.stdout:
                yield json.loads(line)
            if child.wait() != 0:
                raise NotRun(f"the run for {medium.value} and {player.value} ended with status {child.returncode}")
        finally:
            child.kill()
            child.wait()


def _directory(medium: Medium, disk: Path, stack: ExitStack) -> tuple[Path, Path | None]:
    """A directory to be covered by the medium, or on it; and an image to be mounted there, if one is needed."""
    parent = disk if medium is Medium.DISK else Path(tempfile.gettempdir())
    directory = Path(tempfile.mkdtemp(prefix="fuseunion-bench-", dir=parent))
    stack.callback(shutil.rmtree, directory)
    directory.chmod(0o755)  # a server of another user works in there
    if medium is Medium.TMPFS or _filesystem(disk) in DISK_FILESYSTEMS:
        if medium is Medium.DISK:
            _spread(directory)
        return directory, None
    if os.geteuid() != 0:
        raise NotRun(f"{disk} lies on {_filesystem(disk)}, and only root can mount an image; name a --disk")
    image = directory.with_suffix(".image")
    stack.callback(image.unlink)
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-N", str(IMAGE_INODES), image], check=True)
    return directory, image


def _spread(directory: Path) -> None:
    """Let what is made in a directory lie apart, where ext4 can (chattr(1), `T`).

    For a minute ext4 uses no inode again that was deleted, but looks at each (fs/ext4/ialloc.c recently_deleted): where
    a sample of thousands of files was, the next would take several times as long to make a file.
    """
    subprocess.run(["chattr", "+T", directory], stderr=subprocess.DEVNULL, check=False)


def _filesystem(path: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True)
    name = done.stdout.strip()
    return "ext4" if name.startswith("ext2/ext3") else name


def may_cover(name: str, *others: Path) -> bool:
    """Whether something may be mounted on a directory in the namespace: nothing that we need lies beneath."""
    needed = [PROJECT, Path(sys.executable), Path(sys.executable).resolve(), Path(sys.prefix), Path(sys.base_prefix)]
    return os.path.isdir(name) and not any(path.is_relative_to(name) for path in (*needed, *others))


def _short_path() -> str:
    """A directory that the medium may cover."""
    for name in SHORT_PATHS:
        if may_cover(name):
            return name
    raise NotRun(f"none of {', '.join(SHORT_PATHS)} can be covered")


def _prefix(player: Player, user: str | None, directory: Path, image: Path | None) -> list[str]:
    """What comes before the command, to be the player in namespaces of its own."""
    words: list[str] = []
    if os.geteuid() == 0:
        words += ["unshare", *NAMESPACES]
    elif player is Player.ROOT:
        raise NotRun("needs root")
    if image is not None:
        # noinit_itable: no thread of the kernel that goes on formatting while we measure.
        script = 'mount -o loop,noinit_itable "$1" "$2" && chown "$3" "$2" && shift 3 && exec "$@"'
        owner = user if player is Player.USER and user is not None else "root"
        words += ["sh", "-c", script, "bench", str(image), str(directory), owner]
    if player is Player.ROOT:
        return words
    if user is not None:
        _reachable()
        group = str(pwd.getpwnam(user).pw_gid)
        words += ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups"]
    return [*words, "unshare", "--user", "--map-root-user", "--map-auto", *NAMESPACES]


def _reachable() -> None:
    """Everybody must be able to run what runs us."""
    for path in (PROJECT, Path(sys.executable).resolve()):
        closed = [parent for parent in path.resolve().parents if not os.stat(parent).st_mode & stat.S_IXOTH]
        if closed:
            raise NotRun(f"an ordinary user cannot enter {closed[0]}, where {path} lies")
