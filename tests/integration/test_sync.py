"""fsync, `fuseunion sync` and the end of a mount: what was changed is on the disk, as it was changed.

"On the disk" is what is on the device below: see tests/support/disk.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.linux import syscalls
from tests.support import libc, processes
from tests.support.arena import Arena
from tests.support.disk import Disk, disk
from tests.support.layers import OLD, File
from tests.support.mountinfo import mount_at
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

on_a_disk = pytest.mark.root  # an image file can be mounted by root only


def test_sync_of_copied_and_new_files(arena: Arena) -> None:
    """After fsync the upper holds data and attributes; directories and the whole mount can be synced too."""
    lower = arena.lower({"d/f": File(b"data"), "d/untouched": File(b"u")})
    with arena.mount(lower) as mount:
        with open(mount / "d/f", "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(b"+")
            os.fchmod(file.fileno(), 0o640)
            os.utime(file.fileno(), ns=(OLD, OLD))
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
            status = (arena.upper / "d/f").stat()
            assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (5, 0o640, OLD)
        with open(mount / "d/untouched", "rb") as file:
            os.fsync(file.fileno())
        directory = os.open(mount / "d", os.O_RDONLY)
        os.fsync(directory)
        libc.syncfs(directory)
        os.close(directory)
    assert not (arena.upper / "d/untouched").exists()


# -- on the device -----------------------------------------------------------------------------------------------------


@pytest.fixture
def below(arena: Arena) -> Iterator[Disk]:
    """The filesystem of the upper, which belongs to the actor."""
    with disk("ext4", arena.root / "image", arena.root / "disk") as made:
        for path in (made.image, made.root):
            arena.actor.own(path)
        yield made


@pytest.fixture
def xfs(arena: Arena) -> Iterator[Disk]:
    """One of another kind, which only root can look at."""
    with disk("xfs", arena.root / "image", arena.root / "disk") as made:
        yield made


def change_everything(mount: FuseunionMount) -> None:
    """Write, replace, delete, rename, and set attributes; sync nothing."""
    (mount / "new").write_bytes(b"new")
    with (mount / "old").open("ab") as file:
        file.write(b" and more")
    (mount / "d/gone").unlink()
    (mount / "tree").rename(mount / "moved")
    (mount / "old").chmod(0o640)


LOWER = {"old": File(b"old"), "d/gone": File(b"x"), "d/kept": File(b"k"), "tree/leaf": File(b"leaf")}


def assert_changes(found: Path) -> None:
    """What `change_everything` did is all there."""
    assert (found / "new").read_bytes() == b"new"
    assert (found / "old").read_bytes() == b"old and more"
    assert stat.S_IMODE((found / "old").stat().st_mode) == 0o640
    assert (found / "moved/leaf").read_bytes() == b"leaf"
    assert (found / "d").is_dir()


@on_a_disk
@pytest.mark.parametrize("options", [(), ("volatile",)], ids=["usual", "volatile"])
def test_the_command_puts_everything_on_the_disk(arena: Arena, below: Disk, options: tuple[str, ...]) -> None:
    """On a volatile mount too, because somebody asked for it."""
    lower = arena.lower(LOWER)
    with arena.mount(lower, upper=below.root / "upper", options=options) as mount:
        change_everything(mount)
        done = arena.place.fuseunion("sync", mount.merged)
        assert (done.returncode, done.stderr) == (0, "")
        with below.after_a_power_failure() as found:
            assert_changes(found / "upper")


def by_the_command(arena: Arena, mount: FuseunionMount) -> None:
    """`fuseunion umount` waits until everything is written."""
    mount.stop()


def by_others(arena: Arena, mount: FuseunionMount) -> None:
    """Container engines and mount(8); everything is written when the daemon ends."""
    subprocess.run(["fusermount3", "-u", mount.merged], check=True)
    wait_until(lambda: mount.daemon not in processes.with_token(arena.place.token), "the daemon's end")
    mount.check_log()


def by_a_signal(arena: Arena, mount: FuseunionMount) -> None:
    """The end of a session or of the machine."""
    subprocess.run(["kill", "-TERM", str(mount.daemon)], check=True)
    wait_until(lambda: mount.daemon not in processes.with_token(arena.place.token), "the daemon's end")


@on_a_disk
@pytest.mark.parametrize("end", [by_the_command, by_others, by_a_signal])
def test_the_end_of_a_mount_puts_everything_on_the_disk(
    arena: Arena, below: Disk, end: Callable[[Arena, FuseunionMount], None]
) -> None:
    mount = arena.mount(arena.lower(LOWER), upper=below.root / "upper")
    mount.start()
    change_everything(mount)
    end(arena, mount)
    with below.after_a_power_failure() as found:
        assert_changes(found / "upper")


@on_a_disk
@pytest.mark.actors("root", "userns")
@pytest.mark.parametrize("options", [(), ("volatile",)], ids=["usual", "volatile"])
def test_the_kernel_engine(arena: Arena, below: Disk, options: tuple[str, ...]) -> None:
    """syncfs(2) does nothing on a volatile overlay, so the upper is synced by its path."""
    lower, merged = arena.lower({"old": File(b"old")}), arena.directory("merged")
    words = ["-o", ",".join(options)] if options else []
    done = arena.place.fuseunion("--engine", "kernel", *words, lower, below.root / "upper", merged)
    assert done.returncode == 0, done.stderr
    (merged / "new").write_bytes(b"new")
    assert arena.place.fuseunion("sync", merged).returncode == 0
    with below.after_a_power_failure() as found:
        assert (found / "upper/new").read_bytes() == b"new"
    (merged / "last").write_bytes(b"last")
    assert arena.place.fuseunion("umount", merged).returncode == 0
    if not options:
        with below.after_a_power_failure() as found:
            assert (found / "upper/last").read_bytes() == b"last"


@on_a_disk
@pytest.mark.actors("root")
def test_xfs(arena: Arena, xfs: Disk) -> None:
    with arena.mount(arena.lower(LOWER), upper=xfs.root / "upper") as mount:
        change_everything(mount)
        assert arena.place.fuseunion("sync", mount.merged).returncode == 0
        with xfs.after_a_power_failure() as found:
            assert_changes(found / "upper")
        (mount / "last").write_bytes(b"last")
    with xfs.after_a_power_failure() as found:
        assert (found / "upper/last").read_bytes() == b"last"


# -- with another syncfs(2) in the daemon ------------------------------------------------------------------------------


def launcher(arena: Arena, syncfs: str, *arguments: str | Path) -> list[str]:
    """The command of a mount that runs this code, with `path` the path of its descriptor, for syncfs."""
    program = f"""
import os, signal, sys
from pathlib import Path
from fuseunion.linux import syscalls
from fuseunion.linux.namespaces import apart
from fuseunion.cli.main import run
apart.is_private = lambda: False  # it is to reach the files of this test
def syncfs(fd):
    path = os.readlink(f"/proc/self/fd/{{fd}}")
{textwrap.indent(syncfs, "    ")}
syscalls.syncfs = syncfs
sys.exit(run(["fuseunion", *sys.argv[1:]]))
"""
    return [arena.place.interpreter.executable, "-c", program, *map(str, arguments)]


def start(arena: Arena, syncfs: str, *arguments: str | Path) -> int:
    """Mount with such a daemon; returns its pid."""
    before = set(processes.with_token(arena.place.token))
    command = launcher(arena, syncfs, *arguments)
    done = subprocess.run(command, env=arena.place.environment(), cwd=arena.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (daemon,) = set(processes.with_token(arena.place.token)) - before
    return daemon


def open_gate(gate: Path, daemon: int) -> int:
    """The writing end of a fifo that the daemon reads from; to close it lets the daemon go on."""
    found: list[int] = []

    def is_read() -> bool:
        try:
            found.append(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        return bool(found)

    wait_until(is_read, f"daemon {daemon} to write out")
    return found[0]


def await_end(arena: Arena, daemon: int) -> None:
    wait_until(lambda: daemon not in processes.with_token(arena.place.token), "the daemon's end")


MAPPING = """
import mmap, random, sys
size, step = map(int, sys.argv[2:])
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), size) as pages:
    places = list(range(0, size, step))
    random.Random(0).shuffle(places)  # neighbours would be written together
    for place in places:
        pages[place : place + 4] = b"page"
    print("ready", flush=True)
    sys.stdin.read()
"""
"""A process of its own: when one that maps a file forks, the kernel writes all its pages (fs/fuse/file.c
fuse_vma_close)."""


@pytest.mark.parametrize("place", ["upper", "lower"])
def test_pages_of_a_mapping_that_is_still_there(arena: Arena, place: str) -> None:
    """syncfs(2) on FUSE only queues them: thousands are under way when it returns, the first of them to a copy-up."""
    size, step = 32 << 20, 8192
    lower, merged = arena.lower({"f": File(bytes(size))} if place == "lower" else {}), arena.directory("merged")
    count = "Path(path).with_name('count').write_text(str(Path(path, 'f').read_bytes().count(b'page')))"
    start(arena, count, lower, arena.upper, merged)
    if place == "upper":
        (merged / "f").write_bytes(bytes(size))
    command = [arena.place.interpreter.executable, "-c", MAPPING, merged / "f", str(size), str(step)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as mapping:
        assert mapping.stdout is not None and mapping.stdout.readline() == "ready\n"
        done = arena.place.fuseunion("sync", merged)
        assert (done.returncode, done.stderr) == (0, "")
        assert (arena.root / "count").read_text() == str(size // step)
        mapping.communicate()
    assert arena.place.fuseunion("umount", merged).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "synced"),
    [
        ((), True),
        (("--volatile",), False),
        (("-o", "fsync=0"), False),
        (("--ephemeral",), False),
        (("--read-only",), False),
    ],
    ids=["usual", "volatile", "fsync=0", "ephemeral", "read-only"],
)
def test_which_mounts_are_synced_when_they_end(arena: Arena, arguments: tuple[str, ...], synced: bool) -> None:
    """Neither by the command, which asks before it unmounts, nor by the daemon."""
    lower, merged, called = arena.lower({}), arena.directory("merged"), arena.root / "called"
    upper = [] if arguments in (("--ephemeral",), ("--read-only",)) else [arena.upper]
    for end in (["umount", merged], None):
        daemon = start(arena, f"Path({str(called)!r}).touch()", *arguments, lower, *upper, merged)
        if end:
            assert arena.place.fuseunion(*end).returncode == 0
        else:
            subprocess.run(["fusermount3", "-u", merged], check=True)
            await_end(arena, daemon)
        assert called.exists() == synced
        called.unlink(missing_ok=True)


@pytest.mark.parametrize("options", [("volatile",), ()], ids=["volatile", "usual"])
def test_the_kernel_asks_for_what_waits_for_a_disk(arena: Arena, options: tuple[str, ...]) -> None:
    """fsync(2) of files and directories where nothing waits is asked for once, and succeeds always."""
    with arena.mount(arena.lower({}), options=options) as mount:
        for _ in range(3):
            fd = os.open(mount / "f", os.O_CREAT | os.O_WRONLY)
            os.write(fd, b"x")
            os.fsync(fd)
            os.close(fd)
            directory = os.open(mount.merged, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(directory)
            os.close(directory)
        (status,) = json.loads(arena.place.fuseunion("status", "--json", mount.merged).stdout)["mounts"]
        directory = os.open(arena.upper, os.O_RDONLY | os.O_DIRECTORY)
        asked = 1 if options or syscalls.is_in_memory(directory) else 3
        os.close(directory)
        assert [status["requests"][name] for name in ("fsync", "fsyncdir")] == [asked, asked]


def test_the_same_upper_is_mounted_while_the_last_mount_is_written_out(arena: Arena) -> None:
    """Container engines mount again at once, and send SIGTERM to a program that is there a second after unmounting."""
    lower, merged, gate = arena.lower({}), arena.directory("merged"), arena.root / "gate"
    os.mkfifo(gate)
    slow = f"Path({str(gate)!r}).read_bytes()\nPath({str(arena.root)!r}, 'written').touch()"
    old = start(arena, slow, lower, arena.upper, merged)
    (merged / "new").write_bytes(b"new")
    subprocess.run(["fusermount3", "-u", merged], check=True)
    with arena.mount(lower) as mount:
        assert (mount / "new").read_bytes() == b"new"
        os.kill(old, signal.SIGTERM)
        os.close(open_gate(gate, old))
        await_end(arena, old)
        assert (arena.root / "written").exists()


def test_the_command_waits_until_all_is_written(arena: Arena) -> None:
    lower, merged, gate = arena.lower({}), arena.directory("merged"), arena.root / "gate"
    os.mkfifo(gate)
    # The first call is for the question before the unmount.
    asked = arena.root / "asked"
    slow = f"if Path({str(asked)!r}).exists(): Path({str(gate)!r}).read_bytes()\nPath({str(asked)!r}).touch()"
    daemon = start(arena, slow, lower, arena.upper, merged)
    command = arena.place.interpreter.command("umount", str(merged))
    with subprocess.Popen(command, env=arena.place.environment(), stderr=subprocess.PIPE) as umount:
        opened = open_gate(gate, daemon)
        assert mount_at(merged) is None
        assert not processes.holds(daemon, "/dev/fuse")
        assert umount.poll() is None
        os.close(opened)
        assert umount.wait(10) == 0
    assert daemon not in processes.with_token(arena.place.token)


def test_what_cannot_be_written_is_said(arena: Arena) -> None:
    """An error of the disk is one line and exit code 1; the mount is unmounted all the same."""
    lower, merged = arena.lower({}), arena.directory("merged")
    daemon = start(arena, "raise OSError(5, os.strerror(5))", lower, arena.upper, merged)
    done = arena.place.fuseunion("sync", merged)
    assert (done.returncode, done.stderr) == (
        1,
        f"fuseunion: '{merged}' cannot be written to disk: Input/output error\n",
    )
    done = arena.place.fuseunion("umount", merged)
    assert (done.returncode, done.stderr) == (
        1,
        f"fuseunion: '{merged}' is unmounted, but could not be written to disk: Input/output error; "
        "what was changed last may be lost\n",
    )
    assert daemon not in processes.with_token(arena.place.token)


@pytest.mark.parametrize("foreground", [False, True])
def test_what_cannot_be_written_at_the_end_is_said(arena: Arena, foreground: bool) -> None:
    """To the log, or with -f to the stderr of the command."""
    lower, merged, log = arena.lower({}), arena.directory("merged"), arena.root / "log"
    expected = f"upper '{arena.upper}' cannot be written to disk: Input/output error; what was changed last may be lost"
    fails = "raise OSError(5, os.strerror(5))"
    if foreground:
        command = launcher(arena, fails, "-f", lower, arena.upper, merged)
        with subprocess.Popen(command, env=arena.place.environment(), stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: mount_at(merged) is not None, "the mount")
            process.terminate()
            assert process.communicate(timeout=20)[1] == f"fuseunion: {expected}\n"
        assert process.returncode == 1
    else:
        daemon = start(arena, fails, "--log-file", log, lower, arena.upper, merged)
        subprocess.run(["fusermount3", "-u", merged], check=True)
        await_end(arena, daemon)
        assert f"ERROR fuseunion.daemon: {expected}\n" in log.read_text()


def test_a_read_only_mount_has_nothing_to_write(arena: Arena) -> None:
    with arena.mount_read_only(arena.lower({})) as mount:
        done = arena.place.fuseunion("sync", mount.merged)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_questions_are_not_listed(arena: Arena) -> None:
    with arena.mount(arena.lower({})) as mount:
        assert os.getxattr(mount.merged, "user.fuseunion.sync") == b""
        assert os.listxattr(mount.merged) == []


@pytest.mark.actors("root")
def test_only_who_may_use_the_mount_can_ask(arena: Arena) -> None:
    """Not root, where an ordinary user mounted without allow_other: FUSE lets nobody else in."""
    user = arena.actor.user
    lower, merged = arena.lower({}), arena.directory("merged")
    for path in (arena.root, merged):
        os.chown(path, user.uid, user.gid)
    as_user = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--"]
    command = [*as_user, *arena.place.interpreter.command(str(lower), str(arena.upper), str(merged))]
    subprocess.run(command, env=arena.place.environment(), check=True, cwd="/")
    done = arena.place.fuseunion("sync", merged)
    assert (done.returncode, done.stderr) == (
        1,
        f"fuseunion: '{merged}' cannot be written to disk: Permission denied\n",
    )
    assert arena.place.fuseunion("umount", merged).returncode == 0
